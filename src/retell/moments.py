"""One pass over the rows: all that a scaling, a start and a closed form need to know of them.

    n S = Σ_b [ Σ_{i in b} (x_i - m_b)(x_i - m_b)ᵀ + n_b (m_b - m)(m_b - m)ᵀ ]

b are blocks of rows, m_b their means. Within a block products are exact to the digits of their type, sums over
blocks are float64. Several threads sum a stretch of the rows each, of a size that the rows' alone decides.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy.linalg.blas import dsyrk, ssyrk

from retell.rows.arrays import check_finite
from retell.rows.blocks import blocks, in_memory, rows_a_block
from retell.scaling import ROUNDING, Scaling, robust_moments, without_rounding
from retell.spread import WIDE, calm, power_of_two
from retell.spread import spread as spread_out

__all__ = ["Moments"]

Array = npt.NDArray[Any]

SQUARES = {"float32": (1e-30, 1e30), "float64": (1e-200, 1e200)}  # variances between which no product is lost
STRETCHES = 8  # that several threads take in turn
HELD = 2**21  # cells of the sums of all stretches


@dataclass(frozen=True)
class Moments:
    """What one pass has found.

    Parameters
    ----------
    mean, spread : ndarray of shape (D,)
        Of the seen cells, in the rows' own units.
    low, high : ndarray of shape (D,)
        The range of the seen cells; NaN where there are none or the range was not asked for.
    S : ndarray of shape (D, D) or None
        Covariance with weight 1/n; None if it was not asked for, where rows have holes, or squares overflow.
    holes : bool
    unseen : ndarray of shape (D,)
        Whether a column has no seen cell.
    kept : ndarray of shape (M, D)
        The rows that were asked for, as given.
    """

    mean: Array
    spread: Array
    low: Array
    high: Array
    S: Array | None
    holes: bool
    unseen: Array
    kept: Array

    @classmethod
    def of(
        cls, rows: Array, keep: Array, names: Any = None, *, covariance: bool = True, extent: bool = True,
        products: npt.DTypeLike = np.float64, every: int = 1,
    ) -> Moments:  # fmt: skip
        """Read the rows once; three times more where they have holes, or values whose squares overflow.

        Parameters
        ----------
        rows : ndarray of shape (N, D)
            NaN where unseen.
        keep : ndarray of shape (M,)
            Numbers of rows to keep, ascending.
        names : sequence of str, optional
            The columns' names, for messages.
        covariance, extent : bool
            Whether S, and the range, are wanted.
        products : dtype
            float64, or float32: half the time, and S right to some 1e-8 of its largest eigenvalue.
        every : int, default=1
            Of so many rows one is enough for the correlations in S; its variances are of all.

        Raises
        ------
        ValueError
            If a cell is infinite.
        """
        asked = _Asked(keep, names, covariance, extent, np.dtype(products), every)
        kept = np.empty((len(keep), rows.shape[1]), rows.dtype)
        found = _looked(rows, asked, kept)
        unseen = np.zeros(rows.shape[1], bool)
        if found.sound:
            mean, spread, S = found.sums.moments()
        if not found.sound or not found.sums.safe(spread):
            (mean, spread, unseen), S = robust_moments(rows), None
        elif covariance and every > 1:
            S = _with_variances(found.some.moments()[2], spread**2)
        return cls(mean, spread, found.low, found.high, S, found.holes, unseen, kept)

    def scaled(self, rows: Array, scaling: Scaling) -> Array:
        """The second moments (D, D) of the scaled rows about the scaling's centre; rows are read only without S."""
        if self.S is None:
            sums = _Sums(rows.shape[1])
            for _, block in blocks(rows):
                sums.add(scaling.to(block))
            mean, _, S = sums.moments()
            off = mean - scaling.centre
        else:
            alike = (scaling.factor == scaling.factor[0]).all()
            S = self.S / (scaling.factor[0] ** 2 if alike else np.outer(scaling.factor, scaling.factor))
            off = (self.mean - scaling.shift) / scaling.factor - scaling.centre
        assert S is not None
        return S + np.outer(off, off) if off.any() else S


