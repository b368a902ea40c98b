"""Bad input of the segment job: one line that names it, and nothing left behind."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Finished

from pipeline.errors import InputError
from pipeline.runtime.options import parse
from pipeline.segment.config import SegmentConfig
from pipeline.segment.job import segment

pytest_plugins = ("segment_runs",)  # its fixtures


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"--source": "nowhere"}, "source does not exist"),
        ({"--source": "empty"}, "no picture found"),
        ({"--checkpoint": "nowhere"}, "checkpoint"),
        ({"--checkpoint": "damaged"}, "damaged"),
        ({"--split": "vall"}, "no picture is of split 'vall'"),
        ({"--max-failure-rate": "2"}, "out of range"),
        ({"--price-per-hour": "-1"}, "out of range"),
        ({"--mask-format": "rel"}, "--mask-format: no 'rel'; expected raw, png, rle, none; did you mean 'rle'"),
        ({"--scales": "1,9"}, "--scales is out of range; found 1,9"),
        ({"--threads": "0"}, "--threads is out of range"),
        ({"--limit": "0"}, "--limit is out of range"),
        ({"--sample": "10"}, "--sample is out of range"),
        ({"--sample": "1e-12"}, "the sample holds no picture"),
        ({"--config": "nowhere.yaml"}, "configuration file does not exist"),
        ({"--config": "typo.yaml"}, "did you mean 'rows_per_file'"),
        ({"--rows-per-fil": "3"}, "did you mean '--rows-per-file'"),
    ],
)
def test_bad_input(
    change: dict[str, str], says: str, ray_session: None, checkpoint: str, pictures: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=re.escape(says)) as caught:
        segment(parse(SegmentConfig, bad_arguments(change, checkpoint, pictures, tmp_path)))
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_bad_input_of_the_command(
    checkpoint: str, pictures: Path, tmp_path: Path, run_job: Callable[..., Finished]
) -> None:
    done = run_job("segment", *bad_arguments({"--source": "nowhere"}, checkpoint, pictures, tmp_path))
    assert done.code == 2 and done.error.startswith("error: source does not exist"), done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "out").exists()


def bad_arguments(change: dict[str, str], checkpoint: str, pictures: Path, folder: Path) -> list[str]:
    (folder / "empty").mkdir()
    (folder / "typo.yaml").write_text("rows_per_fil: 3\n")
    shutil.copytree(checkpoint, folder / "damaged")
    (weights,) = (folder / "damaged").glob("weights-*")
    weights.write_bytes(weights.read_bytes()[:-9] + b"x" * 9)
    arguments = {"--source": str(pictures), "--checkpoint": checkpoint, "--output": str(folder / "out")}
    paths = ("--source", "--checkpoint", "--config")
    arguments |= {name: str(folder / value) if name in paths else value for name, value in change.items()}
    return [word for pair in arguments.items() for word in pair]
