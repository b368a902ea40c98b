"""A process that has imported what drivers import, and forks them: `python -m chaos.nursery MODULE ...`.

Requests come on stdin and answers go to stdout, both pickled. When stdin closes, all that it started is killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import pickle
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from conftest import PROJECT, job_environment

_PR_SET_PDEATHSIG = 1


class Nursery:
    """The side of the tests. Starts with the first child."""

    def __init__(self, modules: str) -> None:
        self._modules = modules.split()
        self._server: subprocess.Popen[bytes] | None = None

    def fork(self, function: Callable[..., None], *args: Any) -> int:
        """The process id of a child that runs `function(*args)` and ends."""
        return int(self._ask(("fork", function, args)))

    def code(self, pid: int) -> int | None:
        """A child's exit code, negative where a signal ended it; None while it runs."""
        code: int | None = self._ask(("code", pid))
        return code

    def close(self) -> None:
        if self._server is not None:
            assert self._server.stdin
            self._server.stdin.close()
            self._server.wait(30)

    def _ask(self, request: tuple[Any, ...]) -> Any:
        if self._server is None:
            path = [str(PROJECT), str(PROJECT / "tests"), os.environ.get("PYTHONPATH", "")]
            self._server = subprocess.Popen(
                [sys.executable, "-m", "chaos.nursery", *self._modules],
                env={**job_environment(), "PYTHONPATH": os.pathsep.join(filter(None, path))},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                cwd="/",
            )
        assert self._server.stdin and self._server.stdout
        pickle.dump(request, self._server.stdin)
        self._server.stdin.flush()
        return pickle.load(self._server.stdout)


def serve(modules: list[str]) -> None:
    """The server's side."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever an import prints
    for name in modules:
        importlib.import_module(name)
    codes: dict[int, int | None] = {}
    try:
        while True:
            kind, *rest = pickle.load(sys.stdin.buffer)
            if kind == "fork":
                answer = _fork(*rest)
                codes[answer] = None
            else:
                (pid,) = rest
                if codes[pid] is None:
                    ended, status = os.waitpid(pid, os.WNOHANG)
                    codes[pid] = os.waitstatus_to_exitcode(status) if ended else None
                answer = codes[pid]
            pickle.dump(answer, answers)
            answers.flush()
    except EOFError:
        for pid, code in codes.items():
            if code is None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def _fork(function: Callable[..., None], args: tuple[Any, ...]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        function(*args)
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run_driver(
    job: Callable[[list[str]], None],
    argv: list[str],
    env: Mapping[str, str],
    folder: Path,
    halt: Any,
    patches: Mapping[str, Any],
) -> None:
    """What a child runs: the job, its output going to files; `patches` are values by `module:name`."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # also where it stands still
    os.setsid()
    os.environ.update(env)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(folder / name, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644), number)
    for where, value in patches.items():
        module, _, name = where.partition(":")
        setattr(importlib.import_module(module), name, value)
    if halt is not None:
        halt.install()
    job(argv)


if __name__ == "__main__":
    serve(sys.argv[1:])
