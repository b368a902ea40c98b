"""A network from elsewhere as a checkpoint: `python jobs/import_model.py --model export:net.pt2 --output URI ...`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline.prediction.import_model import ImportConfig, import_model
from pipeline.runtime.cli import main

if __name__ == "__main__":
    main(import_model, ImportConfig)
