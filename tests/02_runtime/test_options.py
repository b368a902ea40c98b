"""The command line of the jobs: what is read, what is refused, and what `--help` says on a fresh install."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import PROJECT

from pipeline.errors import InputError
from pipeline.evaluate.config import EvaluateConfig
from pipeline.runtime.options import parse, parse_values
from pipeline.segment.config import SegmentConfig
from pipeline.training.config import TrainConfig

JOBS = ["manifest", "train", "sweep", "segment", "evaluate", "import_model", "demo"]
NEEDED = ["--source", "S", "--checkpoint", "C", "--output", "O"]


def segment_options(*argv: str) -> SegmentConfig:
    return parse(SegmentConfig, [*NEEDED, *argv])


def test_words_become_values_of_their_type() -> None:
    config = segment_options("--limit", "7", "--sample=0.5", "--rows_per_file", "9", "--scales", "1,1.5")
    assert (config.limit, config.sample, config.rows_per_file, config.view_scales) == (7, 0.5, 9, [1.0, 1.5])
    assert segment_options("--limit", "none").limit is None
    assert parse(TrainConfig, ["--source", "S", "--output", "O", "--model-options", "{width: 0.5}"]).model_options == {
        "width": 0.5
    }


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], False),
        (["--overwrite"], True),
        (["--overwrite", "true"], True),
        (["--overwrite=yes"], True),
        (["--overwrite", "false"], False),
        (["--overwrite", "--flip"], True),
        (["--overwrite", "--no-overwrite"], False),
    ],
)
def test_booleans_may_be_bare(words: list[str], expected: bool) -> None:
    assert segment_options(*words).overwrite is expected


def test_a_boolean_that_is_on_can_be_turned_off() -> None:
    training = ["--source", "S", "--output", "O"]
    assert parse(TrainConfig, training).flip
    assert not parse(TrainConfig, [*training, "--no-flip"]).flip
    assert not parse(TrainConfig, [*training, "--flip", "false"]).flip


def test_flags_stand_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "night.yaml"
    file.write_text("source: A\ncheckpoint: C\nlimit: 5\nscales: [0.75, 1]\nmask-format: png\nsplit: null\n")
    config = parse(SegmentConfig, ["--config", str(file), "--output", "O", "--limit", "6"])
    assert (config.source, config.limit, config.mask_format, config.view_scales) == ("A", 6, "png", [0.75, 1.0])
    assert parse_values(SegmentConfig, yaml.safe_load(file.read_text()) | {"output": "O"}).limit == 5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--ouput", "x"], "there is no option --ouput; did you mean '--output'"),
        (["x"], "unexpected argument 'x'"),
        (["--limit"], "--limit needs a value"),
        (["--limit", "--overwrite"], "--limit needs a value"),
        (["--limit", "many"], "--limit has a wrong value; found many; expected int"),
        (["--limit", "1.5"], "--limit has a wrong value"),
        (["--overwrite=perhaps"], "--overwrite has a wrong value; found perhaps; expected bool"),
        (["--mask-format", "pgn"], "--mask-format: no 'pgn'; expected raw, png, rle, none; did you mean 'png'"),
        (["--max-failure-rate", "2"], "--max-failure-rate is out of range; found 2.0; expected 0 to 1"),
        (["--rows-per-file", "0"], "--rows-per-file is out of range; found 0; expected 1 or more"),
        (["--config", "/nowhere/night.yaml"], "configuration file does not exist: /nowhere/night.yaml"),
    ],
)
def test_bad_words_are_one_line(words: list[str], message: str) -> None:
    with pytest.raises(InputError, match=f"^{re.escape(message)}") as error:
        segment_options(*words)
    assert "\n" not in str(error.value)


def test_what_must_be_given_is_named() -> None:
    with pytest.raises(InputError, match="^--checkpoint is missing"):
        parse(SegmentConfig, ["--source", "S", "--output", "O"])
    with pytest.raises(InputError, match="^--predictions is missing"):
        parse(EvaluateConfig, [])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("souce: x", "there is no option 'souce': .*night.yaml; did you mean 'source'"),
        ("- a\n- b", "configuration file is not a mapping: .*found list"),
        ("a: [", "configuration file is not YAML"),
        ("limit: many", "--limit has a wrong value; found many"),
        ("model-options: 3", "there is no option 'model_options'"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "night.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        segment_options("--config", str(tmp_path / "night.yaml"))


def test_print_config_is_what_config_reads(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        segment_options("--limit", "3", "--print-config")
    assert ended.value.code == 0
    file = tmp_path / "printed.yaml"
    file.write_text(capsys.readouterr().out)
    assert parse(SegmentConfig, ["--config", str(file)]) == segment_options("--limit", "3")


# Lets through only what the project's declaration brings: its dependencies and theirs, with the extras asked for.
FRESH = """
import importlib.metadata as metadata, re, runpy, sys, tomllib
from packaging.requirements import Requirement

