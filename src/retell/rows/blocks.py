"""Rows of an array or of shards, some at a time; what a mapped file has brought into memory is given back."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["CHUNK", "POOL", "alone", "blocks", "in_memory", "pooled", "release", "rows_a_block", "spaced", "take"]

Array = npt.NDArray[Any]

CELLS = 2**20
SCATTERED = 1024  # rows of a mapped file taken at a time; each may bring in 64 kB
POOL = 2**27  # bytes of rows that are shuffled at a time, where a file holds them
CHUNK = 2**22  # bytes read in a row
ASKED = 2**17  # bytes asked of a disk at a time


def in_memory(rows: Array) -> bool:
    """Whether rows are no view of a file."""
    return _map(rows) is None if isinstance(rows, np.ndarray) else bool(rows.in_memory)


def pooled(rows: Array) -> bool:
    """Whether rows are taken in an order that suits their file: where they are more than a pool holds."""
    return not in_memory(rows) and rows.nbytes > POOL


def rows_a_block(width: int) -> int:
    """How many rows of so many columns are handled at a time."""
    return max(1, CELLS // width)


def blocks(rows: Array, size: int | None = None, first: int = 0, end: int | None = None) -> Iterator[tuple[int, Array]]:
    """The number of a block's first row, and the block, a view that is good until the next one is asked for.

    Parameters
    ----------
    rows : ndarray or Shards of shape (N, D)
    size : int, optional
        Rows a block; some 8 MB of float64 by default.
    first, end : int, optional
        The rows to go through; all by default.
    """
    size = size or rows_a_block(rows.shape[1])
    end = len(rows) if end is None else end
    for start in range(first, end, size):
        block = rows[start : min(start + size, end)]
        yield start, block
        release(block)


def take(rows: Array, numbers: Array) -> Array:
    """The rows with these numbers (M, D), a copy."""
    if not isinstance(rows, np.ndarray):
        return rows.take(numbers)
    if in_memory(rows):
        return np.take(rows, numbers, axis=0)
    some = np.empty((len(numbers), rows.shape[1]), rows.dtype)
    for i in range(0, len(numbers), SCATTERED):
        np.take(rows, numbers[i : i + SCATTERED], axis=0, out=some[i : i + SCATTERED], mode="clip")
        release(rows)
    return some


def spaced(numbers: Array | range, most: int) -> Array:
    """At most so many of the numbers, evenly spaced, the first among them."""
    return np.asarray(numbers[:: -(-len(numbers) // most)] if len(numbers) else numbers)


def release(rows: Array, first: int = 0, end: int | None = None) -> None:
    """Give back the memory of rows first to end that a file holds; what is read again is read from the file again."""
    place = _pages(rows, first, end)
    if place is not None:
        file, page, size = place
        file.madvise(mmap.MADV_DONTNEED, page, size)


def ask(rows: Array, first: int, end: int) -> None:
    """Have the system read rows of a file, and go on."""
    place = _pages(rows, first, end)
    if place is not None:
        file, page, size = place
        for i in range(page, page + size, ASKED):  # of more at a time, Linux may read a part
            file.madvise(mmap.MADV_WILLNEED, i, min(ASKED, page + size - i))


@contextmanager
def alone(rows: Array, first: int, end: int) -> Iterator[None]:
    """Rows first to end, asked for before, are read here: a disk that reads on reads what others will not need."""
    place = _pages(rows, first, end)
    if place is None:
        yield
        return
    file, page, size = place
    file.madvise(mmap.MADV_RANDOM, page, size)
    try:
        yield
    finally:
        file.madvise(mmap.MADV_NORMAL, page, size)


def _pages(rows: Array, first: int, end: int | None) -> tuple[mmap.mmap, int, int] | None:
    """The map of a file that holds the rows, where in it their first page begins, and how many bytes there are."""
    if not isinstance(rows, np.ndarray):
        return None  # shards look after what they read themselves
    file, rows = _map(rows), rows[first:end]
    if file is None or not rows.size or not rows.flags.c_contiguous:
        return None
    start = rows.ctypes.data - np.frombuffer(file, np.uint8).ctypes.data
    page = start // mmap.PAGESIZE * mmap.PAGESIZE
    return file, page, start + rows.nbytes - page


def _map(rows: Any) -> mmap.mmap | None:
    """The map of a file that an array is a view of, where nothing is lost when its pages are dropped."""
    if not hasattr(mmap, "MADV_DONTNEED"):
        return None
    while isinstance(rows, np.ndarray):
        if isinstance(rows, np.memmap) and rows.mode == "c":  # its pages hold what was written to them
            return None
        rows = rows.base
    return rows if isinstance(rows, mmap.mmap) else None
