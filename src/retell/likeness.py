"""Whether rows look like those of a fit, from three numbers and a few of the rows.

    r_n = sqrt(mean_d (x_nd - centre_d)²)     over seen cells, in the scaled space

Of the training rows their 1 % and 99 % quantiles and their root mean square are kept. Single rows may be as strange as
they like: that is for `score_samples` to tell.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from retell.notice import warn
from retell.rows.blocks import take
from retell.scaling import Scaling

__all__ = ["Norms", "joined", "norms_of", "warn_unlike"]

Array = npt.NDArray[Any]
Norms = tuple[float, float, float]
"""Low and high quantile, and root mean square, of the rows' r."""

FEW = 10  # rows of a fit that tell nothing of others
FEWEST, MOST, CELLS = 32, 256, 2**15  # rows without which nothing is said; rows, and cells, that are enough to tell
BEYOND = 3.0  # times the range of the training rows, either way, that most rows must leave
FAR = 3.0  # root mean squares of the training rows by which the medians must be off


def norms_of(x: Array, centre: Array) -> Norms | None:
    """Of scaled rows (N, D), NaN where unseen; None where they are too few to tell of others."""
    r = _sizes(x - centre)
    if len(r) < FEW:
        return None
    low, high = np.quantile(r, (0.01, 0.99))
    return float(low), float(high), float(np.sqrt((r**2).mean()))


def joined(one: Norms | None, other: Norms | None, share: float) -> Norms | None:
    """Norms of rows of which so large a share have the other ones."""
    if one is None or other is None:
        return one or other
    square = (1 - share) * one[2] ** 2 + share * other[2] ** 2
    return min(one[0], other[0]), max(one[1], other[1]), math.sqrt(square)


def warn_unlike(rows: Array, scaling: Scaling, norms: Norms | None) -> None:
    """Warn, in a sentence, where most of some rows (N, D) in their own units, or their medians, are far from the fit's.

    Evenly spaced rows are looked at, at most 256; of fewer than 32 nothing is said.
    """
    if norms is None or len(rows) < FEWEST:
        return
    low, high, usual = norms
    step = -(-len(rows) // max(FEWEST, min(MOST, CELLS // rows.shape[1])))
    with np.errstate(over="ignore", invalid="ignore"):
        off = scaling.to(take(rows, np.arange(0, len(rows), step))) - scaling.centre
        off[~np.isfinite(off)] = np.nan  # what is infinite is refused elsewhere, by name
        r, middle = _sizes(off), _middle(off)
    share = float(((r > BEYOND * high) | (r < low / BEYOND)).mean()) if len(r) else 0.0
    away = float(np.sqrt((middle**2).mean())) / usual if usual and len(middle) else 0.0
    if share > 0.5:
        said = f"most of them have {float(np.median(r)) / usual if usual else np.inf:.3g} times the norm"
    elif away > FAR:
        said = f"their columns' medians are {away:.3g} spreads away"
    else:
        return
    warn(
        f"these rows do not look like those of the fit, scaled as those were: {said}; give them in the units of the fit"
        " (retell.diagnose says more)",
    )


def _sizes(off: Array) -> Array:
    """r of the rows that have any cell."""
    sums, count = np.einsum("nd,nd->n", off, off), np.full(len(off), off.shape[1])
    if not np.isfinite(sums).all():  # holes, which are slower
        seen = ~np.isnan(off)
        sums, count = (np.where(seen, off, 0.0) ** 2).sum(1), seen.sum(1)
    sizes: Array = np.sqrt(sums[count > 0] / count[count > 0])
    return sizes


def _middle(off: Array) -> Array:
    """Medians of the columns that have any cell: a few strange rows do not move them."""
    seen = (~np.isnan(off)).sum(0)
    low, high, ordered = (seen - 1) // 2, seen // 2, np.sort(off, axis=0)  # several times as fast as np.median
    columns = np.flatnonzero(seen)
    middle: Array = (ordered[low[columns], columns] + ordered[high[columns], columns]) / 2
    return middle