project = tomllib.load(open({pyproject!r}, "rb"))["project"]
waiting, allowed = [Requirement(text) for text in project["dependencies"]], set()
while waiting:
    one = waiting.pop()
    key = (re.sub("[-_.]+", "-", one.name).lower(), tuple(sorted(one.extras)))
    if key in allowed:
        continue
    allowed.add(key)
    try:
        needs = metadata.requires(one.name) or []
    except metadata.PackageNotFoundError:
        continue
    for text in needs:
        needed = Requirement(text)
        if needed.marker is None or any(needed.marker.evaluate({{"extra": extra}}) for extra in ("", *one.extras)):
            waiting.append(needed)
names = {{project["name"], *(name for name, _ in allowed)}}
owners = metadata.packages_distributions()

class OnlyDeclared:
    def find_spec(self, name, path=None, target=None):
        found = owners.get(name.partition(".")[0])
        if found and not any(re.sub("[-_.]+", "-", owner).lower() in names for owner in found):
            raise ModuleNotFoundError(f"{{name}} is not declared", name=name)

for module in [m for m in sys.modules if m.partition(".")[0] in owners]:
    del sys.modules[module]
sys.meta_path.insert(0, OnlyDeclared())
sys.argv = [{job!r}, "--help"]
runpy.run_path({job!r}, run_name="__main__")
"""


@pytest.mark.parametrize("name", JOBS)
def test_help_describes_every_option_on_a_fresh_install(name: str) -> None:
    """With nothing to import but the declared dependencies; in groups, with defaults, and neither torch nor Ray."""
    job = str(PROJECT / "jobs" / f"{name}.py")
    code = FRESH.format(pyproject=str(PROJECT / "pyproject.toml"), job=job)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env={"COLUMNS": "100"}
    )
    assert done.returncode == 0, done.stderr
    groups = re.findall(r"^([a-z ]+):$", done.stdout, re.MULTILINE)
    assert len(groups) >= 3 and "output" in groups, groups
    entries = re.split(r"\n  (?=-)", done.stdout)[1:]
    assert len(entries) > 5
    for entry in entries:
        name_and_value, _, description = entry.partition("  ")
        text = description.strip() or " ".join(entry.split("\n")[1:]).strip()
        assert len(text.split()) >= 2, f"{name_and_value} has no description"
    assert not re.search(r"[^ ]{101,}", done.stdout)
    assert max(map(len, done.stdout.splitlines())) <= 100


def test_help_loads_neither_torch_nor_ray() -> None:
    for name in JOBS:
        code = (
            "import runpy, sys\nsys.argv = ['x', '--help']\n"
            f"try: runpy.run_path({str(PROJECT / 'jobs' / f'{name}.py')!r}, run_name='__main__')\n"
            "except SystemExit: pass\nassert not {'torch', 'ray'} & set(sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{name}: {done.stderr}"
