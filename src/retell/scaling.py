"""What is done to the rows before x and undone after x̂.

    x = (row - shift) / factor

Objective, noise and every reported loss live in the scaled space; codes' inputs and reconstructions are
in the rows' own units.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Scaling"]

Array = npt.NDArray[Any]

ALIKE = 10.0  # spreads within this factor of the median are taken to share a unit


@dataclass(frozen=True)
class Scaling:
    """Scale and centre of the columns, from seen cells.

    Parameters
    ----------
    shift, factor : ndarray of shape (D,)
        x = (row - shift) / factor; a constant column has factor 1.
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
        mean, spread = _moments(rows)
        varied = spread > 0
        if bounded:
            return cls(np.zeros_like(mean), np.ones_like(mean), mean)
        if varied.any() and spread.max() > 1e100:
            warnings.warn(
                f"column {int(spread.argmax())} has a standard deviation of {spread.max():.3g}: squares of such "
                "values overflow; they are computed after scaling",
                stacklevel=2,
            )
        factor = np.ones_like(mean)
        if scale is not None and varied.any():
            median = np.quantile(spread[varied], 0.5, method="lower")
            if scale == "auto" and spread.max() <= ALIKE * median:
                unit = spread.max()
                factor[:] = unit * np.sqrt(np.mean((spread[varied] / unit) ** 2))
            else:
                factor[varied] = spread[varied]
        return cls(mean, factor, np.zeros_like(mean))

    def to(self, rows: Array) -> Array:
        """Rows in the scaled space, float64."""
        return (np.asarray(rows, np.float64) - self.shift) / self.factor

    def back(self, x: Array) -> Array:
        """Rows in their own units, float64."""
        return np.asarray(x, np.float64) * self.factor + self.shift

    @property
    def log_density(self) -> Array:
        """log |dx / d row| per column (D,): what a density in the rows' own units adds."""
        return -np.log(self.factor)


def _moments(rows: Array) -> tuple[Array, Array]:
    """Mean and standard deviation (D,) of the seen cells, safe from overflow."""
    rows = np.asarray(rows, np.float64)
    seen = ~np.isnan(rows)
    count = np.maximum(seen.sum(0), 1)
    # np.where before the sums: a column of holes has mean 0, and no warning about empty slices
    top = np.where(seen, np.abs(rows), 0.0).max(0)
    top = np.where(top > 0, top, 1.0)
    small = np.where(seen, rows / top, 0.0)
    mean = small.sum(0) / count
    off = np.where(seen, small - mean, 0.0)
    spread = np.sqrt((off**2).sum(0) / count)
    # a constant column's mean is off by rounding: what is left is not spread
    spread[spread <= 1e-12 * np.abs(mean)] = 0.0
    return mean * top, spread * top
