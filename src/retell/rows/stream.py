"""Rows that come one batch after another, from whoever makes them, and come once."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import chain, islice, zip_longest
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import issparse

from retell.arrays import as_numpy
from retell.rows.arrays import check_finite, check_kinds, check_support, column_names

__all__ = ["arrays", "beginning", "named"]

Array = npt.NDArray[Any]

FLOATS = "float16", "float32", "float64"


def named(batches: Iterable[Any]) -> tuple[list[str] | None, Iterator[Any]]:
    """The names that the columns of the first batch have, or None, and all batches."""
    if isinstance(batches, str | bytes | os.PathLike):
        raise ValueError(f"batches of rows were expected, one by one, got the path {batches!r}: fit reads files")
    coming = iter(batches)
    first = list(islice(coming, 1))
    return column_names(first[0]) if first else None, chain(first, coming)


def arrays(batches: Iterable[Any], n_rows: int | None, loss: Any, names: list[str] | None = None) -> Iterator[Array]:
    """The batches of a stream, until so many rows have come, as arrays of floats, all alike.

    Parameters
    ----------
    batches : iterable of array or Tensor of shape (n, D)
        float16, float32 and float64 stay what they are, bfloat16 is taken as float32, all else as float64.
    n_rows : int or None
        None takes all.
    loss : Term
        Knows its support.
    names : list of str, optional
        Of the columns of every batch; None for columns without names.

    Raises
    ------
    ValueError
        If a batch holds something else, or is unlike the first one; the message says which, counted from 0.
    """
    first, left = None, n_rows
    for number, batch in enumerate(batches):
        called, rows, labels = f"batch {number}", _array(batch, number), column_names(batch)
        if rows.ndim != 2:
            raise ValueError(
                f"{called} has shape {rows.shape}: rows and columns were expected, as of x.reshape(-1, x.shape[-1])"
            )
        first = (rows.shape[1], rows.dtype) if first is None else first
        if (rows.shape[1], rows.dtype) != first:
            raise ValueError(
                f"{called} has {rows.shape[1]} columns of {rows.dtype}, batch 0 {first[0]} of {first[1]}: all batches"
                " must be alike"
            )
        if labels != names:
            found, expected = next(pair for pair in zip_longest(labels or (), names or ()) if pair[0] != pair[1])
            raise ValueError(f"the columns of {called} are not those of batch 0: {found!r} stands for {expected!r}")
        rows = rows if left is None else rows[:left]
        check_finite(rows, names, called=called)
        check_support(rows, loss.support, loss, names)
        yield rows
        left = None if left is None else left - len(rows)
        if left == 0:
            return


def beginning(coming: Iterator[Array], enough: int) -> tuple[Array, Iterator[Array], bool]:
    """The first rows of a stream, all batches after them, and whether there are none.

    Parameters
    ----------
    coming : iterator of ndarray of shape (n, D)
    enough : int
        Bytes of rows; there are fewer if the stream ends before.

    Raises
    ------
    ValueError
        If there are fewer than two rows.
    """
    some: list[Array] = []
    more = True
    while more and sum(rows.nbytes for rows in some) < enough:
        batch = next(coming, None)
        more = batch is not None
        some += [] if batch is None else [batch.copy()]  # whoever makes them may use the memory again
    n = sum(map(len, some))
    if n < 2:
        raise ValueError(f"the stream ended after {n} rows: 2 or more were expected")
    rows = np.concatenate(some)
    most = max(2, enough // (rows.nbytes // n))
    rest = rows[most:]
    return rows[:most], chain([rest] if len(rest) else [], coming), not more and not len(rest)


def _array(batch: Any, number: int) -> Array:
    """A batch in memory, as floats."""
    if issparse(batch):
        raise ValueError(f"batch {number} is a {type(batch).__name__}: rows are dense, give its toarray()")
    if isinstance(batch, dict) or (isinstance(batch, list | tuple) and any(np.ndim(some) == 2 for some in batch[:1])):
        one = next(iter(batch)) if isinstance(batch, dict) else 0
        raise ValueError(
            f"batch {number} is a {type(batch).__name__} of {len(batch)}: rows (n, D) were expected, perhaps its part"
            f" {one!r}, as of fit_stream(batch[{one!r}] for batch in batches)"
        )
    batch = as_numpy(batch)
    check_kinds(batch)
    rows = np.asarray(batch)
    return rows if rows.dtype.name in FLOATS and rows.dtype.isnative else rows.astype(np.float64)
