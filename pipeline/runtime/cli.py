"""From a command line to one call, and what is printed when it ends. The exit codes are those of `errors`."""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

from pipeline import storage
from pipeline.errors import PipelineError, Stopped
from pipeline.runtime.options import parse

Config = TypeVar("Config")
_CONSEQUENCE = "The above exception was the direct cause of"  # in a traceback, after the cause


def main(
    job: Callable[[Config], str | None], config_class: type[Config], argv: Sequence[str] | None = None
) -> NoReturn:
    """Parse, run, print where the result lies (the text that `job` returns), exit with the right code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    config: Any = None
    code = 0
    try:
        config = parse(config_class, arguments)
        text = job(config)
        if text:
            print(text, flush=True)
    except KeyboardInterrupt:
        code = _say(Stopped("stopped on request; resume with the same command"))
    except Exception as raised:
        error = unwrap(raised)
        code = _say(error)
        if code == 1:
            _log_traceback(getattr(config, "output", None), raised)
    with contextlib.suppress(Exception):
        if "ray" in sys.modules:
            sys.modules["ray"].shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    if code:
        os._exit(code)  # a failed run does not wait for threads that hang
    sys.exit(0)


def unwrap(error: BaseException) -> BaseException:
    """The PipelineError inside an error that Ray has wrapped; without one, the error itself."""
    seen: set[int] = set()
    queue: list[BaseException | None] = [error]
    while queue:
        inner = queue.pop(0)
        if inner is None or id(inner) in seen:
            continue
        seen.add(id(inner))
        if isinstance(inner, PipelineError):
            return inner
        failures = getattr(inner, "worker_failures", None) or {}  # Ray Train's errors by rank
        causes = [getattr(inner, "cause", None), inner.__cause__, inner.__context__, *failures.values()]
        queue += [cause for cause in causes if isinstance(cause, BaseException)]
    return error


def _say(error: BaseException) -> int:
    code = error.exit_code if isinstance(error, PipelineError) else 1
    text = str(error) if isinstance(error, PipelineError) else f"{type(error).__name__}: {error}"
    lines = [line for line in text.strip().splitlines() if line.strip()]
    line = lines[0] if isinstance(error, PipelineError) else _first_and_last(lines)
    print(f"error: {_one_line(line)}", file=sys.stderr, flush=True)
    return code


def _first_and_last(lines: list[str]) -> str:
    # Ray's errors begin with where and end with what; Ray Data goes on with how to have it tried again
    what = next((lines[n - 1] for n, line in enumerate(lines) if n > 1 and line.startswith(_CONSEQUENCE)), lines[-1])
    return lines[0] if len(lines) < 2 else f"{lines[0]} ... {what}"


def _one_line(text: str) -> str:
    line = " ".join(re.sub(r"\x1b\[\d+m", "", text).split())  # Ray colours names of tasks
    return line if len(line) <= 600 else line[:597] + "..."


def _log_traceback(output: str | None, error: BaseException) -> None:
    if not output:
        return
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%S")
    text = "".join(traceback.format_exception(error))
    with contextlib.suppress(Exception):
        storage.write_bytes(storage.join(output, "_logs", f"error-{stamp}.txt"), text.encode())
