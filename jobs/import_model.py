"""A network from elsewhere as a checkpoint: `python jobs/import_model.py --model export:net.pt2 --output URI ...`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline.prediction.import_config import ImportConfig
from pipeline.runtime.cli import main


def import_model(config: ImportConfig) -> str:
    from pipeline.prediction.import_model import import_model  # torch takes seconds to load: --help does without

    return import_model(config)


if __name__ == "__main__":
    main(import_model, ImportConfig)
