"""What a row's unseen cells are, given its seen ones: factor analysis.

    x = centre + Λ z + e,   z ~ N(0, I),   e_j ~ N(0, ψ_j)

Expectation-maximisation over the seen cells (Rubin & Thayer 1982). Its covariance Λ Λᵀ + diag ψ is where
the linear path starts when rows have holes, and E[x | seen cells] completes a row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from retell.padding import in_blocks, pad

__all__ = ["Factors"]

Array = npt.NDArray[Any]

SAMPLE = 8192  # rows that are enough to fit to
CHUNK = 2048  # rows whose posteriors are held at a time
FLOOR = 1e-3  # the least ψ, of the columns' mean variance
MANY = 256  # columns from which on the axes alone are as good as the steps that follow them


@dataclass(frozen=True)
class Factors:
    """A factor model of scaled rows.

    Parameters
    ----------
    loadings : ndarray of shape (D, Q)
        Λ.
    noise : ndarray of shape (D,)
        ψ.
    """

    loadings: Array
    noise: Array

    @classmethod
    def fit(cls, x: Array, n_factors: int) -> Factors:
        """Fit Q factors to centred rows (N, D), NaN where unseen; evenly spaced rows if there are many."""
        x = x[:: -(-len(x) // SAMPLE)]
        seen = ~np.isnan(x)
        x = np.where(seen, x, 0.0)
        self = cls._start(x.T @ x / np.maximum(seen.T.astype(float) @ seen, 1), n_factors)
        # small fits can afford to converge
        for _ in range(60 if x.size * n_factors**2 < 1e7 else 20):
            self = self._improve(x, seen)
        return self

    @classmethod
    def from_covariance(cls, S: Array, values: Array, axes: Array) -> Factors:
        """Fit as many factors as there are axes (D, Q), S's first eigenvectors, where every cell was seen."""
        self = cls.from_axes(np.diag(S), values, axes)
        for _ in range(20 if len(S) <= MANY else 0):
            self = self._improve_full(S)
        return self

    @classmethod
    def from_axes(cls, variances: Array, values: Array, axes: Array) -> Factors:
        """Principal axes (D, Q) as factors, with what they leave of the columns' variances (D,) as noise."""
        rest = (variances.sum() - values.sum()) / max(len(variances) - len(values), 1)
        loadings = axes * np.sqrt(np.maximum(values - rest, FLOOR))
        return cls._floored(loadings, variances, (loadings**2).sum(1))

    @property
    def covariance(self) -> Array:
        """Λ Λᵀ + diag ψ (D, D)."""
        result: Array = self.loadings @ self.loadings.T + np.diag(self.noise)
        return result

    def complete(self, x: Array) -> Array:
        """Centred rows (N, D) with E[x_j | seen cells] in their unseen cells."""
        x = np.array(x, np.float64)
        holed = np.flatnonzero(np.isnan(x).any(1))
        for i in range(0, len(holed), CHUNK):
            rows = x[holed[i : i + CHUNK]]
            seen = ~np.isnan(rows)
            z = self._posterior(np.where(seen, rows, 0.0), seen.astype(float), _times)[1]
            x[holed[i : i + CHUNK]] = np.where(seen, rows, _times(z, self.loadings.T))
        return x

    @classmethod
    def _start(cls, S: Array, n_factors: int) -> Factors:
        """ψ_j = what the other columns leave unexplained, Λ = the leading directions above that noise."""
        unit = np.diag(S).mean() or 1.0
        values, axes = np.linalg.eigh(S)
        values = np.maximum(values, 1e-2 * unit)
        noise = 1 / ((axes / values) * axes).sum(1)
        root = np.sqrt(noise)
        values, axes = np.linalg.eigh((axes * values) @ axes.T / root[:, None] / root)
        loadings = root[:, None] * axes * np.sqrt(np.maximum(values - 1, 1e-3))
        return cls(loadings[:, ::-1][:, :n_factors], noise)

    def _posterior(
        self, x: Array, seen: Array, times: Callable[[Array, Array], Array] = np.matmul
    ) -> tuple[Array, Array]:
        """Covariance (N, Q, Q) and mean (N, Q) of z given seen cells; x is 0 where unseen."""
        weighted = self.loadings / self.noise[:, None]
        q = weighted.shape[1]
        outer = (weighted[:, :, None] * self.loadings[:, None, :]).reshape(-1, q * q)
        P = np.linalg.inv(times(seen, outer).reshape(-1, q, q) + np.eye(q))
        return P, np.einsum("nij,nj->ni", P, times(x, weighted))

    def _improve(self, x: Array, seen: Array) -> Factors:
        """One step of EM over the seen cells."""
        d, q = self.loadings.shape
        A, B = np.zeros((d, q * q)), np.zeros((d, q))
        for i in range(0, len(x), CHUNK):
            rows, there = x[i : i + CHUNK], seen[i : i + CHUNK].astype(float)
            P, z = self._posterior(rows, there)
            A += there.T @ (P + z[:, :, None] * z[:, None, :]).reshape(-1, q * q)
            B += rows.T @ z
        A = A.reshape(d, q, q) + 1e-6 * np.eye(q)
        loadings = np.linalg.solve(A, B[:, :, None])[:, :, 0]
        count = np.maximum(seen.sum(0), 1)
        return self._floored(loadings, (x**2).sum(0) / count, (loadings * B).sum(1) / count)

    def _improve_full(self, S: Array) -> Factors:
        """One step of EM where every cell is seen: the covariance says all."""
        weighted = self.loadings / self.noise[:, None]
        P = np.linalg.inv(weighted.T @ self.loadings + np.eye(weighted.shape[1]))
        B = S @ weighted @ P
        loadings = np.linalg.solve(P + P @ weighted.T @ B + 1e-9 * np.eye(len(P)), B.T).T
        return self._floored(loadings, np.diag(S), (loadings * B).sum(1))

    @staticmethod
    def _floored(loadings: Array, variance: Array, explained: Array) -> Factors:
        return Factors(loadings, np.maximum(variance - explained, FLOOR * (variance.mean() or 1.0)))


def _times(rows: Array, matrix: Array) -> Array:
    """rows @ matrix, where a row's bits do not depend on the other rows."""
    wide = pad(torch.from_numpy(matrix))
    return in_blocks(lambda block: block @ wide, rows, matrix.shape[1], like=wide)
