"""A template gives the pattern to subscribe with, and takes apart the channels that Redis matched."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from relay.sources.template import PLACEHOLDERS, ChannelTemplate


def glob_matches(pattern: str, text: bytes) -> bool:
    """PSUBSCRIBE's glob, naively: `*`, `?`, `[...]`, and a backslash before what is meant itself."""

    def matches(pattern: bytes, text: bytes) -> bool:
        if not pattern:
            return not text
        first, rest = pattern[:1], pattern[1:]
        if first == b"*":
            return any(matches(rest, text[i:]) for i in range(len(text) + 1))
        if first == b"[":
            members, _, rest = rest.partition(b"]")
            return text[:1] in [members[i : i + 1] for i in range(len(members))] and matches(
                rest, text[1:]
            )
        if first == b"\\" and rest:
            first, rest = rest[:1], rest[1:]
        elif first == b"?":
            return bool(text) and matches(rest, text[1:])
        return text[:1] == first and matches(rest, text[1:])

    return matches(pattern.encode(), text)


def matched(template: str, channel: str) -> dict[str, str] | None:
    found = ChannelTemplate.parse(template).match(channel.encode())
    return None if found is None else {name: value.decode() for name, value in found.items()}


# Few characters, so that literals and values often hold one another; all that is special to globs.
TEXTS = st.text("ab:.*?[]\\^-é", max_size=5)


@st.composite
def templates(draw: st.DrawFn) -> tuple[str, list[str], list[str]]:
    """A template, its placeholders and the literals around them."""
    names = draw(st.lists(st.sampled_from(PLACEHOLDERS), unique=True, max_size=3))
    literals = [draw(TEXTS.filter(bool)) for _ in range(len(names) + 1)]
    literals[0] = draw(TEXTS) if names else literals[0]
    literals[-1] = draw(TEXTS) if names else literals[-1]
    text = literals[0] + "".join(
        f"{{{name}}}{literal}" for name, literal in zip(names, literals[1:], strict=True)
    )
    return text, names, literals


@pytest.mark.parametrize(
    ("template", "pattern"),
    [
        ("jobs:{queueName}:{jobId}", "jobs:*:*"),
        ("jobs", "jobs"),
        ("{jobId}", "*"),
        ("{event}/{jobId}.json", "*/*.json"),
        ("a*b?c[d]e\\{jobId}", r"a\*b\?c\[d\]e\\*"),
    ],
)
def test_pattern_has_a_star_for_each_placeholder_and_escapes_the_rest(
    template: str, pattern: str
) -> None:
    assert ChannelTemplate.parse(template).pattern == pattern


@pytest.mark.parametrize(
    ("template", "channel", "told"),
    [
        ("jobs:{queueName}:{jobId}", "jobs:q:1", {"queueName": "q", "jobId": "1"}),
        ("jobs:{queueName}:{jobId}", "jobs:q:1:2:3", {"queueName": "q", "jobId": "1:2:3"}),
        ("jobs:{queueName}:{jobId}", "jobs::1", {"queueName": "", "jobId": "1"}),
        ("jobs:{queueName}:{jobId}", "jobs:é:€", {"queueName": "é", "jobId": "€"}),
        ("jobs:{queueName}:{jobId}", "jobs:q", None),
        ("jobs:{queueName}:{jobId}", "job:q:1", None),
        ("jobs:{queueName}:{jobId}", "xjobs:q:1", None),
        ("{jobId}", "anything:at:all", {"jobId": "anything:at:all"}),
        ("{jobId}:{event}", "a:b:done", {"jobId": "a", "event": "b:done"}),
        ("{jobId}.json", "a.json.json", {"jobId": "a.json"}),
        ("{jobId}.json", "a.jso", None),
        ("a:{jobId}:a", "a:a", None),
        ("a:{jobId}:a", "a::a", {"jobId": ""}),
        ("{queueName}::{jobId}:", "q::", None),
        ("events", "events", {}),
        ("events", "events2", None),
        ("jobs*{jobId}", "jobsx1", None),
    ],
)
def test_placeholder_takes_up_to_the_next_literal_and_the_last_one_the_rest(
    template: str, channel: str, told: dict[str, str] | None
) -> None:
    assert matched(template, channel) == told


