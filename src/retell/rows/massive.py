"""Rows of massive norm, a few of which outweigh all others in squares: of language models' first tokens, of errors.

    ‖x - m‖ > c median ‖x - m‖,     m the medians of the columns

Medians, because such rows move means; about m, because a fit does not change when all rows are moved. In the rows'
own units. Unseen cells count as the seen ones do on average.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from retell.rows.blocks import blocks, take
from retell.seeds import NORMS, generator, permutation

__all__ = ["Limit"]

Array = npt.NDArray[Any]

MOST, CELLS = 2**14, 2**22  # rows, and cells, that are enough for medians


@dataclass(frozen=True)
class Limit:
    """A distance from the middle beyond which rows are not fitted to.

    Parameters
    ----------
    middle : ndarray of shape (D,)
    median : float
        Of the rows' distances from there.
    multiple : float
        c.

    Examples
    --------
    >>> import numpy as np
    >>> from retell.rows.massive import Limit
    >>> rows = np.random.default_rng(0).normal(size=(100, 4))
    >>> rows[7] *= 1000
    >>> Limit.of(rows, 10).beyond(rows)
    array([7])
    """

    middle: Array
    median: float
    multiple: float

    @classmethod
    def of(cls, rows: Array, multiple: float) -> Self:
        """From rows drawn of all rows (N, D), always the same: evenly spaced ones could all be first tokens.

        Raises
        ------
        ValueError
            If more than half of the rows lie in one place.
        """
        n = min(len(rows), MOST, max(256, CELLS // rows.shape[1]))
        drawn = permutation(len(rows), generator(0, NORMS))[:n].sort().values.numpy()
        some = take(rows, drawn).astype(np.float64)
        seen = ~np.isnan(some).all(0)
        middle = np.zeros(rows.shape[1])
        middle[seen] = np.nanmedian(some[:, seen], axis=0)
        limit = cls(middle, float(np.median(cls(middle, 1.0, multiple).norms(some))), multiple)
        if limit.median == 0:
            raise ValueError(
                f"max_norm={multiple!r} is a multiple of the median distance of the rows from their middle, which is 0:"
                " more than half of the rows are the same; use max_norm=None"
            )
        return limit

    def norms(self, rows: Array) -> Array:
        """Distances (n,) from the middle."""
        off = rows - self.middle
        seen = ~np.isnan(off)
        squares = np.where(seen, off, 0.0) ** 2
        norms: Array = np.sqrt(squares.sum(1) * (rows.shape[1] / np.maximum(seen.sum(1), 1)))
        return norms

    def beyond(self, rows: Array) -> Array:
        """The numbers of the rows (N, D) that are further away."""
        most = self.multiple * self.median
        found = [first + np.flatnonzero(self.norms(block) > most) for first, block in blocks(rows)]
        return np.concatenate([np.arange(0), *found])
