"""λ, a coefficient that changes with the step: `at(step)` is its value."""

from __future__ import annotations

import math

from retell.parts import Part

__all__ = ["Cosine", "Warmup"]


class Warmup(Part):
    """λ(t) = value · min(1, t / steps)

    Parameters
    ----------
    value : float
        The coefficient after the warm-up.
    steps : int
        How many training steps (batches) it takes to get there, at least 1.

    Examples
    --------
    >>> from retell import Warmup
    >>> Warmup(0.5, 100).at(50)
    0.25
    """

    letter = "λ"
    value: float
    steps: int

    def __post_init__(self) -> None:
        self.require("value", math.isfinite, "a finite number")
        self.require("steps", lambda n: n >= 1, "at least 1")

    def at(self, step: float) -> float:
        return self.value * min(1.0, step / self.steps)


class Cosine(Part):
    """λ(t) = end + (start - end) · (1 + cos(π min(1, t / steps))) / 2

    Parameters
    ----------
    start, end : float
        The coefficient at the first step and from step `steps` on.
    steps : int
        Length of the half wave in training steps (batches), at least 1.
    """

    letter = "λ"
    start: float
    end: float
    steps: int

    def __post_init__(self) -> None:
        self.require("start", math.isfinite, "a finite number")
        self.require("end", math.isfinite, "a finite number")
        self.require("steps", lambda n: n >= 1, "at least 1")

    def at(self, step: float) -> float:
        share = (1 + math.cos(math.pi * min(1.0, step / self.steps))) / 2
        return self.end + (self.start - self.end) * share