@pytest.mark.parametrize(
    ("template", "hint"),
    [
        ("", "is empty"),
        ("jobs:{id}", "unknown placeholder {id}"),
        ("jobs:{}", "unknown placeholder {}"),
        ("jobs:{jobid}", "there are {queueName}, {jobId}, {event}"),
        ("jobs:{ jobId }", "unknown placeholder"),
        ("{jobId}:{jobId}", "{jobId} stands in it twice"),
        ("{queueName}{jobId}", "a literal between them"),
        ("jobs:{jobId", "a brace without its partner"),
        ("jobs:jobId}", "a brace without its partner"),
        ("jobs:{{jobId}}", "a brace without its partner"),
    ],
)
def test_template_at_fault_says_what_would_be_right(template: str, hint: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the hint is compared below, as text
        ChannelTemplate.parse(template)

    assert hint in str(caught.value)


def test_template_knows_what_its_channels_tell() -> None:
    template = ChannelTemplate.parse("jobs:{jobId}")

    assert [template.names(name) for name in PLACEHOLDERS] == [False, True, False]


def test_format_fills_in_what_the_template_names() -> None:
    template = ChannelTemplate.parse("{event}:jobs:{queueName}:{jobId}")

    assert template.format(job_id="1:2", queue="q", event="done") == "done:jobs:q:1:2"
    assert ChannelTemplate.parse("jobs").format(job_id="1", queue=None, event="done") == "jobs"


def test_format_leaves_what_looks_like_a_placeholder_in_a_name_alone() -> None:
    template = ChannelTemplate.parse("jobs:{queueName}:{jobId}")

    assert template.format(job_id="1", queue="{jobId}", event="done") == "jobs:{jobId}:1"


def test_format_without_the_queue_that_the_channel_names_is_refused() -> None:
    template = ChannelTemplate.parse("jobs:{queueName}:{jobId}")

    with pytest.raises(ValueError, match="say which queue"):
        template.format(job_id="1", queue=None, event="done")


@given(templates(), TEXTS, TEXTS, TEXTS)
def test_channel_that_was_formatted_is_taken_apart_again(
    drawn: tuple[str, list[str], list[str]], job_id: str, queue: str, event: str
) -> None:
    text, names, literals = drawn
    values = {"jobId": job_id, "queueName": queue, "event": event}
    # Where a value holds the literal that comes after it, no template could tell where it ends.
    assume(
        all(
            (values[name] + literal).find(literal) == len(values[name])
            for name, literal in zip(names[:-1], literals[1:-1], strict=True)
        )
    )

    channel = ChannelTemplate.parse(text).format(job_id=job_id, queue=queue, event=event)

    assert matched(text, channel) == {name: values[name] for name in names}


@given(templates(), TEXTS, TEXTS, TEXTS)
def test_redis_delivers_every_channel_that_is_published_on(
    drawn: tuple[str, list[str], list[str]], job_id: str, queue: str, event: str
) -> None:
    template = ChannelTemplate.parse(drawn[0])

    channel = template.format(job_id=job_id, queue=queue, event=event).encode()

    assert glob_matches(template.pattern, channel)
    assert template.match(channel) is not None


@given(templates(), st.data())
def test_match_agrees_with_the_glob_that_redis_was_given(
    drawn: tuple[str, list[str], list[str]], data: st.DataObject
) -> None:
    text, _, literals = drawn
    template = ChannelTemplate.parse(text)
    pieces = st.sampled_from(literals) | TEXTS
    channel = "".join(data.draw(st.lists(pieces, max_size=6))).encode()

    assert (template.match(channel) is not None) == glob_matches(template.pattern, channel)


@given(templates(), st.binary(max_size=20))
def test_any_bytes_match_or_do_not(drawn: tuple[str, list[str], list[str]], channel: bytes) -> None:
    template = ChannelTemplate.parse(drawn[0])

    assert (template.match(channel) is not None) == glob_matches(template.pattern, channel)
