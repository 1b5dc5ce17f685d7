"""What is done to the rows before x and undone after x̂.

    x = (row - shift) / factor

Objective, noise and every reported loss live in the scaled space; codes' inputs and reconstructions are
in the rows' own units.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from retell.notice import warn
from retell.rows.blocks import blocks

__all__ = ["ROUNDING", "Scaling", "robust_moments", "without_rounding"]

Array = npt.NDArray[Any]

ROUNDING = 1e-15  # of the mean: a spread that is no more than a few last digits
STILL = 1e-9  # of a constant column's mean: its least factor, beside which rounding is nothing
LARGEST = 1e150  # spreads whose squares, of all rows together, may overflow
ALIKE = 10.0  # spreads within this factor of the median are taken to share a unit


@dataclass(frozen=True)
class Scaling:
    """Scale and centre of the columns, from seen cells.

    Parameters
    ----------
    shift, factor : ndarray of shape (D,)
        x = (row - shift) / factor; a constant column has factor 1, or a billionth of its size if that is more.
    centre : ndarray of shape (D,)
        The columns' means in the scaled space: zero unless the rows are left as they are.
    """

    shift: Array
    factor: Array
    centre: Array

    @classmethod
    def fit(cls, rows: Array, scale: str | None, *, bounded: bool = False) -> Scaling:
        """Read the columns' means and spreads.

        Parameters
        ----------
        rows : ndarray of shape (N, D)
            NaN where a cell was not seen. A column without any value gets mean 0 and factor 1.
        scale : {"auto", "standard"} or None
            None centres only; "standard" divides each column by its standard deviation; "auto" divides
            all by one common factor when their spreads are alike (the largest is at most 10 times the
            median), as in images and embeddings, and each by its own when they are not, as in tables.
        bounded : bool, default=False
            The loss has a bounded support: the rows stay as they are.
        """
        mean, spread, _ = robust_moments(rows)
        return cls.of(mean, spread, scale, bounded=bounded)

    @classmethod
    def of(cls, mean: Array, spread: Array, scale: str | None, *, bounded: bool = False) -> Scaling:
        """As `fit`, from the columns' means and standard deviations (D,)."""
        varied = spread > 0
        if bounded:
            return cls(np.zeros_like(mean), np.ones_like(mean), mean)
        if varied.any() and spread.max() > LARGEST:
            warn(
                f"column {int(spread.argmax())} has a standard deviation of {spread.max():.3g}: squares of such "
                "values overflow; they are computed after scaling",
            )
        factor = np.ones_like(mean)
        if scale is not None and varied.any():
            median = np.quantile(spread[varied], 0.5, method="lower")
            if scale == "auto" and spread.max() <= ALIKE * median:
                unit = spread.max()
                factor[:] = unit * np.sqrt(np.mean((spread[varied] / unit) ** 2))
            else:
                factor[varied] = spread[varied]
        factor = np.where(varied, factor, np.maximum(factor, STILL * np.abs(mean)))
        return cls(mean, factor, np.zeros_like(mean))

    def to(self, rows: Array) -> Array:
        """Rows in the scaled space, float64."""
        x: Array = np.subtract(rows, self.shift, dtype=np.float64)
        return np.divide(x, self.factor, out=x)

    def back(self, x: Array) -> Array:
        """Rows in their own units, float64."""
        return np.asarray(x, np.float64) * self.factor + self.shift

    @property
    def log_density(self) -> Array:
        """log |dx / d row| per column (D,): what a density in the rows' own units adds."""
        return -np.log(self.factor)


def robust_moments(rows: Array) -> tuple[Array, Array, Array]:
    """Mean and standard deviation (D,) of the seen cells, and whether there are none.

    Safe from overflow and underflow; reads the rows thrice.
    """
    # np.where before the sums: a column of holes has mean 0, and no warning about empty slices
    tops, counts = zip(*((np.where(seen, np.abs(x), 0.0).max(0), seen.sum(0)) for x, seen in _cells(rows)), strict=True)
    top, seen_cells = np.max(tops, axis=0), np.sum(counts, axis=0)
    count = np.maximum(seen_cells, 1)
    top = np.where(top > 0, top, 1.0)
    mean = np.sum([np.where(seen, x / top, 0.0).sum(0) for x, seen in _cells(rows)], axis=0) / count
    squares = np.sum([(np.where(seen, x / top - mean, 0.0) ** 2).sum(0) for x, seen in _cells(rows)], axis=0)
    return mean * top, without_rounding(mean, np.sqrt(squares / count)) * top, seen_cells == 0


def without_rounding(mean: Array, spread: Array) -> Array:
    """The spread, 0 where it is no more than rounding."""
    return np.where(spread <= ROUNDING * np.abs(mean), 0.0, spread)


def _cells(rows: Array) -> Iterator[tuple[Array, Array]]:
    """Blocks in float64, and which of their cells were seen."""
    for _, block in blocks(rows):
        x = np.asarray(block, np.float64)
        yield x, ~np.isnan(x)
