"""Some of the rows that come a few at a time, whose number no one knows: each is as likely to be among them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from retell.rows.blocks import take

__all__ = ["Sample"]

Array = npt.NDArray[Any]


class Sample:
    """At most so many of all rows that have come: each draws a number, and the least numbers stay.

    Parameters
    ----------
    most : int
    draw : torch.Generator

    Attributes
    ----------
    rows : ndarray of shape (n, D)
        In the order in which they have come.
    count : int
        How many have come.
    """

    def __init__(self, most: int, draw: torch.Generator) -> None:
        self.most, self.draw, self.count = most, draw, 0
        self.rows, self.numbers = np.empty((0, 0)), np.empty(0)

    def add(self, rows: Any) -> None:
        """Rows (N, D) that have come."""
        new = torch.rand(len(rows), generator=self.draw, dtype=torch.float64).numpy()
        numbers, held = np.concatenate([self.numbers, new]), len(self.numbers)
        stays = np.sort(np.argsort(numbers)[: self.most])
        some = take(rows, stays[stays >= held] - held)
        self.rows = np.concatenate([self.rows[stays[stays < held]], some]) if held else some
        self.numbers, self.count = numbers[stays], self.count + len(rows)