class _Asked(NamedTuple):
    """What is asked of the rows, as `Moments.of` says it."""

    keep: Array
    names: Any
    covariance: bool
    extent: bool
    products: np.dtype[Any]
    every: int


class _Look:
    """What a stretch of the rows has shown."""

    def __init__(self, width: int, asked: _Asked, *, shared: bool) -> None:
        whole = asked.covariance and asked.every == 1
        self.asked, self.sound, self.holes = asked, True, False
        self.sums = _Sums(width, asked.products, covariance=whole, shared=shared)
        self.some = _Sums(width, asked.products, covariance=asked.covariance and not whole, shared=shared)
        self.low, self.high = np.full(width, np.nan), np.full(width, np.nan)

    def add(self, start: int, block: Array, kept: Array) -> None:
        """Look at the rows (n, D) from the one with the number `start` on."""
        asked = self.asked
        self.sound = self.sound and self.sums.add(block)
        if self.sound and asked.covariance and asked.every > 1:
            self.some.add(block[-start % asked.every :: asked.every])
        if not self.sound:
            check_finite(block, asked.names, first=start)
            self.holes = self.holes or bool(np.isnan(block).any())
        if asked.extent:
            self._extend(np.fmin.reduce(block, 0), np.fmax.reduce(block, 0))
        here = slice(*np.searchsorted(asked.keep, [start, start + len(block)]))
        block.take(asked.keep[here] - start, axis=0, out=kept[here], mode="clip")

    def join(self, other: _Look) -> None:
        """Take in what the next stretch has shown."""
        self.sound, self.holes = self.sound and other.sound, self.holes or other.holes
        self.sums.join(other.sums)
        self.some.join(other.some)
        self._extend(other.low, other.high)

    def _extend(self, low: Array, high: Array) -> None:
        self.low, self.high = np.fmin(self.low, low), np.fmax(self.high, high)


