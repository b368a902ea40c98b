"""The house itself: wings import downward only, no circles, no drawers, and the commands of the README exist."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from conftest import PROJECT

PIPELINE = PROJECT / "pipeline"
# The wings in the order in which data flows; a wing imports only wings to its left. This is the one list.
WINGS = (
    "storage runtime labels decode catalog reading models metrics tables prediction training segment evaluate export"
    " scenes"
).split()
BESIDE_THE_WINGS = {"__init__", "errors"}
MOST_FILES = 15  # in one folder; more become a wing within the wing
MOST_LINES = 300

FILES = sorted(PIPELINE.rglob("*.py"))
FOLDERS = sorted({path.parent for path in FILES})


def module_of(path: Path) -> str:
    parts = path.relative_to(PROJECT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}


@cache
def imported(path: Path) -> frozenset[str]:
    """Modules of ours that a file imports, at module level or inside functions, save under `if TYPE_CHECKING:`."""
    return frozenset(_imported(ast.parse(path.read_text(), str(path))))


def _imported(tree: ast.AST) -> Iterator[str]:
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module in MODULES:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            yield from inner & set(MODULES)
            if inner - set(MODULES):
                yield node.module
        waiting.extend(ast.iter_child_nodes(node))


def wing_of(module: str) -> str:
    return module.split(".")[1]


def test_the_listing_shows_the_architecture() -> None:
    names = {path.stem for path in PIPELINE.iterdir() if path.name != "__pycache__"}
    assert names <= {*WINGS, *BESIDE_THE_WINGS}, f"beside the wings: {sorted(names - {*WINGS, *BESIDE_THE_WINGS})}"


@pytest.mark.parametrize("wing", [wing for wing in WINGS if (PIPELINE / wing).exists()])
def test_a_wing_imports_only_wings_above_it(wing: str) -> None:
    upward = [
        f"{module} imports {other}"
        for module, path in MODULES.items()
        if module.startswith(f"pipeline.{wing}")
        for other in imported(path)
        if other != "pipeline" and wing_of(other) in WINGS and WINGS.index(wing_of(other)) > WINGS.index(wing)
    ]
    assert not upward


def test_no_circles() -> None:
    """Not between files either: every file can be read after those it imports."""
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " -> ".join([*above[above.index(module) :], module])
        if module in done:
            return
        for other in imported(MODULES[module]):
            if other != "pipeline":
                visit(other, (*above, module))
        done.add(module)

    for module in MODULES:
        if module != "pipeline":
            visit(module, ())


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: str(folder.relative_to(PROJECT)))
def test_a_folder_can_be_overlooked(folder: Path) -> None:
    files = [path for path in folder.glob("*.py") if path.stem != "__init__"]
    assert len(files) <= MOST_FILES
    init = folder / "__init__.py"
    assert ast.get_docstring(ast.parse(init.read_text())), f"{init} does not say what lies here"


def test_a_wing_says_what_it_holds() -> None:
    """The docstring of a wing names each of its files, so that a new one gets its place in the reading order."""
    for wing in WINGS:
        if (PIPELINE / wing).exists() and wing != "scenes":
            text = ast.get_docstring(ast.parse((PIPELINE / wing / "__init__.py").read_text())) or ""
            lines = {line.split()[0].rstrip("/") for line in text.splitlines() if line.startswith("    ")}
            there = {path.stem for path in (PIPELINE / wing).iterdir() if path.suffix == ".py" or path.is_dir()}
            assert lines == there - {"__init__", "__pycache__"}, wing


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PROJECT)))
def test_a_file_can_be_read_in_one_sitting(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MOST_LINES


def test_tests_stand_in_the_order_of_the_wings() -> None:
    folders = sorted(path.name for path in (PROJECT / "tests").iterdir() if path.name[:2].isdigit())
    named = [name[3:] for name in folders if name[3:] != "whole"]
    assert named == [wing for wing in WINGS if wing in named] and folders[-1].endswith("_whole")


def test_no_drawers() -> None:
    """A file is named for its one noun."""
    drawers = {"utils", "util", "helpers", "common", "misc", "manager"}
    assert not [p for p in [*FILES, *(PROJECT / "jobs").glob("*.py")] if p.stem in drawers]


def test_importing_the_package_is_light() -> None:
    code = "import sys, pipeline; sys.exit(any(heavy in sys.modules for heavy in ('torch', 'ray', 'pyarrow')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=PROJECT).returncode == 0


PAGES = sorted([*PROJECT.glob("*.md"), *PROJECT.glob("docs/*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_name_only_what_exists(page: Path) -> None:
    text, makefile = page.read_text(), (PROJECT / "Makefile").read_text()
    for target in set(re.findall(r"^make ([\w-]+)", text, re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"make {target}"
    for name in set(re.findall(r"(?<![\w/.])((?:jobs|configs|docs|pipeline|tests|benchmarks)/[\w/.-]*\w)", text)):
        assert (PROJECT / name).exists(), name
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert "://" in link or (page.parent / link).exists(), link


def test_every_page_is_reached_from_one_list() -> None:
    readme = (PROJECT / "README.md").read_text()
    assert len(readme.splitlines()) < 180
    listed = readme[readme.index("## Documents") : readme.index("## The tree")]
    assert set(re.findall(r"\(docs/([\w.]+)\)", listed)) == {page.name for page in (PROJECT / "docs").glob("*.md")}


def test_the_tree_shows_the_wings() -> None:
    readme = (PROJECT / "README.md").read_text()
    shown = re.findall(r"^  (\w+)/ ", readme[readme.index("## The tree") :], re.MULTILINE)
    assert shown == [wing for wing in WINGS if (PIPELINE / wing).exists()]


def test_the_options_page_is_what_the_jobs_say() -> None:
    """`docs/options.md` holds what `--help` of each job prints; SEGMENTATION_RECORD=1 writes it anew."""
    page, parts = PROJECT / "docs" / "options.md", []
    for job in ("manifest", "train", "segment", "evaluate", "export", "import_model", "sweep", "demo"):
        command = [sys.executable, f"jobs/{job}.py", "--help"]
        done = subprocess.run(
            command, cwd=PROJECT, capture_output=True, text=True, env={**os.environ, "COLUMNS": "110"}
        )
        assert done.returncode == 0, done.stderr
        shown = done.stdout.replace(str(PROJECT) + "/", "")
        parts.append(f"## jobs/{job}.py\n\n```\n{shown.strip()}\n```\n")
    text = "# Options\n\nWhat `--help` of each job prints.\n\n" + "\n".join(parts)
    if os.environ.get("SEGMENTATION_RECORD"):
        page.write_text(text)
    assert page.read_text().split() == text.split()  # Pythons differ in where they break lines


@pytest.mark.parametrize("job", ["manifest", "train", "segment", "evaluate", "export", "import_model"])
def test_flags_of_the_pages_exist(job: str) -> None:
    """Every flag that a command of a page gives is one the job knows."""
    text = "\n".join(page.read_text() for page in PAGES if page.name != "options.md").replace("\\\n", " ")
    commands = re.findall(rf"python jobs/{job}\.py([^\n`]*)", text)
    flags = {flag for command in commands for flag in re.findall(r"--[a-z][\w-]*", command)}
    done = subprocess.run(
        [sys.executable, f"jobs/{job}.py", "--help"], cwd=PROJECT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    known = {flag.replace("_", "-") for flag in re.findall(r"--[a-z][\w-]*", done.stdout)}
    assert flags and flags <= known, f"jobs/{job}.py does not know {sorted(flags - known)}"
