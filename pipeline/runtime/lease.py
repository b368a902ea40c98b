"""The lease on an output folder: at most one live driver commits to it.

`_lease.json` names its owner and is renewed every 10 s. Another driver takes it over at once where the owner is
certainly dead (same host, its process gone). Where that cannot be seen it waits 30 s: a renewal in that time means that
the owner lives. An owner that finds its lease taken stops without committing.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import psutil

from pipeline import storage
from pipeline.errors import InputError, PipelineError
from pipeline.storage import folders

LEASE = "_lease.json"
BEAT_S = 10.0
WAIT_S = 30.0

_log = logging.getLogger(__name__)


class LeaseLost(PipelineError):
    """Another driver has taken the output folder; nothing more was committed."""


class Lease:
    """Held from `acquire` to `release`, renewed by a thread."""

    def __init__(self, output: str) -> None:
        self.uri = storage.join(output, LEASE)
        self._owner = _myself()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    @classmethod
    def acquire(cls, output: str, *, single_writer: bool = False) -> Lease:
        """Take the lease. Raises InputError where a live driver holds it, or where the store cannot put-if-absent
        (`single_writer` promises that nobody else writes)."""
        lease = cls(output)
        try:
            # where the answer to a put is lost and the client asks again, what it finds is its own
            while not storage.put_if_absent(lease.uri, lease._text(0)) and not lease._is_mine():
                lease._take_over()
        except NotImplementedError as error:
            if not single_writer:
                raise InputError(
                    "this store cannot keep two drivers apart",
                    where=output,
                    found=error,
                    todo="give --single-writer if no other run writes there",
                ) from None
            storage.write_bytes(lease.uri, lease._text(0))
        except (PermissionError, FileExistsError, NotADirectoryError) as error:
            raise InputError("cannot write to the output folder", where=output, found=error) from None
        lease._thread.start()
        for name in folders.list_names(output):
            if name.startswith(LEASE + "."):  # the claim of a newcomer that died
                storage.remove(storage.join(output, name))
        return lease

    def check(self) -> None:
        """Raises LeaseLost where the lease is another's. To be called before each commit."""
        if not self._is_mine():
            self._stop.set()
            raise LeaseLost(f"another driver has taken over {self.uri}; stopped without committing")

    def release(self) -> None:
        """Give the lease back, if it still is ours."""
        released = self._stop.is_set()
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        try:
            if not released and self._is_mine():
                storage.remove(self.uri)
        except OSError as error:  # a newcomer finds it dead; what ended the run is the error to tell
            _log.warning("could not give the lease back: %s", error)

    def _renew(self) -> None:
        beat = 0
        while not self._stop.wait(BEAT_S):
            beat += 1
            try:
                if not self._is_mine():
                    return
                storage.write_bytes(self.uri, self._text(beat))
            except Exception as error:  # an outage of the store: the next beat tries again
                _log.warning("could not renew the lease: %s", error)

    def _take_over(self) -> None:
        """Remove a dead owner's lease. Raises InputError where the owner lives."""
        found = _read(self.uri)
        if found is None:
            return
        if _lives_here(found) is None:
            print(
                f"the output folder is leased to process {found.get('pid')} on {found.get('host')};"
                f" waiting up to {WAIT_S:.0f} s to see whether it lives",
                file=sys.stderr,
                flush=True,
            )
            deadline_s = time.monotonic() + WAIT_S
            while time.monotonic() < deadline_s:
                time.sleep(1.0)
                now = _read(self.uri)
                if now is None:
                    return
                if now != found:
                    _refuse(self.uri, now)
        elif _lives_here(found):
            _refuse(self.uri, found)
        # of several newcomers the first to claim this very lease removes it; a claim older than the wait is void
        claim = f"{self.uri}.{found.get('token', 'none')}"
        if not storage.put_if_absent(claim, self._text(0)):
            time.sleep(2.0)
            if _read(self.uri) != found:
                return
        if _read(self.uri) == found:
            storage.remove(self.uri)
        storage.remove(claim)

    def _is_mine(self) -> bool:
        found = _read(self.uri)
        return found is not None and found.get("token") == self._owner["token"]

    def _text(self, beat: int) -> bytes:
        return json.dumps({**self._owner, "beat": beat}).encode()


def _read(uri: str) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = storage.read_json(uri)
    except FileNotFoundError:
        return None
    except ValueError:
        return {"token": "damaged"}
    return found


def _refuse(uri: str, found: dict[str, Any]) -> None:
    raise InputError(
        "output folder is leased to a live run",
        where=uri.removesuffix("/" + LEASE),
        found=f"process {found.get('pid')} on {found.get('host')}",
        todo="wait for it, stop it, or give another --output",
    )


def _myself() -> dict[str, Any]:
    return {
        "token": uuid.uuid4().hex,
        "host": _host(),
        "pid": os.getpid(),
        "pid_started": psutil.Process().create_time(),
        "job_id": os.environ.get("RAY_JOB_ID") or os.environ.get("RAY_JOB_SUBMISSION_ID"),
    }


def _lives_here(owner: dict[str, Any]) -> bool | None:
    """Whether the owner's process lives; None where that cannot be seen from this host."""
    if owner.get("host") != _host():
        return None
    try:
        process = psutil.Process(int(owner["pid"]))
        return abs(process.create_time() - float(owner["pid_started"])) < 1.0 and (
            process.status() != psutil.STATUS_ZOMBIE
        )
    except psutil.NoSuchProcess:
        return False
    except (KeyError, TypeError, ValueError, psutil.Error):
        return None


def _host() -> str:
    """Host name and process namespace: two containers of one name do not see each other's processes."""
    try:
        namespace = os.readlink("/proc/self/ns/pid")
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        namespace = boot = ""
    return f"{socket.gethostname()}/{boot[:8]}{namespace}"
