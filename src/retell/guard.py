"""Steps that are too long lead astray: what a few rows say of the parameters tells them from those that teach."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from torch import Tensor

from retell.dials import Dial

__all__ = ["Guard", "Judgement"]

ASTRAY = 0.5  # of what the best parameters explain: if more of it is lost, the steps were too long
WATCHED = 256  # rows that tell so where none are held out


class Judgement(NamedTuple):
    """What rows say of parameters."""

    terms: dict[str, float]
    rows: Tensor
    """The objective on each row (M,)."""
    score: float
    """R² of the rows, uncorrupted."""

    @property
    def loss(self) -> float:
        """The objective."""
        return sum(self.terms.values())


class Guard:
    """Whether the steps since the best parameters were too long, and how much shorter they are for it.

    Parameters
    ----------
    dial : Dial
        Says which epochs can be compared.
    watches : bool
        Not over large dictionaries: they seem astray for epochs, and find better units for it as steps become shorter.
    """

    def __init__(self, dial: Dial, *, watches: bool) -> None:
        self.dial, self.watches = dial, watches
        # of the best parameters: R² and the objective
        self.reached, self.least = 0.0, math.inf
        self.eased = 1.0  # of the learning rate

    def some(self, x: Any) -> Tensor | None:
        """A few rows of x, evenly spaced, to watch."""
        return x[:: max(1, len(x) // WATCHED)] if self.watches else None

    def note(self, now: Judgement | None) -> None:
        """What rows say of the parameters to go back to."""
        if now is not None:
            self.reached, self.least = now.score, now.loss

    def is_astray(self, now: Judgement | None) -> bool:
        """Whether rows say of these that they are far behind the best."""
        unlike = self.dial.turns and not len(self.dial.judges)  # the code of a later epoch has fewer units a row
        if now is None or not self.watches or now.loss < self.least or unlike or not self.dial.comparable:
            return False
        return not now.score >= self.reached - ASTRAY * abs(self.reached)  # so that a nan is astray too

    def state(self) -> list[float]:
        """What it has noted."""
        return [self.reached, self.least, self.eased]

    def load(self, numbers: list[float]) -> list[float]:
        """Take up what `state` gave; the rest of the numbers is another's."""
        self.reached, self.least, self.eased, *rest = numbers
        return rest
