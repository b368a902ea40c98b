"""Storage: one set of cases, run on a local folder and on S3."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest

from pipeline import storage
from pipeline.errors import InputError
from pipeline.storage import folders

ODD_NAMES = ["a b.jpg", "ä ö.jpg", "100%.jpg", "x#y.jpg", "q?.jpg", "plus+.jpg", "日本.jpg"]


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "root")
    return str(request.getfixturevalue("s3").uri("root"))


def test_what_was_put_is_read_and_replaced_whole(root: str) -> None:
    uri = storage.join(root, "deep", "er", "file.bin")
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(uri)
    storage.write_bytes(uri, b"one")
    storage.write_bytes(uri, b"two")
    assert storage.read_bytes(uri) == b"two"
    assert folders.list_names(storage.join(root, "deep", "er")) == ["file.bin"]
    assert storage.info(uri).size_bytes == 3


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names_come_through(root: str, name: str) -> None:
    uri = storage.join(root, "odd", name)
    storage.write_bytes(uri, name.encode())
    (found,) = folders.walk_files(root)
    assert found.path == f"odd/{name}"
    assert storage.read_version(found.uri, found.version, timeout_s=10) == name.encode()


def test_walking_is_in_the_order_of_the_paths_bytes(root: str) -> None:
    names = ["b/c/d", "a-b", "a/x", "a0", "B", "a/é", "a/z/1", "ab"]
    for name in names:
        storage.write_bytes(storage.join(root, name), b"x")
    assert [found.path for found in folders.walk_files(root)] == sorted(names, key=str.encode)
    assert list(folders.walk_files(storage.join(root, "nowhere"))) == []


def test_put_if_absent_lets_exactly_one_of_many_through(root: str) -> None:
    uri = storage.join(root, "lease")
    storage.write_bytes(storage.join(root, "x"), b"")
    won: list[int] = []
    threads = [
        threading.Thread(target=lambda i=i: won.append(i) if storage.put_if_absent(uri, b"%d" % i) else None)
        for i in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert storage.read_bytes(uri) == b"%d" % won[0]


def test_a_replaced_file_is_not_taken_for_the_listed_one(root: str) -> None:
    uri = storage.join(root, "x.jpg")
    storage.write_bytes(uri, b"first")
    listed = storage.info(uri)
    assert storage.read_version(uri, listed.version, timeout_s=10) == b"first"
    storage.write_bytes(uri, b"other")
    with pytest.raises(storage.Replaced):
        storage.read_version(uri, listed.version, timeout_s=10)


def test_move_and_remove(root: str) -> None:
    source, target = storage.join(root, "a", "f"), storage.join(root, "b", "f")
    storage.write_bytes(source, b"new")
    storage.write_bytes(target, b"old")
    storage.move(source, target)
    assert storage.read_bytes(target) == b"new" and not storage.exists(source)
    storage.remove(source)  # no complaint
    folders.remove_tree(root)
    folders.remove_tree(root)
    assert folders.list_names(root) == [] and not folders.is_folder(root)


def test_a_listing_of_many_pages_is_complete(s3: object) -> None:
    import s3fs

    root = s3.uri("many")  # type: ignore[attr-defined]
    fs = s3fs.S3FileSystem()
    fs.pipe({f"{root}/{i:05d}.jpg": b"x" for i in range(1050)})
    assert [found.path for found in folders.walk_files(root)] == [f"{i:05d}.jpg" for i in range(1050)]


def test_a_store_without_pages_is_walked_folder_by_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    fs, root = storage.filesystem("memory://walked")
    names = ["a.jpg", "a/b.jpg", "a/b/c.jpg", "a-b/d.jpg", "a0/ü.jpg", "z.jpg"]
    for name in names:
        fs.pipe_file(f"{root}/{name}", name.encode())
    monkeypatch.setattr(type(fs), "find", None)  # which would hold everything
    found = list(folders.walk_files("memory://walked"))
    assert [file.path for file in found] == sorted(names, key=str.encode)
    assert all(storage.read_bytes(file.uri).decode() == file.path for file in found)
    assert list(folders.walk_files("memory://nowhere")) == []


def test_unknown_protocol_is_bad_input() -> None:
    with pytest.raises(InputError, match="nosuch://"):
        storage.exists("nosuch://x")


@pytest.mark.parametrize("error", [FileNotFoundError, OSError])
def test_a_folder_goes_though_others_write_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[OSError]
) -> None:
    """A file that is renamed or made in mid walk breaks the walk off: writers of a dead run may still be at it."""
    folder, plain, calls = tmp_path / "attempt", shutil.rmtree, []

    def broken_off(path: str) -> None:
        calls.append(path)
        if len(calls) < 3:
            raise error("in mid walk")
        plain(path)

    storage.write_bytes(str(folder / "late"), b"")
    monkeypatch.setattr(shutil, "rmtree", broken_off)
    folders.remove_tree(str(folder))
    assert not folder.exists()
