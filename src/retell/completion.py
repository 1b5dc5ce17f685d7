"""Whose answer fills the holes of a row: the network's or the factor model's.

A network that has not learned to do without cells reconstructs what it was given, the centre included; one
trained with Mask can do better than any linear model. Held-out rows with cells hidden from both decide.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from retell.factors import Factors

__all__ = ["filler", "rows_to_ask"]

Array = npt.NDArray[Any]

FEWEST, MOST, CELLS = 128, 512, 2**16  # rows, and cells, that are enough to tell


def rows_to_ask(width: int) -> int:
    """How many rows of so many columns are enough to tell."""
    return min(MOST, max(FEWEST, CELLS // width))


def filler(x: Array, factors: Factors, reconstruct: Callable[[Array], Array], generator: torch.Generator) -> str:
    """Which has the lower squared error on hidden cells, "network" or "factors".

    Parameters
    ----------
    x : ndarray of shape (N, D)
        Centred rows, NaN where unseen.
    factors : Factors
    reconstruct : callable
        The network's answer to centred rows with holes.
    generator : torch.Generator
        Hides cells: as large a share as is missing, but at least a tenth; a fifth where none is.
    """
    x = x[: rows_to_ask(x.shape[1])]
    share = max(np.isnan(x).mean() or 0.2, 0.1)
    hidden = (torch.rand(x.shape, generator=generator).numpy() < share) & ~np.isnan(x)
    if not hidden.any():
        return "factors"
    holed = np.where(hidden, np.nan, x)
    errors = {name: ((fill(holed) - x)[hidden] ** 2).sum() for name, fill in
              (("factors", factors.complete), ("network", reconstruct))}  # fmt: skip
    return min(errors, key=lambda name: errors[name])
