"""The learning rate over a run: a factor of the initial rate, from the step alone, so that resuming is exact."""

from __future__ import annotations

from pipeline.errors import InputError


def poly(step: int, max_steps: int, power: float = 0.9, warmup_steps: int = 0) -> float:
    """(1 - step / max_steps) ** power, behind a linear warm-up; step 0 is the first step.

    During the `warmup_steps` first steps the factor rises as (step + 1) / warmup_steps of what poly gives there; from
    `max_steps` on it is 0. Raises InputError for a negative power or no steps.
    """
    if max_steps < 1 or power < 0 or warmup_steps < 0:
        raise InputError(
            "poly schedule out of range",
            found=f"max_steps={max_steps}, power={power}, warmup_steps={warmup_steps}",
            expected="max_steps >= 1, power >= 0, warmup_steps >= 0",
        )
    left = max(0.0, 1 - step / max_steps)
    factor = left**power if left else 0.0
    return factor * min(1.0, (step + 1) / warmup_steps) if warmup_steps else factor