def _looked(rows: Array, asked: _Asked, kept: Array) -> _Look:
    """One look at all rows, by several threads where that is faster than products on several."""
    n, width = rows.shape
    size, looks = rows_a_block(width), {}  # type: int, dict[int, _Look]
    most = min(STRETCHES, n // size, HELD // width**2) if in_memory(rows) else 1
    most = power_of_two(most)  # that two threads share evenly
    shared = most > 1 and (width < WIDE or torch.get_num_threads() <= most)
    if asked.products == np.float32:
        size = max(size, 6 * width) if shared else 2 * size  # to add up (D, D) products takes as long as some rows

    def look(i: int, j: int) -> None:
        found = looks[i] = _Look(width, asked, shared=shared)
        for start, block in blocks(rows, size, i, j):
            found.add(start, block, kept)
        found.sums.room = found.some.room = np.empty((0, width))  # held by so many only as there are threads

    with calm(1) if shared else nullcontext():
        spread_out(lambda: look, n, -(-n // most) if shared else n, enough=1)
    first, *others = (looks[i] for i in sorted(looks))
    for other in others:
        first.join(other)
    return first


class _Sums:
    """Sums of products, a block at a time.

    Parameters
    ----------
    width : int
        D.
    products : dtype
        float32 or float64.
    covariance : bool, default=True
        Whether products of different columns are wanted.
    shared : bool, default=False
        Whether other threads are at work, which SciPy's products would keep waiting.
    """

    def __init__(
        self, width: int, products: npt.DTypeLike = np.float64, *, covariance: bool = True, shared: bool = False
    ) -> None:
        self.products, self.covariance, self.shared = np.dtype(products), covariance, shared
        self.within = np.zeros((width, width) if covariance else width, order="F")
        self.sizes: list[int] = []
        self.means: list[Array] = []
        self.about: list[Array] = []  # what was subtracted: the means, rounded
        self.room = np.empty((0, width), products)
        self.one = np.zeros(self.within.shape, products, order="F")  # of one block
        self.ones = np.empty(0, np.float32)
        self.vanished = False

    def add(self, block: Array) -> bool:
        """Add rows (n, D); False, with sums that are of no use, if a value or a sum is not finite."""
        if not len(block):
            return True
        with np.errstate(over="ignore", invalid="ignore"):
            mean = self._mean(block)
            if not np.isfinite(mean).all():
                return False
            about = mean.astype(self.products)
            if len(block) > len(self.room):
                self.room = np.empty(block.shape, self.products)
            x = np.subtract(block, about, out=self.room[: len(block)])
            if block.dtype == np.float64 or self.products == np.float32:  # a first mean far from zero has lost digits
                mean = about + self._mean(x)
            self._multiply(x)
        still = np.flatnonzero((np.diag(self.within) if self.covariance else self.within) == 0)
        self.vanished = self.vanished or bool(x.take(still, axis=1).any())
        self.sizes.append(len(block))
        self.means.append(mean)
        self.about.append(about)
        return True

    def join(self, other: _Sums) -> None:
        """Add the sums over other rows."""
        self.within += other.within
        self.vanished = self.vanished or other.vanished
        self.sizes += other.sizes
        self.means += other.means
        self.about += other.about

    def safe(self, spread: Array) -> bool:
        """Whether no square has vanished or overflowed on the way to these standard deviations (D,)."""
        means = np.array(self.means)
        apart = np.abs(means - means[0]).max(0) > ROUNDING * np.abs(means[0])
        least, most = np.sqrt(SQUARES[self.products.name])
        sound = np.where(spread == 0, ~apart, (spread > least) & (spread < most))
        return bool(sound.all() and not self.vanished)

    def moments(self) -> tuple[Array, Array, Array | None]:
        """Mean and spread (D,), and the covariance (D, D) if there is one."""
        with np.errstate(over="ignore", invalid="ignore"):
            return self._moments()

    def _moments(self) -> tuple[Array, Array, Array | None]:
        sizes = np.array(self.sizes, float)[:, None]
        means, n = np.array(self.means), sizes.sum()
        mean = means[0] + (sizes * (means - means[0])).sum(0) / n
        between, rounded = np.sqrt(sizes) * (means - mean), np.sqrt(sizes) * (means - np.array(self.about))
        if not self.covariance:
            variance = (self.within + (between**2).sum(0) - (rounded**2).sum(0)) / n
            return mean, without_rounding(mean, np.sqrt(np.maximum(variance, 0.0))), None
        lower = np.triu(self.within.T).T if self.shared else self.within
        for sign, some in ((1.0, between), (-1.0, rounded)):
            if some.any():
                own = lower is not self.within
                lower = dsyrk(sign, some.T, beta=1.0, c=lower, overwrite_c=own, lower=1)
        S = lower + lower.T
        S /= n
        S[np.diag_indices_from(S)] /= 2
        spread = without_rounding(mean, np.sqrt(np.maximum(np.diag(S), 0.0)))
        constant = spread == 0
        S[constant], S[:, constant] = 0.0, 0.0
        return mean, spread, S

    def _mean(self, x: Array) -> Array:
        """The mean of rows (n, D), summed as their products are."""
        if self.products == np.float64:
            total = np.einsum("nd->d", x, dtype=float)  # faster than x.sum
        else:
            if len(self.ones) < len(x):
                self.ones = np.ones(len(x), np.float32)
            total = self.ones[: len(x)] @ x
        mean: Array = np.divide(total, len(x), dtype=float)
        return mean

    def _multiply(self, x: Array) -> None:
        if not self.covariance:
            self.within += np.einsum("nd,nd->d", x, x, dtype=float)
        elif self.shared:
            self.within += np.matmul(x.T, x, out=self.one.T)
        elif self.products == np.float64:
            self.within = dsyrk(1.0, x.T, beta=1.0, c=self.within, overwrite_c=1, lower=1)
        else:
            self.one = ssyrk(1.0, x.T, beta=0.0, c=self.one, overwrite_c=1, lower=1)
            self.within += self.one


def _with_variances(S: Array | None, variances: Array) -> Array:
    """A covariance (D, D) with the same correlations and these variances (D,)."""
    assert S is not None
    root = np.sqrt(variances / np.where(np.diag(S) > 0, np.diag(S), 1.0))
    S = S * np.outer(root, root)
    S[np.diag_indices_from(S)] = variances
    return S
