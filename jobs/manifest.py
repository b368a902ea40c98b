"""List a collection into a manifest: `python jobs/manifest.py --source URI --output URI` (see --help)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline.catalog.job import ManifestConfig, make_manifest
from pipeline.runtime.cli import main

if __name__ == "__main__":
    main(make_manifest, ManifestConfig)
