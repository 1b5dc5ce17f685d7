"""Active units as pairs (row, unit): a sparse code costs what its pairs cost, not N x K.

    x̂_n = Σ_j h_nj v_j          d_nj = e_n · v_j          Σ_n h_nj e_n  for each unit j

The first is a sum of the dictionary's rows; the last is the same sum, of the batch's rows, once the pairs are sorted
by unit. Of (N, K) matrices a block of rows exists at a time.
"""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csr_array
from torch import Tensor
from torch.nn import functional

__all__ = ["Block", "ByUnit", "Pairs", "Sum", "joined", "summed"]

Array = npt.NDArray[Any]


class Pairs(NamedTuple):
    """A sparse code of N rows, row by row.

    Parameters
    ----------
    starts : Tensor of shape (N + 1,), int32
        Where each row's pairs begin.
    units : Tensor of shape (M,), int32
    values : Tensor of shape (M,)
    """

    starts: Tensor
    units: Tensor
    values: Tensor

    def decode(self, dictionary: Tensor) -> Tensor:
        """Σ_j h_nj v_j (N, D), of the rows v_j of a dictionary (K, D)."""
        return _sums(dictionary, self.units, self.starts, self.values)

    def dots(self, rows: Tensor, dictionary: Tensor) -> Tensor:
        """rows_n · v_j for each pair (M,)."""
        shape = (len(rows), len(dictionary))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse CSR", category=UserWarning)  # that it is in beta
            pattern = torch.sparse_csr_tensor(
                self.starts, self.units, rows.new_zeros(len(self.units)), shape, check_invariants=False
            )
            dots: Tensor = torch.sparse.sampled_addmm(pattern, rows, dictionary.T, beta=0.0).values()
        return dots

    def between(self, i: int, j: int) -> tuple[slice, Pairs]:
        """Where the pairs of the rows from i up to j are, and they."""
        first, last = int(self.starts[i]), int(self.starts[j])
        there = slice(first, last)
        return there, Pairs(self.starts[i : j + 1] - first, self.units[there], self.values[there])

    def where(self, keep: Array) -> Pairs:
        """The pairs that are kept (M,), bool."""
        kept = np.zeros(len(keep) + 1, np.int32)
        np.cumsum(keep, out=kept[1:])
        which = torch.from_numpy(np.flatnonzero(keep))
        starts = torch.from_numpy(kept[self.starts.numpy()])
        return Pairs(starts, *(torch.index_select(some, 0, which) for some in self[1:]))


class ByUnit:
    """The pairs sorted by unit, once for all sums over rows.

    Parameters
    ----------
    pairs : Pairs
    n_units : int

    Attributes
    ----------
    starts : Tensor of shape (K + 1,), int32
        Where each unit's pairs begin.
    rows, order : Tensor of shape (M,), int32
        Of each pair its row, and its place among the pairs row by row.
    """

    def __init__(self, pairs: Pairs, n_units: int) -> None:
        shape, places = (len(pairs.starts) - 1, n_units), np.arange(len(pairs.units), dtype=np.int32)
        table = csr_array((places, pairs.units.numpy(), pairs.starts.numpy()), shape=shape).tocsc()
        self.starts, self.rows, self.order = map(torch.from_numpy, (table.indptr, table.indices, table.data))

    def sum(self, rows: Tensor, values: Tensor, first: int = 0, last: int | None = None) -> Sum:
        """Σ_n value_nj rows_n for each unit j, if it is from the first up to the last: 0 for others."""
        return Sum(self, rows, values, first, len(self.starts) - 1 if last is None else last)


class Sum(NamedTuple):
    """Rows weighted by pairs, to be summed unit by unit."""

    by: ByUnit
    rows: Tensor
    values: Tensor
    first: int
    last: int

    def between(self, u: int, v: int) -> Tensor:
        """The sums of the units from u up to v, which are among those (v - u, D)."""
        starts = self.by.starts[u : v + 1]
        i, j = int(starts[0]), int(starts[-1])
        weights = torch.index_select(self.values, 0, self.by.order[i:j])
        return _sums(self.rows, self.by.rows[i:j], starts - i, weights)


def summed(sums: list[Sum], u: int, v: int) -> Tensor:
    """What the sums come to at the units from u up to v (v - u, D)."""
    if len(sums) == 1:
        return sums[0].between(u, v)
    total = sums[0].rows.new_zeros(v - u, sums[0].rows.shape[1], dtype=sums[0].values.dtype)
    for some in sums:
        low, high = max(u, some.first), min(v, some.last)
        if low < high:
            total[low - u : high - u] += some.between(low, high)
    return total


