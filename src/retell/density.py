"""log p(x, h): how likely a row and its code are, in nats.

log p(x | h) + log p(h),   x | h ~ N(x̂, diag s²),   h ~ N(m, C)

Beyond 1,024 units C is diagonal: that many units have more pairs than rows could tell of.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.linalg import eigh

from retell.padding import in_blocks, pad

__all__ = ["WIDE", "Density", "Tally", "noise"]

Array = npt.NDArray[Any]

WIDE = 1024  # units up to which their covariance is held
FLOOR = 1e-6  # the least variance, in the scaled space: a thousandth of a standard deviation


@dataclass(frozen=True)
class Density:
    """Normal noise with a variance per column, and a Normal on the codes.

    Parameters
    ----------
    noise : ndarray of shape (D,)
        Variances s² of the residuals, scaled space.
    code_mean : ndarray of shape (K,)
    whiten : ndarray of shape (K, K), or (K,)
        A with AᵀA = C⁻¹, or its diagonal where it has nothing else.
    """

    noise: Array
    code_mean: Array
    whiten: Array

    @classmethod
    def fit(cls, residuals: Array, h: Array) -> Density:
        """From residuals (M, D) of rows held out, NaN where unseen, and codes (N, K) of the training rows.

        Variances below 1e-6 (scaled space; for codes, of the largest) count as that.
        """
        codes = Tally(h.shape[1])
        codes.add(h)
        return cls.of(noise(residuals), codes.mean, codes.covariance)

    @classmethod
    def of(cls, noise: Array, code_mean: Array, code_covariance: Array) -> Density:
        """From the residuals' variances (D,), and the mean (K,) and covariance (K, K) or variances (K,) of codes."""
        alone = code_covariance.ndim == 1
        values, axes = (code_covariance, None) if alone else eigh(code_covariance)
        values = np.maximum(values, FLOOR * max(values.max(), FLOOR))
        whiten = 1 / np.sqrt(values) if axes is None else (axes / np.sqrt(values)).T
        return cls(np.maximum(noise, FLOOR), code_mean, whiten)

    def joined(self, other: Density, share: float) -> Density:
        """That of rows of which so large a share, in (0, 1), have the other one."""
        apart, (mine, theirs) = other.code_mean - self.code_mean, (one.covariance for one in (self, other))
        between = share * (1 - share) * (apart**2 if self.diagonal else np.outer(apart, apart))
        return Density.of(
            (1 - share) * self.noise + share * other.noise,
            self.code_mean + share * apart,
            (1 - share) * mine + share * theirs + between,
        )

    @property
    def covariance(self) -> Array:
        """C (K, K) of the codes, or its diagonal (K,)."""
        spread = 1 / self.whiten if self.diagonal else np.linalg.inv(self.whiten)
        covariance: Array = spread**2 if self.diagonal else spread @ spread.T
        return covariance

    @property
    def diagonal(self) -> bool:
        """Whether the units count as independent."""
        return self.whiten.ndim == 1

    def log_rows(self, residuals: Array, h: Array) -> Array:
        """log p(x, h) per row (N,), scaled space; unseen cells say nothing."""
        cells = -0.5 * (residuals**2 / self.noise + np.log(2 * math.pi * self.noise))
        z, log_volume = self._whitened(np.asarray(h, np.float64) - self.code_mean)
        codes = -0.5 * (z**2).sum(1) - 0.5 * h.shape[1] * math.log(2 * math.pi) + log_volume
        result: Array = np.nansum(cells, 1) + codes
        return result

    def _whitened(self, off: Array) -> tuple[Array, float]:
        """Codes (N, K) less their mean as N(0, I), and log det A."""
        if self.diagonal:
            return off * self.whiten, float(np.log(self.whiten).sum())
        whiten = pad(torch.from_numpy(self.whiten))
        z = in_blocks(lambda block: block @ whiten.T, off, off.shape[1], like=whiten)
        return z, float(np.linalg.slogdet(self.whiten)[1])


class Tally:
    """Mean and covariance, or beyond 1,024 units variances, of codes that come in blocks.

    Parameters
    ----------
    n_units : int
    """

    def __init__(self, n_units: int) -> None:
        self.count, self.mean = 0, np.zeros(n_units)
        self.about = np.zeros((n_units, n_units) if n_units <= WIDE else n_units)

    def add(self, h: Array) -> None:
        """Codes (n, K)."""
        h = np.asarray(h, np.float64)
        mean = h.mean(0)
        off, apart = h - mean, mean - self.mean
        share = len(h) / (self.count + len(h))
        between = apart if self.about.ndim == 1 else apart[:, None]
        self.about += self._squares(off) + self.count * share * between * apart
        self.mean = mean if not self.count else self.mean + share * apart
        self.count += len(h)

    def _squares(self, off: Array) -> Array:
        return off.T @ off if self.about.ndim == 2 else np.einsum("nk,nk->k", off, off)

    @property
    def covariance(self) -> Array:
        """(K, K), or variances (K,)."""
        covariance: Array = self.about / self.count
        return covariance

    @property
    def mean_square(self) -> Array:
        """(K,)"""
        return self.mean**2 + (self.covariance if self.about.ndim == 1 else np.diag(self.covariance))


def noise(residuals: Array) -> Array:
    """The columns' mean squares (D,) over seen cells; where there are none, that of all cells."""
    seen = ~np.isnan(residuals)
    squares = np.where(seen, residuals, 0.0) ** 2
    pooled = squares.sum() / max(seen.sum(), 1)
    count = seen.sum(0)
    result: Array = np.where(count > 0, squares.sum(0) / np.maximum(count, 1), pooled)
    return result
