"""What a network can be fed: of each of batch, height and width, a least and a largest number.

A network without an attribute `limits` takes any. A program of torch.export brings its own.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Range:
    """`low` to `high`, both of them included; `high` None = without end."""

    low: int = 1
    high: int | None = None

    @property
    def fixed(self) -> bool:
        return self.low == self.high

    def clamp(self, number: int) -> int:
        return max(self.low, number if self.high is None else min(number, self.high))

    def __contains__(self, number: int) -> bool:
        return self.clamp(number) == number

    def __str__(self) -> str:
        return str(self.low) if self.fixed else f"{self.low} to {self.high or 'any'}"


@dataclass(frozen=True)
class InputLimits:
    """Pictures a forward, and the sides of them in px."""

    batch: Range = Range()
    height: Range = Range()
    width: Range = Range()


UNLIMITED = InputLimits()
