"""Codes that are mostly zero, as SciPy's compressed rows: only what is not zero is held.

h_n = Σ_i values_i e_(units_i),   i = starts_n ... starts_(n + 1) - 1
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csr_array, issparse
from torch import Tensor
from torch.utils.dlpack import from_dlpack

__all__ = ["Few", "as_csr", "joined", "nonzero", "times"]

Array = npt.NDArray[Any]

MOST = np.iinfo(np.int32).max  # entries up to which their numbers take 32 bits


class Few(NamedTuple):
    """What is not zero in some codes.

    Parameters
    ----------
    values : ndarray of shape (n,)
    units : ndarray of shape (n,)
        Ascending in each row.
    counts : ndarray of shape (N,)
        How many there are in each row.
    """

    values: Array
    units: Array
    counts: Array


def nonzero(h: Array) -> Few:
    """Of codes (N, K), in C order."""
    there = h != 0
    at = np.flatnonzero(there)
    units = (at % h.shape[1]).astype(np.int32)
    return Few(h.ravel()[at], units, np.count_nonzero(there, axis=1))


def joined(parts: list[Few], n_units: int) -> csr_array:
    """Codes (N, K) of consecutive blocks of rows."""
    counts = np.concatenate([some.counts for some in parts])
    index = np.int32 if counts.sum() <= MOST else np.int64
    starts = np.zeros(len(counts) + 1, index)
    np.cumsum(counts, out=starts[1:])
    units = np.concatenate([some.units for some in parts]).astype(index, copy=False)
    whole = csr_array((np.concatenate([some.values for some in parts]), units, starts), shape=(len(counts), n_units))
    whole.has_canonical_format = True
    return whole


def as_csr(H: Any, n_units: int) -> csr_array | None:
    """Codes given as any SciPy matrix or array of the kind, float32 or float64, each entry once; None for others.

    Raises
    ------
    ValueError
        If they are not real numbers, or of another width, or name a unit that there is not.
    """
    if not issparse(H):
        return None
    if H.dtype.kind not in "biuf" or H.ndim != 2:
        raise ValueError(f"H is {H.ndim}-dimensional of dtype {H.dtype}: rows of real numbers were expected")
    if H.shape[1] != n_units:
        raise ValueError(f"H has {H.shape[1]} columns, this model's codes have {n_units}")
    rows = csr_array(H, dtype=H.dtype if H.dtype in (np.float32, np.float64) else np.float64)
    if rows.nnz and not 0 <= rows.indices.min() <= rows.indices.max() < n_units:
        wrong = rows.indices[(rows.indices < 0) | (rows.indices >= n_units)][0]
        raise ValueError(f"H names unit {wrong}, this model's codes have units 0 to {n_units - 1}")
    if not rows.has_canonical_format:
        rows = rows.copy()  # what was given stays as it is
        rows.sum_duplicates()
    return rows


def times(h: csr_array, dictionary: Tensor) -> Tensor:
    """h V (N, D) with V (K, D): only rows of V that are active are read."""
    values = from_dlpack(h.data).to(dictionary)
    units, starts = (from_dlpack(some).to(dictionary.device) for some in (h.indices, h.indptr[:-1]))
    return torch.nn.functional.embedding_bag(
        units, dictionary, starts, mode="sum", per_sample_weights=values, include_last_offset=False
    )
