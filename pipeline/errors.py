"""What can end a run, and the exit code each of them ends it with.

0 done, 1 failed, 2 bad input, 3 a quality gate failed, 4 stopped on request and resumable.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PipelineError(Exception):
    """A run that could not be finished; what was committed stays, and the same command resumes it."""

    exit_code = 1


class InputError(PipelineError):
    """Bad input: one line that says what, where, found, expected and what to do. Nothing was written.

    Only `what` is required; the other parts are appended where they are known.
    """

    exit_code = 2

    def __init__(
        self,
        what: str,
        *,
        where: object = None,
        found: object = None,
        expected: object = None,
        todo: str | None = None,
    ) -> None:
        parts = [what.rstrip(".")]
        if where is not None:
            parts[0] += f": {where}"
        if found is not None:
            parts.append(f"found {found}")
        if expected is not None:
            parts.append(f"expected {expected}")
        if todo is not None:
            parts.append(todo)
        super().__init__(" ".join("; ".join(parts).split()))

    @classmethod
    def parse(cls, text: str) -> InputError:
        """The error whose text another process has sent."""
        return _restore(cls, text)

    def __reduce__(self) -> tuple[object, ...]:  # survives Ray's pickling without its keyword arguments
        return (_restore, (type(self), str(self)))


class GateError(PipelineError):
    """A result that is worse than its gate allows."""

    exit_code = 3


class Stopped(PipelineError):
    """Stopped on request; the same command resumes."""

    exit_code = 4


def nearest(name: str, names: Iterable[str]) -> str:
    """`"did you mean 'x'? "` for the closest of `names`, or an empty string."""
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}? " if close else ""


def _restore(kind: type[InputError], text: str) -> InputError:
    error = kind.__new__(kind)
    Exception.__init__(error, text)
    return error
