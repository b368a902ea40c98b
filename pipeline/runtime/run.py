"""A job's output folder: whose it is, what run it holds, and how it is left.

`_run.json` holds two fingerprints: *result* (everything that can change what comes out) and *manifest* (the content
that went in). The same command on the same folder resumes or says "complete"; another run is refused. `_lease.json`
names the one live driver. Bad input leaves the folder as it was.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import json
import os
from collections.abc import Iterator
from typing import Any

import yaml

from pipeline import storage
from pipeline.errors import InputError
from pipeline.runtime.cluster import refuse_relative_under_submit
from pipeline.runtime.lease import LEASE, Lease
from pipeline.storage import folders

RUN, SUCCESS, CONFIG, LOGS = "_run.json", "_SUCCESS", "_config.yaml", "_logs"
REPLACED = "_replaced"  # what --overwrite replaces, until it is certain that the input is good


class Run:
    """One run of one job in its output folder. Made by `open_run`; one that is only inspected (`inspect_run`) has no
    lease and writes nothing."""

    def __init__(
        self, output: str, job: str, record: dict[str, Any], lease: Lease | None, fresh: bool, config: Any = None
    ) -> None:
        self.output = output
        self.job = job
        self.fresh = fresh  # nothing of this run was here before
        self._lease = lease
        self._record = record
        self._config = config

    @property
    def lease(self) -> Lease:
        assert self._lease is not None, "a run that is only inspected has no lease"
        return self._lease

    @property
    def record(self) -> dict[str, Any]:
        """What `_run.json` holds: job, the fingerprints and their parts, and what `remember` added."""
        return self._record

    def at(self, *parts: str) -> str:
        """The URI of something in the output folder."""
        return storage.join(self.output, *parts)

    def remember(self, **values: Any) -> None:
        """Keep values in `_run.json` that a resumed run must use again (the padded batch size, threads, ...)."""
        if any(self._record.get(name) != value for name, value in values.items()):
            self._record.update(values)
            if self._lease is not None:
                storage.write_json(self.at(RUN), self._record)

    def set_manifest(
        self, parts: dict[str, Any], *, reopen: bool = False, replace: bool = False, **beside: Any
    ) -> None:
        """Fix what went in, with values `beside` it in the same put; `reopen` where a complete run gets more to do.
        Raises InputError where the folder's run was made from other content, unless it is to `replace` that."""
        before = self._record.get("manifest")
        if before is not None and not replace:
            _refuse_other(self.output, "manifest", before, parts)
        if reopen:
            self.reopen()
        self.remember(manifest=parts, manifest_fingerprint=fingerprint(parts), **beside)

    def success(self, summary: dict[str, Any]) -> None:
        """Mark the run complete; the very last write."""
        self.lease.check()
        storage.write_json(self.at(SUCCESS), {"job": self.job, "finished": _now(), **summary})

    def reopen(self) -> None:
        """Remove `_SUCCESS`, before anything else is changed."""
        if self._lease is None:
            return
        self.lease.check()
        storage.remove(self.at(SUCCESS))
        storage.write_bytes(self.at(CONFIG), _yaml(self._config))

    @property
    def summary(self) -> dict[str, Any] | None:
        """The summary of a complete run, None for an unfinished one."""
        try:
            summary: dict[str, Any] = storage.read_json(self.at(SUCCESS))
        except FileNotFoundError:
            return None
        return summary


@contextlib.contextmanager
def open_run(
    output: str,
    job: str,
    result: dict[str, Any],
    config: Any,
    *,
    overwrite: bool = False,
    single_writer: bool = False,
) -> Iterator[Run]:
    """Open an output folder for a job: refuse another run's, take the lease, keep it until the block ends.

    `result` holds everything that can change what comes out, by name (JSON values); `config` is the job's dataclass,
    saved as `_config.yaml`. Raises InputError, with the folder left as it was, where it holds another run or is
    leased to a live driver. On InputError from within, a fresh folder is emptied again.
    """
    looked = inspect_run(output, job, result, overwrite=overwrite)
    output, record, fresh = looked.output, looked.record, looked.fresh
    made = _folders_to_make(output)
    try:
        lease = Lease.acquire(output, single_writer=single_writer)
    except InputError:
        _remove_empty(made)
        raise
    try:
        _recover_replaced(output)
        if overwrite:
            _replace(output)
        if fresh:
            storage.write_json(storage.join(output, RUN), record)
        if fresh or not storage.exists(storage.join(output, SUCCESS)):
            storage.write_bytes(storage.join(output, CONFIG), _yaml(config))
        yield Run(output, job, record, lease, fresh, config)
    except InputError:
        if fresh:
            _clear(output, keep=(LEASE, REPLACED))
            _restore(output)
        lease.release()
        _remove_empty(made)
        raise
    finally:
        if overwrite:
            folders.remove_tree(storage.join(output, REPLACED))
        lease.release()


