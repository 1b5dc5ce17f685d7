"""log p(x, h): how likely a row and its code are, in nats.

log p(x | h) + log p(h),   x | h ~ N(x̂, diag s²),   h ~ N(m, C)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.linalg import eigh

from retell.inference import in_blocks, pad

__all__ = ["Density"]

Array = npt.NDArray[Any]

FLOOR = 1e-6  # the least variance, in the scaled space: a thousandth of a standard deviation


@dataclass(frozen=True)
class Density:
    """Normal noise with a variance per column, and a Normal on the codes.

    Parameters
    ----------
    noise : ndarray of shape (D,)
        Variances s² of the residuals, scaled space.
    code_mean : ndarray of shape (K,)
    whiten : ndarray of shape (K, K)
        A with AᵀA = C⁻¹.
    """

    noise: Array
    code_mean: Array
    whiten: Array

    @classmethod
    def fit(cls, residuals: Array, h: Array) -> Density:
        """From residuals (M, D) of rows held out, NaN where unseen, and codes (N, K) of the training rows.

        Variances below 1e-6 (scaled space; for codes, of the largest) count as that.
        """
        seen = ~np.isnan(residuals)
        squares = np.where(seen, residuals, 0.0) ** 2
        pooled = squares.sum() / max(seen.sum(), 1)
        count = seen.sum(0)
        noise = np.where(count > 0, squares.sum(0) / np.maximum(count, 1), pooled)
        h = np.asarray(h, np.float64)
        mean = h.mean(0)
        off = h - mean
        return cls.of(noise, mean, off.T @ off / len(h))

    @classmethod
    def of(cls, noise: Array, code_mean: Array, code_covariance: Array) -> Density:
        """From the residuals' variances (D,), and the mean (K,) and covariance (K, K) of the codes."""
        values, axes = eigh(code_covariance)
        values = np.maximum(values, FLOOR * max(values.max(), FLOOR))
        return cls(np.maximum(noise, FLOOR), code_mean, (axes / np.sqrt(values)).T)

    def log_rows(self, residuals: Array, h: Array) -> Array:
        """log p(x, h) per row (N,), scaled space; unseen cells say nothing."""
        cells = -0.5 * (residuals**2 / self.noise + np.log(2 * math.pi * self.noise))
        whiten = pad(torch.from_numpy(self.whiten))
        off = np.asarray(h, np.float64) - self.code_mean
        z = in_blocks(lambda block: block @ whiten.T, off, h.shape[1], like=whiten)
        log_volume = np.linalg.slogdet(self.whiten)[1]
        codes = -0.5 * (z**2).sum(1) - 0.5 * h.shape[1] * math.log(2 * math.pi) + log_volume
        result: Array = np.nansum(cells, 1) + codes
        return result
