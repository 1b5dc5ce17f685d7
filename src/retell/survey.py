"""What the rows say before a fit: scaling, covariance, factors, and the rows that will judge."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import torch

from retell import auto
from retell.activations import Identity
from retell.corruptions import Mask
from retell.factors import MANY, Factors
from retell.known import FORGETFUL, Known
from retell.metrics import explained_variance, share
from retell.moments import Moments
from retell.notice import warn
from retell.rows.arrays import check_support, column_labels
from retell.rows.blocks import blocks, in_memory, spaced, take
from retell.scaled import Rows
from retell.scaling import Scaling
from retell.seeds import SKETCH, generator
from retell.settings import Settings
from retell.solvers.exact import Spectrum, mean_squares, times
from retell.solvers.sketch import sketch
from retell.turning import AS_THEY_ARE, Turning

__all__ = ["Survey", "asked", "enough", "survey"]

Array = npt.NDArray[Any]

MOST_FACTORS = 32  # a row's posterior is a matrix of as many rows and columns
WIDE = 4096  # columns up to which their covariance is held
LONG = 2**29  # products of two cells from which on float32 saves time that can be felt
SAMPLE = 2**16  # rows that are enough for a covariance of which factors are made, and nothing else
RESOLVED = 1e-2  # of the largest eigenvalue: what float32 products give to six digits


def enough(width: int) -> int:
    """How many rows of so many columns judge a fit, or start one."""
    return min(2048, max(256, 2**20 // width))


@dataclass
class Survey:
    """The rows, and what one look at them has found.

    Parameters
    ----------
    rows : ndarray of shape (N, D)
        As given, checked, NaN where unseen.
    holes : bool
    scaling : Scaling
    spectrum : Spectrum
        Of the scaled rows' covariance: the factors' where rows have holes.
    factors : Factors
        Completes rows.
    judged : ndarray of shape (M,)
        Numbers of the rows that judge: held out, or of all; evenly spaced if they are many.
    kept : ndarray of shape (M, D)
        Those rows, as given.
    known : Known
        Keeps what is taken of the rows, where several fits take the same.
    turning : Turning
        Of the scaled rows, while a codec learns; what else is told here is of rows that are not turned.
    """

    rows: Array
    holes: bool
    scaling: Scaling
    spectrum: Spectrum
    factors: Factors
    judged: Array
    kept: Array
    known: Known = FORGETFUL
    turning: Turning = AS_THEY_ARE

    @cached_property
    def x_judged(self) -> Array:
        """The rows that judge, scaled."""
        return self.turning(self.scaling.to(self.kept))

    @cached_property
    def variation(self) -> float:
        """Σ (x - mean)² over the rows that judge, a row; where they have no holes."""
        return float(mean_squares(self.x_judged - self.x_judged.mean(0)).sum())

    def sample(self, least: int = 0) -> Array:
        """Evenly spaced rows of all, scaled, enough for a start, and at least so many if there are."""
        return self.some(_spaced(self.rows, least))

    def some(self, numbers: Array) -> Array:
        """The rows with these numbers, scaled."""
        these = self.rows, self.scaling, self.turning
        *_, found = self.known.once(  # with these, or others might come to have their ids
            ("some", *map(id, these), numbers.tobytes()),
            lambda: (*these, self.turning(self.scaling.to(take(self.rows, numbers)))),
        )
        return found

    def pca_score(self, n_units: int) -> float:
        """R² on the rows that judge of PCA with so many components, fitted to all rows."""
        if self.spectrum.axes.shape[1] < min(n_units, self.rows.shape[1]):  # not looked for: all columns leave nothing
            return share(0.0, self.variation)
        axes, x, centre = self.spectrum.axes[:, :n_units], self.x_judged, self.scaling.centre
        if self.holes:
            return explained_variance(x, times(times(np.nan_to_num(x - centre), axes), axes.T) + centre)
        off = x - centre
        kept = times(off, axes)
        return share(float(mean_squares(off).sum() - mean_squares(kept).sum()), self.variation)


def survey(
    rows: Array, settings: Settings, parts: Any, judged: Array, seed: int, names: Any = None, *,
    settled: tuple[Scaling, Factors] | None = None, known: Known = FORGETFUL,
) -> Survey:  # fmt: skip
    """Look at the rows.

    Once, where they have no holes; once more if float32 products turn out to be too coarse, and four times more
    for randomised axes where there are more than 4,096 columns. Where neither start nor closed form nor a comparison
    with PCA looks at the covariance, as for a sparse dictionary of more units than columns, it is that of some rows.

    Parameters
    ----------
    rows : ndarray of shape (N, D)
        NaN where unseen.
    settings : Settings
    parts : Parts
    judged : ndarray of shape (M,)
        Numbers of the rows to keep, ascending.
    seed : int
        Of randomised axes.
    names : sequence of str, optional
        The columns' names, for messages.
    settled : (Scaling, Factors), optional
        What an earlier fit has settled; factors without any loadings were never looked for.
    known : Known, optional
        Where the survey keeps what is taken of the rows.

    Raises
    ------
    ValueError
        If a cell is infinite or outside the loss's support, or none holds a value.
    """
    wanted, loss = _Wanted.of(settings, parts, rows), parts.objective.loss
    bounded = bool(np.isfinite(loss.support).any())
    found = Moments.of(
        rows, judged, names, covariance=not wanted.lean, extent=bounded, products=wanted.products, every=wanted.every
    )
    if bounded and (np.nanmin(found.low, initial=np.inf) < loss.support[0] or
                    np.nanmax(found.high, initial=-np.inf) > loss.support[1]):  # fmt: skip
        for start, block in blocks(rows):
            check_support(block, loss.support, loss, names, first=start)
    if settled is None:
        _check_seen(found, names)
    scaling = Scaling.of(found.mean, found.spread, settings.scale, bounded=bounded) if settled is None else settled[0]
    old = settled[1] if settled is not None and settled[1].loadings.size else None
    if found.holes:
        factors = old or Factors.fit(scaling.to(take(rows, _spaced(rows))) - scaling.centre, wanted.n_factors)
        return Survey(rows, True, scaling, Spectrum.of(factors.covariance), factors, judged, found.kept, known)
    if wanted.lean:
        x, draw = Rows(rows, scaling, torch.zeros((), dtype=torch.float64)), generator(seed, SKETCH)
        spectrum = sketch(x, scaling.centre, (found.spread / scaling.factor) ** 2, wanted.n_axes, draw)
    else:
        spectrum = Spectrum.of(found.scaled(rows, scaling), wanted.n_axes)
    if wanted.products == np.float32 and not _is_resolved(spectrum):
        again = Moments.of(rows, judged[:0], names, extent=False)
        spectrum = Spectrum.of(again.scaled(rows, scaling), wanted.n_axes)
    factors = old or _factors(spectrum, wanted.n_factors)
    return Survey(rows, False, scaling, spectrum, factors, judged, found.kept, known)


def _check_seen(found: Moments, names: Any) -> None:
    """Refuse rows without any value; a column without one is worth a warning."""
    unseen = np.flatnonzero(found.unseen)
    if len(unseen) == len(found.mean):
        raise ValueError("no cell of the rows holds a value: there is nothing to learn from")
    if len(unseen):
        warn(
            f"{len(unseen)} of the {len(found.mean)} columns hold no value ({column_labels(unseen, names)}): nothing is"
            " learned of them, and their reconstruction is 0",
        )


def asked(settings: Settings, parts: Any, rows: Array) -> Hashable:
    """What of these a survey of the rows depends upon: where it is equal, so is the survey."""
    return _Wanted.of(settings, parts, rows), settings.scale, parts.objective.loss.support


class _Wanted(NamedTuple):
    """What is asked of the rows."""

    n_factors: int
    n_axes: int
    lean: bool
    """Whether the axes are found without a covariance."""
    every: int
    """Of how many rows one is enough for the covariance."""
    products: Any
    """Their type."""

    @classmethod
    def of(cls, settings: Settings, parts: Any, rows: Array) -> Self:
        given, width = settings.n_components, rows.shape[1]
        n_factors = max(1, min(given if isinstance(given, int) else MOST_FACTORS, MOST_FACTORS, width // 2))
        n_units, n_axes = auto.n_components(given, np.zeros(width)), width
        # PCA says nothing of more units than columns: where they are no linear map, only factors are wanted
        apart = n_units > width and not isinstance(parts.code_activation, Identity)
        if not isinstance(given, float):
            n_axes = n_factors if apart else min(width, max(n_factors, n_units))
        lean = width > WIDE and 8 * n_axes < width and not isinstance(parts.corruption, Mask)
        every = max(1, len(rows) // SAMPLE) if apart and width > MANY else 1
        single = settings.precision != "float64" and _is_long(rows) and not lean and every == 1
        return cls(n_factors, n_axes, lean, every, np.float32 if single else np.float64)


def _spaced(rows: Array, least: int = 0) -> Array:
    """Numbers of evenly spaced rows, enough for a start, and at least so many if there are."""
    return spaced(range(len(rows)), max(least, enough(rows.shape[1])))


def _is_long(rows: Array) -> bool:
    """Whether products in float32 are worth it; rows in a file are read once, so there is no second try."""
    return rows.dtype == np.float32 and in_memory(rows) and rows.size * rows.shape[1] >= LONG


def _is_resolved(spectrum: Spectrum) -> bool:
    """Whether all that is used of a spectrum is far above the rounding of float32 products."""
    values = spectrum.values
    return bool(min(values[-1], spectrum.variances.sum() - values.sum()) > RESOLVED * values[0])


def _factors(spectrum: Spectrum, n_factors: int) -> Factors:
    values, axes = spectrum.values[:n_factors], spectrum.axes[:, :n_factors]
    if spectrum.S is None:
        return Factors.from_axes(spectrum.variances, values, axes)
    return Factors.from_covariance(spectrum.S, values, axes)
