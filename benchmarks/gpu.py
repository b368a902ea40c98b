"""One prepared run on a machine with a GPU, in under eight minutes: its masks, its speed, what limits it.
Resumable part by part: what is in OUTPUT/gpu.json already is not measured again unless --again.

    python benchmarks/gpu.py --output runs/gpu            # or: make gpu
    python benchmarks/gpu.py --device cpu --small         # the same on a CPU, tiny, to see that it works

Parts: networks (masks of the GPU beside the CPU's), memory (what does not fit), predictor (pictures a second by batch
size and precision), segment (the whole job) and training (steps, waiting, a kill and a resume). The first three need
torch alone, the last two what the project depends on too. Each part runs in a process of its own with a deadline; what
it measured until then is kept.

On a machine without this project's environment: copy the repository there, run with PYTHONPATH set to it, and install
Ray, s3fs, simplejpeg, safetensors, psutil and tensorboard for `segment` and `training`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(PROJECT), str(PROJECT / "benchmarks")]

PARTS = {"networks": 60, "memory": 30, "predictor": 110, "segment": 120, "training": 130}  # seconds each may take


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default=str(PROJECT / "runs" / "gpu"), help="folder of gpu.json")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--pictures", help="CamVid's folder (default: SEGMENTATION_DATA/camvid; else drawn scenes)")
    parser.add_argument("--parts", default=",".join(PARTS), help="those to run (default: all)")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to see that it works")
    parser.add_argument("--again", action="store_true", help="measure again what was measured")
    parser.add_argument("--part", help=argparse.SUPPRESS)  # this process is one part
    options = parser.parse_args()
    if options.pictures is None and os.environ.get("SEGMENTATION_DATA"):
        options.pictures = str(Path(os.environ["SEGMENTATION_DATA"], "camvid"))
    if options.part:
        run_here(options)
        return
    unknown = set(options.parts.split(",")) - set(PARTS)
    if unknown:
        print(f"error: no part {sorted(unknown)[0]!r}; expected {', '.join(PARTS)}", file=sys.stderr)
        raise SystemExit(2)
    folder = Path(options.output).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    found = read(folder)
    found.setdefault("machine", machine(options.device))
    for part in options.parts.split(","):
        if options.again or found.get(part, {}).get("state") != "done":
            found[part] = run_part(part, options, folder)
            (folder / "gpu.json").write_text(json.dumps(found, indent=1))
    print(tables(found))


def run_part(part: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """A part in a process of its own. What it measured is kept whatever becomes of it."""
    into = folder / f"{part}.part.json"
    into.unlink(missing_ok=True)
    command = [sys.executable, __file__, *sys.argv[1:], "--part", part, "--output", str(folder)]
    begin_s = time.monotonic()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PARTS[part])
        state = "done" if done.returncode == 0 else "failed"
        error = None if done.returncode == 0 else " ".join(done.stderr.strip().splitlines()[-1:])[:500]
    except subprocess.TimeoutExpired:
        state, error = "cut off", f"not done in {PARTS[part]} s"
    rows = json.loads(into.read_text()) if into.exists() else []
    into.unlink(missing_ok=True)
    took_s = round(time.monotonic() - begin_s, 1)
    print(f"{part}: {state} in {took_s} s{f', {error}' if error else ''}", file=sys.stderr, flush=True)
    return {"state": state, "error": error, "took_s": took_s, "rows": rows}


def run_here(options: argparse.Namespace) -> None:
    import importlib

    into = Path(options.output, f"{options.part}.part.json")
    rows: list[dict[str, Any]] = []

    def keep(row: dict[str, Any]) -> None:
        rows.append(row)
        into.write_text(json.dumps(rows))

    deadline_s = time.monotonic() + 0.9 * PARTS[options.part]
    importlib.import_module(f"gpu_parts.{options.part}").measure(options, keep, deadline_s)


def read(folder: Path) -> dict[str, Any]:
    path = folder / "gpu.json"
    return dict(json.loads(path.read_text())) if path.exists() else {}


def machine(device: str) -> dict[str, Any]:
    import torch

    about = {
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit(),
        "torch": torch.__version__,
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
    }
    if device == "cuda":
        about |= {"gpu": torch.cuda.get_device_name(), "memory_gib": torch.cuda.mem_get_info()[1] >> 30}
        about |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    return about


def commit() -> str:
    """The short name of what is measured; "unknown" in a copy without its history or without git."""
    try:
        command = ["git", "rev-parse", "--short", "HEAD"]
        return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True).stdout.strip() or "unknown"
    except FileNotFoundError:
        return "unknown"


def tables(found: dict[str, Any]) -> str:
    """Everything that was measured, in Markdown."""
    lines = [", ".join(f"{name} {value}" for name, value in found["machine"].items())]
    for part in PARTS:
        if part not in found:
            continue
        result = found[part]
        error = f"; {result['error']}" if result["error"] else ""
        lines += ["", f"**{part}** ({result['state']} in {result['took_s']} s{error})"]
        if result["rows"]:
            heads = list(dict.fromkeys(name for row in result["rows"] for name in row))
            lines += ["", f"| {' | '.join(heads)} |", f"|{'--|' * len(heads)}"]
            lines += [f"| {' | '.join(cell(row.get(name)) for name in heads)} |" for row in result["rows"]]
    return "\n".join(lines)


def cell(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
