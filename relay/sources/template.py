"""Channel templates such as `jobs:{queueName}:{jobId}`: the glob to subscribe with, and back.

A placeholder matches up to the next literal, the last one takes the rest, so a job id may hold `:`.
Redis: PSUBSCRIBE (glob-style patterns).
"""

import re
from typing import Final

PLACEHOLDERS: Final = ("queueName", "jobId", "event")
_TOKEN: Final = re.compile(r"\{([^{}]*)\}")
_GLOB: Final = re.compile(r"([*?\[\]\\])")


class ChannelTemplate:
    """A parsed template. Compare `text`; build with `parse`."""

    __slots__ = ("_names", "_shape", "pattern", "text")

    def __init__(self, text: str, literals: list[str], names: list[str]) -> None:
        self.text = text
        self._names = names
        # Every placeholder but the last ends where its literal first stands, and nowhere else.
        first, *others = [re.escape(literal.encode()) for literal in literals]
        shape = first + b"".join(b"(?>(.*?)%b)" % literal for literal in others[:-1])
        self._shape = re.compile(
            shape + b"".join(b"(.*)%b" % tail for tail in others[-1:]), re.DOTALL
        )
        self.pattern = "*".join(_GLOB.sub(r"\\\1", literal) for literal in literals)

    @classmethod
    def parse(cls, text: str) -> "ChannelTemplate":
        """Take a template apart.

        Raises:
            ValueError: an unknown or repeated placeholder, two of them side by side, a stray brace.
        """
        parts = _TOKEN.split(text)
        literals, names = parts[::2], parts[1::2]
        for name in names:
            if name not in PLACEHOLDERS:
                known = ", ".join(f"{{{known}}}" for known in PLACEHOLDERS)
                raise ValueError(f"unknown placeholder {{{name}}}; there are {known}")
            if names.count(name) > 1:
                raise ValueError(f"placeholder {{{name}}} stands in it twice")
        if any("{" in literal or "}" in literal for literal in literals):
            raise ValueError("a brace without its partner; placeholders look like {jobId}")
        if "" in literals[1:-1]:
            raise ValueError("two placeholders need a literal between them, such as ':'")
        if not text:
            raise ValueError("is empty; a channel name looks like jobs:{queueName}:{jobId}")
        return cls(text, literals, names)

    def names(self, placeholder: str) -> bool:
        """Whether the channel tells this one."""
        return placeholder in self._names

    def match(self, channel: bytes) -> dict[str, bytes] | None:
        """What stands in the placeholders' places, or None where `channel` is of another shape."""
        found = self._shape.fullmatch(channel)
        if found is None:
            return None
        return dict(zip(self._names, found.groups(), strict=True))

    def format(self, *, job_id: str, queue: str | None, event: str) -> str:
        """The channel to publish on.

        Raises:
            ValueError: the template has {queueName} and `queue` is None.
        """
        if queue is None and self.names("queueName"):
            raise ValueError(
                f"the channel {self.text} has {{queueName}} in it: say which queue the job is in"
            )
        values = {"jobId": job_id, "queueName": queue or "", "event": event}
        return _TOKEN.sub(lambda token: values[token[1]], self.text)