def inspect_run(output: str, job: str, result: dict[str, Any], *, overwrite: bool = False) -> Run:
    """The run as `open_run` would find or begin it, without a lease; nothing is written. Raises InputError like it."""
    refuse_relative_under_submit([output])
    output = storage.absolute(output)
    result = json.loads(json.dumps(result))
    record = _existing(output, job)
    if record is not None and not overwrite:
        _refuse_other(output, "result", record["result"], result)
        return Run(output, job, record, None, fresh=False)
    record = {"job": job, "result": result, "result_fingerprint": fingerprint(result), "started": _now()}
    return Run(output, job, record, None, fresh=True)


def fingerprint(parts: dict[str, Any]) -> str:
    """32 hex digits of a hash of JSON values, independent of key order."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _existing(output: str, job: str) -> dict[str, Any] | None:
    """The record of the run in the folder; None for a folder that is free. Raises InputError for one that is not."""
    names = folders.list_names(output)
    # without a record, what an --overwrite had put aside when it died is what the folder holds
    uri = storage.join(output, REPLACED, RUN) if RUN not in names and REPLACED in names else storage.join(output, RUN)
    try:
        record: dict[str, Any] = storage.read_json(uri)
    except (FileNotFoundError, NotADirectoryError):
        others = [name for name in names if name != LOGS and not name.startswith((LEASE, "."))]
        if storage.is_local(output) and storage.exists(output) and not folders.is_folder(output):
            raise InputError("output is a file", where=output, expected="a folder") from None
        if others:
            raise InputError(
                "output folder holds something else",
                where=output,
                found=", ".join(others[:3]),
                expected="an empty or new folder, or one of this job's runs",
            ) from None
        return None
    except ValueError as error:
        raise InputError("output folder holds a damaged run", where=uri, found=error) from None
    if record.get("job") != job:
        raise InputError(
            "output folder holds another run",
            where=output,
            found=f"a run of {record.get('job')!r}",
            expected=f"one of {job!r}",
            todo="give another --output",
        )
    return record


def _refuse_other(output: str, kind: str, before: dict[str, Any], now: dict[str, Any]) -> None:
    differing = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if differing:
        name = differing[0]
        more = f" (and {', '.join(differing[1:4])})" if len(differing) > 1 else ""
        raise InputError(
            f"output folder holds another run: {kind} differs in {name}{more}",
            where=output,
            found=_short(before.get(name)),
            expected=_short(now.get(name)),
            todo="give another --output, the same options as before, or --overwrite",
        )


def _replace(output: str) -> None:
    """Put the run aside, its record first: while that is away, the old run is what the folder holds."""
    names = [name for name in folders.list_names(output) if not name.startswith((LEASE, REPLACED))]
    for name in sorted(names, key=lambda name: name != RUN):
        folders.move_tree(storage.join(output, name), storage.join(output, REPLACED, name))


def _restore(output: str) -> None:
    """Bring back what was put aside, its record last."""
    replaced = storage.join(output, REPLACED)
    for name in sorted(folders.list_names(replaced), key=lambda name: name == RUN):
        folders.move_tree(storage.join(replaced, name), storage.join(output, name))
    folders.remove_tree(replaced)


def _recover_replaced(output: str) -> None:
    """End an --overwrite that died: its own run had begun and stays, or else the old one comes back."""
    names = folders.list_names(output)
    if REPLACED in names:
        folders.remove_tree(storage.join(output, REPLACED)) if RUN in names else _restore(output)


def _clear(output: str, keep: tuple[str, ...]) -> None:
    for name in folders.list_names(output):
        if name in keep:
            continue
        uri = storage.join(output, name)
        folders.remove_tree(uri) if folders.is_folder(uri) else storage.remove(uri)


def _folders_to_make(output: str) -> list[str]:
    """The local folders that do not exist yet, deepest first: bad input takes them away again."""
    made: list[str] = []
    folder = storage.local_path(output) if storage.is_local(output) else ""
    while folder and not os.path.exists(folder):
        made.append(folder)
        folder = os.path.dirname(folder)
    return made


def _remove_empty(folders: list[str]) -> None:
    with contextlib.suppress(OSError):
        for folder in folders:
            os.rmdir(folder)


def _yaml(config: Any) -> bytes:
    values = dataclasses.asdict(config) if dataclasses.is_dataclass(config) else dict(config)  # type: ignore[arg-type]
    plain = json.loads(json.dumps(values, default=str))
    text: str = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
    return text.encode()


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 80 else text[:77] + "..."


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
