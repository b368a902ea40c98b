"""Export predictions: `python jobs/export.py --predictions URI --format cog --output URI` (see --help)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline.export.config import ExportConfig
from pipeline.export.job import export
from pipeline.runtime.cli import main

if __name__ == "__main__":
    main(export, ExportConfig)
