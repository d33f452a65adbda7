"""What one principal may watch, and until when.

Invariants: an absent claim allows nothing; a claim that is not a list of strings is refused, never read as
"everything"; to judge an id takes one step a character, whatever the globs are and however many.
Knows no token, no signature and no clock: whoever proved the claims says when they expire.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from relay.core.event import MAX_NAME_CHARACTERS, is_name

# A list of this many names is better said with a glob; the bound keeps a session's memory in hand.
MAX_GLOBS: Final = 1000
# Of all globs with a wildcard in one claim: how many states the automaton has, and so what one step costs.
# Some fifty globs of ordinary length; 2048 bits are added and shifted in a fraction of a microsecond.
MAX_STATES: Final = 2048
# Tokens of one kind mostly carry the same globs, and twenty thousand sessions need not each compile them.
_COMPILED: Final = 256


class Globs:
    """A list of globs: `*` is any run of characters, `?` exactly one, nothing else is special.

    All globs with a wildcard are one automaton: a state for each place between two characters of each
    glob, a bit for each state. A step of the text moves all bits at once, so that no pattern makes the
    matching go back over what it has read.
    """

    __slots__ = ("_any", "_done", "_ends", "_literals", "_loops", "_masks", "_starts", "states")

    def __init__(self, globs: tuple[str, ...]) -> None:
        """Raises ValueError: there are too many globs, or one is too long."""
        if len(globs) > MAX_GLOBS:
            raise ValueError(f"should list at most {MAX_GLOBS} globs")
        self._literals = frozenset(glob for glob in globs if "*" not in glob and "?" not in glob)
        self._starts = self._ends = 0
        self._loops = 0  # states that stay whatever comes: there is a `*` at this place
        self._any = 0  # states that any character leads out of: `?`
        masks: defaultdict[str, int] = defaultdict(int)  # character -> the states it leads out of
        self.states = 0
        for glob in dict.fromkeys(globs):
            if glob not in self._literals:
                self._add(glob, masks)
        self._masks = {character: mask | self._any for character, mask in masks.items()}
        self._done = self._ends & self._loops  # whatever follows, the glob fits

    def _add(self, glob: str, masks: defaultdict[str, int]) -> None:
        fixed = len(glob) - glob.count("*")
        if fixed > MAX_NAME_CHARACTERS:
            raise ValueError(f"should have globs of at most {MAX_NAME_CHARACTERS} characters")
        if self.states + fixed + 1 > MAX_STATES:
            raise ValueError(f"should have globs of less than {MAX_STATES} characters in all")
        state = 1 << self.states
        self._starts |= state
        for character in glob:
            if character == "*":  # a run of them is one
                self._loops |= state
                continue
            if character == "?":
                self._any |= state
            else:
                masks[character] |= state
            state <<= 1
        self._ends |= state
        self.states += fixed + 1

    def match(self, text: str) -> bool:
        """Whether one of the globs fits the whole of `text`."""
        if text in self._literals:
            return True
        states = self._starts
        for character in text:
            if states & self._done:
                return True
            moved = states & self._masks.get(character, self._any)
            states = (moved << 1) | (states & self._loops)
            if not states:
                return False
        return bool(states & self._ends)


_globs: Final = lru_cache(_COMPILED)(Globs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grants:
    """What somebody proved: who it is, what may be watched, until when.

    `principal` and `token_id` are None where the claims name none; `expires_at_ms` is None where there is no
    end. Two grants of the same globs may differ.
    """

    principal: str | None
    token_id: str | None
    expires_at_ms: int | None  # ms since the epoch
    jobs: Globs = field(repr=False)
    queues: Globs = field(repr=False)

    def may_watch_job(self, job_id: str, queue: str | None) -> bool:
        """Whether a request for this job is allowed.

        Args:
            queue: the queue that the request names. A right from `queues` holds for such requests only,
                as nothing else ensures that the job's events are of that queue.
        """
        return self.jobs.match(job_id) or (queue is not None and self.queues.match(queue))

    def may_watch_queue(self, queue: str) -> bool:
        """Whether all jobs of this queue may be watched: a right that only `queues` gives."""
        return self.queues.match(queue)


EVERYTHING: Final = Grants(
    principal=None, token_id=None, expires_at_ms=None, jobs=_globs(("*",)), queues=_globs(("*",))
)


def grants_of(
    claims: Mapping[str, object],
    *,
    jobs_claim: str = "jobs",
    queues_claim: str = "queues",
    expires_at_ms: int | None = None,
) -> Grants:
    """Read `sub`, `jti` and the two lists of globs; other claims are not looked at.

    Raises:
        ValueError: a claim is not what it should be. Says which and why, never its value.
    """
    return Grants(
        principal=_name(claims, "sub"),
        token_id=_name(claims, "jti"),
        expires_at_ms=expires_at_ms,
        jobs=_globs_of(claims, jobs_claim),
        queues=_globs_of(claims, queues_claim),
    )


def _name(claims: Mapping[str, object], claim: str) -> str | None:
    value = claims.get(claim)
    if claim not in claims:
        return None
    if not isinstance(value, str) or not is_name(value):
        raise ValueError(
            f'claim "{claim}": should be text of 1 to {MAX_NAME_CHARACTERS} characters,'
            " none of them a control character"
        )
    return value


def _globs_of(claims: Mapping[str, object], claim: str) -> Globs:
    match claims.get(claim, []):
        case [*globs] if all(isinstance(glob, str) for glob in globs):
            pass
        case str():
            raise ValueError(f'claim "{claim}": is text, should be a list of strings: ["…"]')
        case _:
            raise ValueError(f'claim "{claim}": should be a list of strings')
    try:
        return _globs(tuple(globs))
    except ValueError as error:
        raise ValueError(f'claim "{claim}": {error}') from None
