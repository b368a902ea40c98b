"""Train the variants of a study and compare them: `python jobs/sweep.py --study FILE --source URI --output URI`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline.runtime.cli import main
from pipeline.training.studies.job import SweepConfig, sweep

if __name__ == "__main__":
    main(sweep, SweepConfig)
