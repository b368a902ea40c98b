"""What large collections cost: seconds, and peak memory of the driver.

    python benchmarks/scale.py plan        # 10 M regions planned, resumed with 9.9 M done, summed up
    python benchmarks/scale.py listing     # 1 M keys of a simulated S3 bucket, listed and made a manifest; an inventory
    python benchmarks/scale.py pictures    # 1 k, 10 k, 100 k small pictures through the job: time per picture

Every line of the tables is measured in a process of its own, whose peak resident memory it shows. CPU s is that
process's own time on all cores: on a machine that others use too it says more than the wall clock.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scaling.listing import ListingConfig, listing
from scaling.pictures import PicturesConfig, pictures
from scaling.plan import PlanConfig, plan

from pipeline.runtime.cli import main

JOBS: dict[str, tuple[Callable[..., None], type]] = {
    "plan": (plan, PlanConfig),
    "listing": (listing, ListingConfig),
    "pictures": (pictures, PicturesConfig),
}

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in JOBS:
        print(f"usage: python benchmarks/scale.py {'|'.join(JOBS)} [--help]", file=sys.stderr)
        sys.exit(2)
    job, config_class = JOBS[sys.argv[1]]
    main(job, config_class, sys.argv[2:])
