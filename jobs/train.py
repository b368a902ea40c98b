"""Train a segmentation network: `python jobs/train.py --config configs/camvid.yaml --source URI --output URI`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline.runtime import cli
from pipeline.training.job import TrainConfig, train

if __name__ == "__main__":
    cli.main(train, TrainConfig)
