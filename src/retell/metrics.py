"""Pure functions of rows and their reconstructions; NaN in x is an unseen cell and does not count."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["explained_variance", "row_errors"]

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
    mean = np.where(seen, x, 0.0).sum(0) / np.maximum(seen.sum(0), 1)
    total = np.nansum((x - mean) ** 2)
    error = row_errors(x, x_hat).sum()
    if total == 0:
        return 1.0 if error == 0 else 0.0
    return float(1 - error / total)
