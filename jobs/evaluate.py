"""Evaluate predictions: `python jobs/evaluate.py --predictions URI --labels URI --output URI` (see --help)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline.evaluate.config import EvaluateConfig
from pipeline.evaluate.job import evaluate
from pipeline.runtime.cli import main

if __name__ == "__main__":
    main(evaluate, EvaluateConfig)
