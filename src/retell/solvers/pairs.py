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
from torch import Tensor
from torch.nn import functional

__all__ = ["Block", "ByUnit", "Pairs", "joined", "limit"]

Array = npt.NDArray[Any]


class Pairs(NamedTuple):
    """A sparse code of N rows, row by row.

    Parameters
    ----------
    starts : Tensor of shape (N + 1,), int32
        Where each row's pairs begin.
    rows, units : Tensor of shape (M,), int32
        Both ascending, units within a row.
    values : Tensor of shape (M,)
    """

    starts: Tensor
    rows: Tensor
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
    """

    def __init__(self, pairs: Pairs, n_units: int) -> None:
        units, self.order = torch.sort(pairs.units, stable=True)
        self.rows = torch.index_select(pairs.rows, 0, self.order)
        self.starts = torch.searchsorted(units, torch.arange(n_units + 1, dtype=torch.int32), out_int32=True)

    def sums(self, rows: Tensor, values: Tensor) -> Tensor:
        """Σ_n value_nj rows_n (K, D), in the rows' dtype."""
        return _sums(rows, self.rows, self.starts, values[self.order])


def joined(parts: list[Pairs]) -> Pairs:
    """The pairs of rows that follow each other."""
    ends = np.cumsum([0, *(len(part.units) for part in parts)]).tolist()
    firsts = np.cumsum([0, *(len(part.starts) - 1 for part in parts)]).tolist()
    starts = [part.starts[:-1] + end for part, end in zip(parts, ends, strict=False)]
    rows = [part.rows + first for part, first in zip(parts, firsts, strict=False)]
    units, values = (torch.cat([part[i] for part in parts]) for i in (2, 3))
    return Pairs(torch.cat([*starts, starts[0].new_tensor(ends[-1:])]), torch.cat(rows), units, values)


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
        n, width = a.shape
        wanted = self.wanted[:n]
        if a.dtype != torch.bfloat16:
            np.greater_equal(a.numpy(), least.numpy(), out=wanted)
        elif bool((least > 0).all()):  # bfloat16 above 0 is in the order of its bits
            np.greater_equal(ordered(a), ordered(least), out=wanted)
        else:
            torch.ge(a, least, out=torch.from_numpy(wanted))
        cells = np.flatnonzero(wanted)
        rows = cells // width
        starts = np.searchsorted(rows, np.arange(n + 1)).astype(np.int32)
        rows, units = rows.astype(np.int32), (cells - rows * width).astype(np.int32)
        values = torch.index_select(a.view(-1), 0, torch.from_numpy(cells))
        return Pairs(torch.from_numpy(starts), torch.from_numpy(rows), torch.from_numpy(units), values)

    def largest(self, a: Tensor, k: int) -> Pairs:
        """The k largest cells of each row of a (n, K) that are above 0; of equal ones the first.

        The k largest of the maxima of groups belong to k cells, so the k-th of them is no more than the k-th cell:
        few cells more than k are above it.
        """
        n, width = a.shape
        size = max(1, width // max(4 * k, 128))
        n_groups = width // size
        maxima = torch.relu(a[:, : size * n_groups].view(n, size, n_groups).amax(1))
        least = torch.from_numpy(np.partition(ordered(maxima), n_groups - k, axis=1)[:, n_groups - k, None])
        return limit(self.above(a, least.view(a.dtype).clamp_(min=torch.finfo(a.dtype).tiny)), k)


def limit(pairs: Pairs, k: int) -> Pairs:
    """The k pairs of largest value of each row; of equal ones the first."""
    counts = np.diff(pairs.starts.numpy())
    most = counts.max(initial=0)
    if most <= k:
        return pairs
    values = ordered(pairs.values)
    there = np.arange(most) < counts[:, None]
    table = np.zeros(there.shape, values.dtype)  # less than any pair's, which are above 0
    table[there] = values
    least = np.partition(table, most - k, axis=1)[:, most - k, None]
    more, equal = table > least, table == least
    left = k - more.sum(1, dtype=np.int32)
    return pairs.where((more | (equal & (equal.cumsum(1, dtype=np.int32) <= left[:, None])))[there])


def ordered(a: Tensor) -> Array:
    """A view of numbers in which those from 0 on are in their order, above all others: bfloat16 by its bits."""
    view: Array = (a.view(torch.int16) if a.dtype == torch.bfloat16 else a).numpy()
    return view


def _sums(table: Tensor, index: Tensor, starts: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of a table's rows, a stretch of the index each."""
    return functional.embedding_bag(
        index, table, starts, mode="sum", per_sample_weights=weights.to(table.dtype), include_last_offset=True
    )
