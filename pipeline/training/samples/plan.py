"""The sample plan: which picture is the n-th training sample of a run.

One continuous stream feeds the whole run. Of N pictures, sample g is permutation(seed, g // N)[g % N]; step s takes the
samples s * batch_size up to (s + 1) * batch_size. So every epoch is a permutation, no epoch's end stalls the workers,
and a run resumed at any step goes on with exactly the samples it would have seen.

Ray hands out blocks to the training workers in turn (equal split, order preserved). A block therefore holds whole steps
of one worker: block b is for worker b % W. Streams are padded to whole rounds of blocks, because an equal split drops
what is left over; the padding comes after the last step and is never loaded.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np

# what is read of a manifest row
COLUMNS = ["region_id", "region_key", "path", "uri", "kind", "size_bytes", "version", "window", "frame", "label_uri"]
SCENE_COLUMNS = ["read_window", "scene_width", "scene_height", "scene_area", "assets"]  # where the manifest has them
_BLOCK_ROWS = 32  # small enough that a block is soon there, large enough that its overhead does not count
_BLOCK_BYTES = 64 << 20  # Ray splits blocks of more than 128 MiB
MAX_BLOCKS = 10_000  # the driver keeps a record of every block (about 39 KB)


@dataclass(frozen=True)
class SamplePlan:
    """`num_rows` pictures, `batch_size` of them a step over all `num_workers`, `total_steps` steps."""

    num_rows: int
    batch_size: int
    num_workers: int
    total_steps: int
    seed: int = 0

    @property
    def worker_batch(self) -> int:
        """Samples of one worker in one step."""
        return self.batch_size // self.num_workers

    def epoch_end(self, epoch: int) -> int:
        """The step before which every sample of epochs 0..`epoch` has been taken."""
        return min(self.total_steps, math.ceil((epoch + 1) * self.num_rows / self.batch_size))

    def epoch_of(self, step: int) -> int:
        """The epoch that the first sample of a step belongs to."""
        return step * self.batch_size // self.num_rows

    def draw(self, sample: int) -> tuple[int, int]:
        """(epoch, row of the table) of a sample."""
        epoch, position = divmod(sample, self.num_rows)
        return epoch, int(_permutation(self.num_rows, self.seed, epoch)[position])

    def block_steps(self, first_step: int, sample_bytes: int) -> int:
        """How many steps of one worker a block holds."""
        fitting = min(_BLOCK_ROWS, max(1, _BLOCK_BYTES // sample_bytes)) // self.worker_batch
        rounds = (self.total_steps - first_step) * self.num_workers / MAX_BLOCKS
        return max(1, fitting, math.ceil(rounds))

    def stream_rows(self, first_step: int, block_steps: int) -> int:
        """Length of the stream from `first_step` on, padded to whole rounds of blocks."""
        rounds = max(1, math.ceil((self.total_steps - first_step) / block_steps))
        return rounds * block_steps * self.batch_size

    def place(self, position: int, first_step: int, block_steps: int) -> tuple[int, int]:
        """(step, sample) that stands at `position` of the stream; steps from `total_steps` on are padding."""
        block, inside = divmod(position, block_steps * self.worker_batch)
        round_, worker = divmod(block, self.num_workers)
        step_inside, lane = divmod(inside, self.worker_batch)
        step = first_step + round_ * block_steps + step_inside
        return step, step * self.batch_size + worker * self.worker_batch + lane


@functools.lru_cache(maxsize=2)
def _permutation(rows: int, seed: int, epoch: int) -> np.ndarray:
    """The order of an epoch, int64 (rows)."""
    return np.random.default_rng((seed, epoch)).permutation(rows)
