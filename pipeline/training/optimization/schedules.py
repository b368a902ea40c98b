"""The learning rate over a run: a factor of the initial rate, from the step alone, so that resuming is exact."""

from __future__ import annotations

import math
from collections.abc import Callable

from pipeline.errors import InputError, nearest


def poly(left: float, power: float = 0.9) -> float:
    """left ** power, `left` being the share of the run still to come (Chen et al. 2018, DeepLab, section 4)."""
    return left**power if left else 0.0


def cosine(left: float, power: float = 1.0) -> float:
    """Half a cosine from 1 to 0 (Loshchilov and Hutter 2017, SGDR, equation 5, without restarts), to a power."""
    return ((1 - math.cos(math.pi * left)) / 2) ** power if left else 0.0


def constant(left: float, power: float = 0.0) -> float:
    """1 to the end."""
    return 1.0 if left else 0.0


SCHEDULES: dict[str, Callable[..., float]] = {"poly": poly, "cosine": cosine, "constant": constant}


def factor(schedule: str, step: int, max_steps: int, power: float | None = None, warmup_steps: int = 0) -> float:
    """What the initial rate is multiplied with at `step` (0 is the first) of `max_steps`.

    During the `warmup_steps` first steps it rises as (step + 1) / warmup_steps of what the schedule gives there; from
    `max_steps` on it is 0. `power` None is the schedule's own (poly 0.9). Raises InputError for a schedule that is none
    of SCHEDULES, a negative power or no steps.
    """
    if schedule not in SCHEDULES:
        hint = nearest(schedule, SCHEDULES) or None
        raise InputError(f"no schedule {schedule!r}", expected=", ".join(SCHEDULES), todo=hint)
    if max_steps < 1 or (power is not None and power < 0) or warmup_steps < 0:
        raise InputError(
            f"{schedule} schedule out of range",
            found=f"max_steps={max_steps}, power={power}, warmup_steps={warmup_steps}",
            expected="max_steps >= 1, power >= 0, warmup_steps >= 0",
        )
    left = max(0.0, 1 - step / max_steps)
    value = SCHEDULES[schedule](left) if power is None else SCHEDULES[schedule](left, power)
    return value * min(1.0, (step + 1) / warmup_steps) if warmup_steps else value
