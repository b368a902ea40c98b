"""Segment a collection: `python jobs/segment.py --source URI --checkpoint URI --output URI` (see --help)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline.cli import main
from pipeline.segment import segment
from pipeline.segment_config import SegmentConfig

if __name__ == "__main__":
    main(segment, SegmentConfig)
