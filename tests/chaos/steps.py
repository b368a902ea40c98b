"""Ends or halts a process exactly before one thing that it does to its output folder.

A step is one change of a file that another process can see: a rename, a link, a removal; on S3 one request that
writes. Its name is what is done to which kind of file (`replace predictions/ok`), and the same steps are met in the
same order in every run. Production code knows nothing of this: the functions that change files are wrapped in a
process that a test started (`drivers`). Only the driver's own thread counts; its lease beats when it beats.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Step = tuple[str, int]  # a name, and the how-manieth of that name, from 1

_S3_WRITES = {"put_object": "put", "copy_object": "copy", "delete_object": "delete", "delete_objects": "delete all"}


@dataclass(frozen=True)
class Halt:
    """Where a process gets `number` before it takes `step`; the names of all it reaches go to `log`, one a line."""

    output: str
    log: Path
    step: Step | None = None
    number: int = signal.SIGKILL
    once: Path | None = None  # of several processes, only the first that makes this file gets it

    def to_json(self) -> str:
        return json.dumps({**vars(self), "log": str(self.log), "once": self.once and str(self.once)})

    @classmethod
    def from_json(cls, text: str) -> Halt:
        values = json.loads(text)
        step, once = values["step"], values["once"]
        values |= {"log": Path(values["log"]), "step": step and tuple(step), "once": once and Path(once)}
        return cls(**values)

    def steps(self) -> list[Step]:
        """The steps that a process has reached, in order."""
        seen: Counter[str] = Counter()
        reached = []
        for name in self.log.read_text().splitlines() if self.log.exists() else []:
            seen[name] += 1
            reached.append((name, seen[name]))
        return reached

    def install(self) -> None:
        """Wrap what changes files in this process."""
        seen: Counter[str] = Counter()

        def reach(name: str) -> None:
            seen[name] += 1
            with open(self.log, "a") as log:
                log.write(f"{name}\n")
            if (name, seen[name]) == self.step and self._is_first():
                os.kill(os.getpid(), self.number)

        if self.output.startswith("s3://"):
            self._wrap_s3(reach)
        else:
            self._wrap_local(reach)

    def _is_first(self) -> bool:
        if self.once is None:
            return True
        try:
            os.close(os.open(self.once, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True

    def _wrap_local(self, reach: Callable[[str], None]) -> None:
        def wrap(name: str, last: int) -> None:
            plain = getattr(os, name)

            def wrapped(*args: Any, **kwargs: Any) -> Any:
                path = os.fspath(args[last])
                mine = threading.current_thread() is threading.main_thread()
                if mine and isinstance(path, str) and path.startswith(self.output + "/"):
                    reach(f"{name} {_kind(path[len(self.output) + 1 :])}")
                return plain(*args, **kwargs)

            setattr(os, name, wrapped)

        for name, last in (("replace", 1), ("link", 1), ("unlink", 0), ("remove", 0), ("rmdir", 0)):
            wrap(name, last)
        shutil.rmtree = _remove_tree  # the original goes by open folders and bare names

    def _wrap_s3(self, reach: Callable[[str], None]) -> None:
        import s3fs

        plain = s3fs.S3FileSystem._call_s3
        bucket, _, prefix = self.output.removeprefix("s3://").partition("/")

        async def wrapped(fs: Any, method: str, *args: Any, **kwargs: Any) -> Any:
            key = str(kwargs.get("Key") or kwargs.get("Delete", {"Objects": [{}]})["Objects"][0].get("Key", ""))
            beat = key.endswith("_lease.json") and method == "put_object" and "IfNoneMatch" not in kwargs
            if method in _S3_WRITES and kwargs.get("Bucket") == bucket and key.startswith(f"{prefix}/") and not beat:
                reach(f"{_S3_WRITES[method]} {_kind(key[len(prefix) + 1 :])}")
            return await plain(fs, method, *args, **kwargs)

        s3fs.S3FileSystem._call_s3 = wrapped


def _kind(path: str) -> str:
    """`predictions/ok-0001-0123456789ab.parquet` -> `predictions/ok`."""
    if path.endswith(".tmp"):
        return "temporary"
    path = re.sub(r"(-\d{4}-[0-9a-f]{12}|-\d{5})?\.parquet$", "", path)
    path = re.sub(r"_lease\.json\.[0-9a-f]+$", "claim of the lease", path)
    return re.sub(r"_attempts/\d{4}", "_attempts", path)


def _remove_tree(path: str, *args: Any, **kwargs: Any) -> None:
    for folder, _, files in os.walk(path, topdown=False):
        for file in sorted(files):
            os.unlink(os.path.join(folder, file))
        os.rmdir(folder)
