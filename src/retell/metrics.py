"""Pure functions of rows, codes and reconstructions; NaN in x is an unseen cell and does not count.

Codes may be arrays or any of scipy.sparse.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import issparse

from retell.arrays import as_numpy
from retell.recovery import Detection, Recovery, recovery, stability, uniqueness

__all__ = [
    "Detection", "Explained", "Recovery", "dead_share", "explained_variance", "fvu", "l0", "recovery", "row_errors",
    "share", "shrinkage", "stability", "uniqueness",
]  # fmt: skip

Array = npt.NDArray[Any]


def row_errors(x: Any, x_hat: Any) -> Array:
    """Squared error summed over seen cells, per row (N,).

    Raises
    ------
    ValueError
        As `explained_variance`.

    Examples
    --------
    >>> from retell.metrics import row_errors
    >>> row_errors([[1.0, 2.0], [0.0, 0.0]], [[1.0, 4.0], [1.0, 2.0]])
    array([4., 5.])
    """
    return _row_errors(*_pair(x, x_hat))


def explained_variance(x: Array, x_hat: Array) -> float:
    """R² = 1 - Σ (x - x̂)² / Σ (x - mean)², weighted by variance, means of x's own columns.

    As scikit-learn's ``r2_score(x, x_hat, multioutput="variance_weighted")``.

    Returns
    -------
    float
        1.0 is perfect, 0.0 what the mean explains. Where x does not vary: 1.0 if reproduced, else 0.0.

    Raises
    ------
    ValueError
        If the two are not rows of one shape, or a reconstruction of a seen cell is NaN.
    """
    x, x_hat = _pair(x, x_hat)
    seen = ~np.isnan(x)
    explained = Explained(np.where(seen, x, 0.0).sum(0) / np.maximum(seen.sum(0), 1))
    explained.add(x, x_hat)
    return explained.score


def fvu(x: Array, x_hat: Array) -> float:
    """Fraction of variance unexplained, Σ (x - x̂)² / Σ (x - mean)², over all cells and not a mean of ratios of rows.

    Parameters
    ----------
    x, x_hat : ndarray of shape (N, D)
        In one unit for all columns: as the loss has them, scaled.

    Returns
    -------
    float
        0.0 is perfect, 1.0 what the mean leaves.

    Raises
    ------
    ValueError
        As `explained_variance`.

    Examples
    --------
    >>> import numpy as np
    >>> from retell.metrics import fvu
    >>> x = np.array([[1.0, 0.0], [3.0, 0.0]])
    >>> fvu(x, x), fvu(x, x.mean(0) + 0 * x)
    (0.0, 1.0)
    """
    return 1 - explained_variance(x, x_hat)


def l0(h: Any) -> float:
    """Active units of a row, on average: those that are not 0, whatever their sign.

    Parameters
    ----------
    h : array or scipy.sparse of shape (N, K)

    Raises
    ------
    ValueError
        If these are no rows.

    Examples
    --------
    >>> from retell.metrics import l0
    >>> l0([[0.0, 2.0, 1.0], [0.0, 0.0, 3.0]])
    1.5
    """
    h = _rows(h, "h")
    return float(_active(h).sum() / h.shape[0])


def dead_share(h: Any) -> float:
    """Share of the units that are 0 in all rows.

    Parameters
    ----------
    h : array or scipy.sparse of shape (N, K)
        As many rows as one wants to wait for: a rare feature is not dead.

    Raises
    ------
    ValueError
        If these are no rows.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy.sparse import csr_array
    >>> from retell.metrics import dead_share
    >>> h = np.array([[0.0, 2.0, 1.0, 0.0], [0.0, 0.0, 3.0, 0.0]])
    >>> dead_share(h), dead_share(csr_array(h))
    (0.5, 0.5)
    """
    return float((_active(_rows(h, "h")) == 0).mean())


def shrinkage(x: Array, x_hat: Array) -> float:
    """Relative reconstruction bias γ = argmin_c Σ (x̂ / c - x)² = Σ x̂² / Σ x · x̂.

    Parameters
    ----------
    x, x_hat : ndarray of shape (N, D)
        About the point from which x̂ shrinks: scaled rows, whose mean is 0. A mean that both share hides shrinkage.

    Returns
    -------
    float
        1.0 is unbiased; below it reconstructions are too short, as an L1 penalty makes them; NaN where every x̂ is 0.

    Raises
    ------
    ValueError
        As `explained_variance`.

    References
    ----------
    Rajamanoharan et al. 2024, "Improving Dictionary Learning with Gated Sparse Autoencoders". SynthSAEBench's
    shrinkage is another figure, the rows' mean of |x̂| / |x|, which falls with whatever is left unexplained.

    Examples
    --------
    >>> import numpy as np
    >>> from retell.metrics import shrinkage
    >>> x = np.array([[1.0, -2.0], [-1.0, 2.0]])
    >>> shrinkage(x, 0.75 * x)
    0.75
    """
    x, x_hat = _pair(x, x_hat)
    seen = ~np.isnan(x)
    x, x_hat = np.where(seen, x, 0.0), np.where(seen, x_hat, 0.0)
    along = float(np.einsum("nd,nd->", x, x_hat, dtype=float))
    return float(np.einsum("nd,nd->", x_hat, x_hat, dtype=float)) / along if along else math.nan


def _pair(x: Any, x_hat: Any) -> tuple[Array, Array]:
    """Rows and their reconstructions, as floats whose sums of many do not overflow: float32 at least."""
    if issparse(x) or issparse(x_hat):
        raise ValueError("x and x_hat must be dense, as a reconstruction is: give toarray() of what is sparse")
    x, x_hat = _rows(x, "x"), _rows(x_hat, "x_hat")
    if x.shape != x_hat.shape:
        raise ValueError(f"x and x_hat must be of one shape, got {x.shape} and {x_hat.shape}")
    x, x_hat = (some.astype(np.result_type(some.dtype, np.float32), copy=False) for some in (x, x_hat))
    lost = np.isnan(x_hat) & ~np.isnan(x)
    if lost.any():
        row, column = np.argwhere(lost)[0]
        raise ValueError(
            f"x_hat is NaN where x is not, in {lost.sum():,} cells, first in row {row}, column {column}: only a cell of"
            " x may be unseen"
        )
    return x, x_hat


def _rows(some: Any, name: str) -> Any:
    """An array or a scipy.sparse, once it is known to hold rows of numbers."""
    rows = some if issparse(some) else np.asarray(as_numpy(some))
    if rows.dtype.kind not in "biuf" or rows.ndim != 2 or not rows.shape[0]:
        got = f"shape {rows.shape} of {rows.dtype}" if rows.ndim else type(some).__name__
        raise ValueError(f"{name} must be rows of numbers, an array of shape (N, columns), got {got}")
    return rows


def _active(h: Any) -> Array:
    """In how many rows each unit (K,) is not 0."""
    if issparse(h):
        entries = h.tocoo()
        return np.bincount(entries.coords[1][entries.data != 0], minlength=h.shape[1])
    counts: Array = np.count_nonzero(h, axis=0)
    return counts


def _row_errors(x: Array, x_hat: Array) -> Array:
    errors: Array = np.nansum((x - x_hat) ** 2, axis=1)
    return errors


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
        self.error += float(_row_errors(x, x_hat).sum())

    def see(self, x: Array) -> None:
        """Rows (N, D) alone: how much there is to explain."""
        off, count = x - self.centre, len(x)
        squares = np.einsum("nd,nd->d", off, off)
        if not np.isfinite(squares).all():  # holes, which are slower
            seen = ~np.isnan(x)
            off, count = np.where(seen, off, 0.0), seen.sum(0)
            squares = np.einsum("nd,nd->d", off, off)
        self.count = self.count + count
        self.first, self.second = self.first + off.sum(0), self.second + squares

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
