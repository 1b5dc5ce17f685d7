"""The leading eigenvectors of a covariance that is too large to be held.

Subspace iteration from random directions Q (D, M), M a little more than are wanted: Q <- orth(S Q), where
S Q = Σ_n (x_n - c)((x_n - c)ᵀ Q) / n needs the rows a block at a time and O(D M) memory; at the end the
eigenvectors of Qᵀ S Q (Halko, Martinsson & Tropp 2011).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from retell.scaled import Rows
from retell.solvers.exact import Spectrum, signs

__all__ = ["READS", "sketch"]

Array = npt.NDArray[Any]

READS = 4  # of the rows: products with S


def sketch(x: Rows, centre: Array, variances: Array, n_axes: int, generator: torch.Generator) -> Spectrum:
    """The first axes of the scaled rows' covariance; the rows are read four times.

    Parameters
    ----------
    x : Rows of shape (N, D)
        Without holes.
    centre, variances : ndarray of shape (D,)
        Of the scaled rows' columns.
    n_axes : int
    generator : torch.Generator
        Of the first directions.
    """
    width = n_axes + max(10, n_axes // 2)
    Q = torch.empty(x.shape[1], width, dtype=torch.float64).normal_(generator=generator).numpy()
    Q = np.linalg.qr(Q)[0]
    image = _times(x, centre, Q)
    for _ in range(READS - 1):
        Q = np.linalg.qr(image)[0]
        image = _times(x, centre, Q)
    values, turn = np.linalg.eigh(Q.T @ image)
    turn = turn[:, ::-1][:, :n_axes]
    axes = Q @ turn
    sign = signs(axes)
    return Spectrum(None, variances, np.maximum(values[::-1][:n_axes], 0.0), axes * sign, image @ turn * sign)


def _times(x: Rows, centre: Array, Q: Array) -> Array:
    """S Q (D, M)."""
    product = np.zeros_like(Q)
    for block in x.blocks():
        block -= centre
        product += block.T @ (block @ Q)
    return product / len(x)
