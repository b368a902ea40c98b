"""List a collection into a manifest: `python jobs/manifest.py --source URI --output URI` (see --help)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline.cli import main
from pipeline.manifest_job import ManifestConfig, make_manifest

if __name__ == "__main__":
    main(make_manifest, ManifestConfig)
