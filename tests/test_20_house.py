"""The house itself: rooms import downward only, no drawers, and the commands of the README exist."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent

# The rooms in the order data flows through them; a room imports only rooms to its left. This is the one list.
ROOMS = (
    "errors process labels storage folders options schema decode cluster lease run progress timings board "
    "collection collection_table inventory manifest manifest_writer portion manifest_job regions "
    "transforms samples label_scan models losses schedules metrics "
    "model_spec checkpoint tiling resizing winners answers engines predictor rle masks import_config import_model "
    "result_rows prediction_table sink increment readers statistics optimizer average event_files train_config "
    "selection validation train_loop train study trials comparison sweep segment_config predict_options "
    "layout pixel_stage suspects segmenter stream ray_stream local_stream streams forecast segment "
    "predictions truth tally scoring charts report findings evaluate scenes cli"
).split()


def room_of(path: Path) -> str:
    return path.relative_to(PROJECT / "pipeline").parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    """Rooms that a file imports, at module level or inside functions, save under `if TYPE_CHECKING:`."""
    found: set[str] = set()
    waiting: list[ast.AST] = [ast.parse(path.read_text(), str(path))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("pipeline.")}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module == "pipeline":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").startswith("pipeline."):
            found.add(str(node.module).split(".")[1])
        waiting.extend(ast.iter_child_nodes(node))
    return found - {"__version__"}


FILES = [p for p in sorted((PROJECT / "pipeline").rglob("*.py")) if p != PROJECT / "pipeline" / "__init__.py"]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PROJECT / "pipeline")))
def test_a_room_imports_only_rooms_above_it(path: Path) -> None:
    room = room_of(path)
    assert room in ROOMS, f"{room} has no place in the order of the rooms"
    upward = {name for name in imported_rooms(path) if ROOMS.index(name) > ROOMS.index(room)}
    assert not upward, f"{room} imports {sorted(upward)}, which stand after it"


def test_no_drawers() -> None:
    """A file is named for its one noun."""
    drawers = {"utils", "util", "helpers", "common", "misc", "manager"}
    assert not [p for p in [*FILES, *(PROJECT / "jobs").glob("*.py")] if p.stem in drawers]


def test_importing_the_package_is_light() -> None:
    code = "import sys, pipeline; sys.exit(any(heavy in sys.modules for heavy in ('torch', 'ray', 'pyarrow')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=PROJECT).returncode == 0


def test_readme_names_only_what_exists() -> None:
    readme = (PROJECT / "README.md").read_text()
    makefile = (PROJECT / "Makefile").read_text()
    for target in set(re.findall(r"^make ([\w-]+)", readme, re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"make {target}"
    for name in set(re.findall(r"(?<![\w/])((?:jobs|configs|docs|pipeline|tests)/[\w/.-]*\w)", readme)):
        assert (PROJECT / name).exists(), name
    for image in re.findall(r"!\[[^]]*\]\(([^)]+)\)", readme):
        assert (PROJECT / image).is_file(), image


@pytest.mark.parametrize("job", ["manifest", "train", "segment", "evaluate", "import_model"])
def test_readme_flags_exist(job: str) -> None:
    """Every flag that a command of the README gives is one the job knows."""
    readme = (PROJECT / "README.md").read_text().replace("\\\n", " ")
    commands = re.findall(rf"jobs/{job}\.py([^\n`]*)", readme)
    flags = {flag for command in commands for flag in re.findall(r"--[a-z][\w-]*", command)}
    done = subprocess.run(
        [sys.executable, f"jobs/{job}.py", "--help"], cwd=PROJECT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    known = {flag.replace("_", "-") for flag in re.findall(r"--[a-z][\w-]*", done.stdout)}
    assert flags and flags <= known, f"jobs/{job}.py does not know {sorted(flags - known)}"