def joined(parts: list[Pairs]) -> Pairs:
    """The pairs of rows that follow each other."""
    ends = np.cumsum([0, *(len(part.units) for part in parts)]).tolist()
    starts = [part.starts[:-1] + end for part, end in zip(parts, ends, strict=False)]
    units, values = (torch.cat([part[i] for part in parts]) for i in (1, 2))
    return Pairs(torch.cat([*starts, starts[0].new_tensor(ends[-1:])]), units, values)


class Block:
    """Memory for the (n, K) cells of some rows, and for which of them are wanted.

    Parameters
    ----------
    n, width : int
        Most rows, and K.
    dtype : torch.dtype
    """

    def __init__(self, n: int, width: int, dtype: torch.dtype) -> None:
        self.cells = torch.empty(n, width, dtype=dtype)
        self.wanted = np.empty((n, width), bool)

    def above(self, a: Tensor, least: Tensor) -> Pairs:
        """The cells of a (n, K) that are at least `least` (n, 1), (1, K) or (1, 1)."""
        if a.dtype != torch.bfloat16 or bool((least > 0).all()):
            return _pairs(a, self._at_least(a, ordered(least)))
        wanted = self.wanted[: len(a)]
        torch.ge(a, least, out=torch.from_numpy(wanted))
        return _pairs(a, np.flatnonzero(wanted))

    def largest(self, a: Tensor, k: int) -> Pairs:
        """The k largest cells of each row of a (n, K) that are above 0; of equal ones the first.

        The k largest of the maxima of groups belong to k cells, so the k-th of them is no more than the k-th cell:
        few cells more than k are above it.
        """
        n, width = a.shape
        size = max(1, width // max(4 * k, 128))
        n_groups = width // size
        numbers = torch.from_numpy(ordered(a))
        maxima = numbers[:, : size * n_groups].view(n, size, n_groups).amax(1).numpy()
        least = np.partition(maxima, n_groups - k, axis=1)[:, n_groups - k, None]
        cells = self._at_least(a, least.clip(min=ordered(a.new_tensor(torch.finfo(a.dtype).tiny))))
        return _pairs(a, cells[_first(numbers.view(-1).numpy()[cells], _starts(cells, n, width), k)])

    def _at_least(self, a: Tensor, least: Array) -> Array:
        """Where cells of a (n, K), as numbers in order, are at least so much."""
        wanted = self.wanted[: len(a)]
        np.greater_equal(ordered(a), least, out=wanted)
        return np.flatnonzero(wanted)


def _pairs(a: Tensor, cells: Array) -> Pairs:
    """Those cells of a (n, K)."""
    n, width = a.shape
    starts, units = _starts(cells, n, width), (cells % width).astype(np.int32)
    values = torch.index_select(a.view(-1), 0, torch.from_numpy(cells))
    return Pairs(torch.from_numpy(starts), torch.from_numpy(units), values)


def _starts(cells: Array, n: int, width: int) -> Array:
    """Where the cells of each of n rows begin (n + 1,)."""
    return np.searchsorted(cells, np.arange(n + 1) * width).astype(np.int32)


def _first(values: Array, starts: Array, k: int) -> Any:
    """Which of the values above 0 (M,) are among the k largest of their stretch; of equal ones the first."""
    counts = np.diff(starts)
    most = counts.max(initial=0)
    if most <= k:
        return slice(None)
    there = np.arange(most) < counts[:, None]
    table = np.zeros(there.shape, values.dtype)  # less than any value
    table[there] = values
    least = np.partition(table, most - k, axis=1)[:, most - k, None]
    more, equal = table > least, table == least
    left = k - more.sum(1, dtype=np.int32)
    return (more | (equal & (equal.cumsum(1, dtype=np.int32) <= left[:, None])))[there]


def ordered(a: Tensor) -> Array:
    """A view of numbers in which those from 0 on are in their order, above all others: bfloat16 by its bits."""
    view: Array = (a.view(torch.int16) if a.dtype == torch.bfloat16 else a).numpy()
    return view


def _sums(table: Tensor, index: Tensor, starts: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of a table's rows, a stretch of the index each."""
    return functional.embedding_bag(
        index, table, starts, mode="sum", per_sample_weights=weights.to(table.dtype), include_last_offset=True
    )
