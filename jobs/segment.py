"""Segment a collection: `python jobs/segment.py --source URI --checkpoint URI --output URI` (see --help)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline.runtime.cli import main
from pipeline.segment.config import SegmentConfig
from pipeline.segment.job import segment

if __name__ == "__main__":
    main(segment, SegmentConfig)
