"""Pure functions of rows and their reconstructions; NaN in x is an unseen cell and does not count."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Explained", "explained_variance", "row_errors", "share"]

Array = npt.NDArray[Any]


def row_errors(x: Array, x_hat: Array) -> Array:
    """Squared error summed over seen cells, per row (N,)."""
    errors: Array = np.nansum((x - x_hat) ** 2, axis=1)
    return errors


def explained_variance(x: Array, x_hat: Array) -> float:
    """R² = 1 - Σ (x - x̂)² / Σ (x - mean)², weighted by variance, means of x's own columns.

    As scikit-learn's ``r2_score(x, x_hat, multioutput="variance_weighted")``.

    Returns
    -------
    float
        1.0 is perfect, 0.0 what the mean explains. Where x does not vary: 1.0 if reproduced, else 0.0.
    """
    seen = ~np.isnan(x)
    explained = Explained(np.where(seen, x, 0.0).sum(0) / np.maximum(seen.sum(0), 1))
    explained.add(x, x_hat)
    return explained.score


class Explained:
    """R² of rows that come in blocks.

    Parameters
    ----------
    centre : ndarray of shape (D,)
        Near the columns' means, so that sums of squares about it lose no digits.
    """

    def __init__(self, centre: Array) -> None:
        self.centre = centre
        self.count = self.first = self.second = np.zeros(len(centre))
        self.error = 0.0

    def add(self, x: Array, x_hat: Array) -> None:
        """Rows (N, D), NaN where unseen, and their reconstructions."""
        self.see(x)
        self.error += float(row_errors(x, x_hat).sum())

    def see(self, x: Array) -> None:
        """Rows (N, D) alone: how much there is to explain."""
        seen = ~np.isnan(x)
        off = np.where(seen, x - self.centre, 0.0)
        self.count = self.count + seen.sum(0)
        self.first, self.second = self.first + off.sum(0), self.second + np.einsum("nd,nd->d", off, off)

    @property
    def score(self) -> float:
        """1.0 is perfect; where the rows do not vary, 1.0 if reproduced, else 0.0."""
        about = self.second - self.first**2 / np.maximum(self.count, 1)
        total = about[about > 1e-14 * self.second].sum()  # a constant column leaves rounding
        return share(self.error, total)


def share(error: float, total: float) -> float:
    """1 - error / total; without any total, 1.0 where there is no error either, else 0.0."""
    if total == 0:
        return 1.0 if error == 0 else 0.0
    return float(1 - error / total)
