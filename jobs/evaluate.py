"""Evaluate predictions: `python jobs/evaluate.py --predictions URI --labels URI --output URI` (see --help)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline.cli import main
from pipeline.evaluate import EvaluateConfig, evaluate

if __name__ == "__main__":
    main(evaluate, EvaluateConfig)
