"""Which label belongs to a prediction, where only its path says so."""

from __future__ import annotations

import unicodedata
from pathlib import Path

from pipeline.catalog.manifest_writer import build_manifest
from pipeline.evaluate.label_index import build_index, find_labels_by_path


def test_paths_are_joined_by_look_where_their_bytes_differ(tmp_path: Path) -> None:
    """And by their bytes where label files of both forms are there: neither may be scored with the other's label."""
    nfc, nfd = (unicodedata.normalize(form, "straße/é.png") for form in ("NFC", "NFD"))
    both = [unicodedata.normalize(form, "ü.png") for form in ("NFC", "NFD")]
    for name in (nfd, *both, "plain.png"):
        (tmp_path / "c" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "c" / name).write_bytes(b"x")
    index = build_index(build_manifest(str(tmp_path / "c"), str(tmp_path / "m")))
    assert index.num_rows == 4
    asked = [nfc.replace(".png", ".jpg"), nfd.replace(".png", ".jpg"), *both, "plain.jpg", "ñ.jpg"]
    found = [uri and uri.removeprefix(f"{tmp_path}/c/") for uri in find_labels_by_path(index, asked)]
    assert found == [nfd, nfd, *both, "plain.png", None]
