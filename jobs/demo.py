"""The demo: draw streets, train on them, segment and evaluate unseen ones (`make demo`; see --help).

The same functions as the jobs, on a data set that needs nothing but this code. A second call says what is complete.
"""

import dataclasses
import io
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from pipeline import storage  # noqa: E402
from pipeline.decode.picture import decode, decode_label  # noqa: E402
from pipeline.errors import GateError, InputError  # noqa: E402
from pipeline.evaluate.config import EvaluateConfig  # noqa: E402
from pipeline.evaluate.job import evaluate  # noqa: E402
from pipeline.evaluate.results import headline, table  # noqa: E402
from pipeline.labels import SCENES  # noqa: E402
from pipeline.runtime.cli import main  # noqa: E402
from pipeline.runtime.options import INPUT, NETWORK, OUTPUT, option, parse  # noqa: E402
from pipeline.runtime.progress import duration  # noqa: E402
from pipeline.scenes import write_scenes  # noqa: E402
from pipeline.segment.job import SegmentConfig, segment  # noqa: E402
from pipeline.storage import folders  # noqa: E402
from pipeline.tables.masks import colorize  # noqa: E402
from pipeline.tables.prediction_table import read_predictions  # noqa: E402
from pipeline.training.job import TrainConfig, train  # noqa: E402


@dataclasses.dataclass
class DemoConfig:
    """Draw street scenes, train on them, segment and evaluate unseen ones, and print what came out."""

    output: str = option(str(PROJECT / "runs" / "demo"), "Local folder of the demo.", group=OUTPUT)
    training: str = option(str(PROJECT / "configs" / "demo.yaml"), "Options of jobs/train.py.", group=NETWORK)
    train_scenes: int = option(240, "Scenes to train on.", group=INPUT, low=1)
    unseen_scenes: int = option(48, "Scenes to segment and evaluate, of other seeds and layouts.", group=INPUT, low=1)
    least_miou: float = option(0.80, "The demo fails (exit code 3) below this mIoU on the unseen scenes.", group=OUTPUT)
    picture: str | None = option(
        None, "PNG of a few unseen scenes beside truth and prediction (default: OUTPUT/demo.png).", group=OUTPUT
    )
    overwrite: bool = option(False, "Draw, train, segment and evaluate again.", group=OUTPUT)


def demo(config: DemoConfig) -> str:
    """Run the demo; returns the line that says where the report lies. Raises GateError below `least_miou`."""
    started_s = time.monotonic()
    at = _folders(config)
    arguments = ["--config", config.training, "--source", at["scenes"], "--output", at["train"]]
    print(train(parse(TrainConfig, arguments)), flush=True)
    best = storage.join(at["train"], "best")
    print(segment(SegmentConfig(at["scenes"], best, at["segment"], split="val")), flush=True)
    evaluate(EvaluateConfig(at["segment"], at["scenes"], at["evaluate"], split="val"))
    metrics = storage.read_json(storage.join(at["evaluate"], "metrics.json"))
    picture = config.picture or storage.join(config.output, "demo.png")
    storage.write_bytes(picture, _beside_each_other(at["segment"]))
    print(f"\n{table(metrics)}\n\nunseen scenes: {headline({**metrics, 'num_classes': SCENES.num_classes})}")
    print(f"took {duration(time.monotonic() - started_s)}; picture, truth and prediction in {picture}", flush=True)
    report = storage.join(at["evaluate"], "report.html")
    if metrics["miou"] < config.least_miou:
        raise GateError(f"mIoU {metrics['miou']:.3f} on the unseen scenes is below {config.least_miou}; see {report}")
    return f"report in {report}"


def _folders(config: DemoConfig) -> dict[str, str]:
    """Where each job writes; the scenes drawn, and what was made from other scenes removed."""
    output = Path(config.output).absolute()
    mark = output / "_demo.json"  # what may be removed here is the demo's own
    if "://" in config.output or (output.exists() and any(output.iterdir()) and not mark.exists()):
        raise InputError("not a folder for the demo", where=config.output, expected="a local folder, new or its own")
    output.mkdir(parents=True, exist_ok=True)
    mark.write_text("{}\n")
    at = {name: str(output / name) for name in ("scenes", "train", "segment", "evaluate")}
    if config.overwrite:
        folders.remove_tree(at["scenes"])
    if write_scenes(at["scenes"], config.train_scenes, config.unseen_scenes):
        for name in ("train", "segment", "evaluate"):
            folders.remove_tree(at[name])
        print(f"drew {config.train_scenes} scenes to train on and {config.unseen_scenes} unseen ones", flush=True)
    return at


def _beside_each_other(predictions: str, rows: int = 3, gap_px: int = 4) -> bytes:
    """A PNG of the first scenes by name: picture | truth | prediction, one scene a row."""
    found = {row["path"]: row for row in read_predictions(predictions, ["path", "uri", "mask"])}
    lines = []
    for _, row in sorted(found.items())[:rows]:
        picture = decode(storage.read_bytes(row["uri"]))
        truth = decode_label(storage.read_bytes(row["uri"].replace("/val/", "/valannot/")))
        parts = [picture, colorize(truth, SCENES), colorize(row["mask"], SCENES)]
        gap = np.full((len(picture), gap_px, 3), 255, np.uint8)
        lines.append(np.hstack([parts[0], gap, parts[1], gap, parts[2]]))
        lines.append(np.full((gap_px, lines[0].shape[1], 3), 255, np.uint8))
    file = io.BytesIO()
    # 256 colours: noise hardly compresses, and this picture is for a page
    Image.fromarray(np.vstack(lines[:-1])).quantize(256, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
    return file.getvalue()


if __name__ == "__main__":
    main(demo, DemoConfig)
