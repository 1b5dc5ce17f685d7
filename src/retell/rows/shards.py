"""Rows that lie in several files, or in a type that is not computed with, as one matrix that is never held."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from itertools import groupby
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch

from retell.rows.blocks import SCATTERED, alone, ask, in_memory, release
from retell.rows.mapped import KINDS, Mapped, map_npy, map_npz, map_safetensors

__all__ = ["SUFFIXES", "Shards", "open_folder", "open_tensor"]

Array = npt.NDArray[Any]

FEW = 256  # rows of which bfloat16 is converted at a time
SUFFIXES: dict[str, Callable[[Path], Mapped | None]] = {
    ".npy": map_npy,
    ".npz": map_npz,
    ".safetensors": map_safetensors,
}


class Shards:
    """The rows of one array after another, float32 or float64 when they are taken.

    float16 and bfloat16 are taken as float32, which holds each of their numbers. Rows are copied when they are
    taken; pages of a file that were read for it are given back.

    Parameters
    ----------
    parts : sequence of ndarray of shape (N_i, D)
        All of one type, in memory or mapped.
    kind : {"float16", "bfloat16", "float32", "float64"}
        Of the numbers; those of bfloat16 are given as uint16.
    numbers : ndarray of shape (N,), optional
        The rows that count, ascending; all by default.

    Attributes
    ----------
    dtype : dtype
        Of rows that are taken.
    size, nbytes : int
        Cells, and bytes of the rows as they lie there.
    in_memory : bool

    Examples
    --------
    >>> import numpy as np
    >>> from retell.rows.shards import Shards
    >>> halves = np.arange(6, dtype=np.float16).reshape(3, 2)
    >>> rows = Shards((halves, halves + 6), "float16")
    >>> rows.shape, rows.dtype, rows.take(np.array([5, 0]))
    ((6, 2), dtype('float32'), array([[10., 11.],
           [ 0.,  1.]], dtype=float32))
    """

    ndim = 2

    def __init__(self, parts: Sequence[Array], kind: str, numbers: Array | None = None) -> None:
        self.parts, self.kind, self.numbers = tuple(parts), kind, numbers
        self.ends = np.cumsum([len(part) for part in self.parts])
        n = int(self.ends[-1]) if numbers is None else len(numbers)
        self.shape = (n, self.parts[0].shape[1])
        self.dtype = np.dtype(np.float64 if kind == "float64" else np.float32)
        self.size = n * self.shape[1]
        self.nbytes = self.size * self.parts[0].itemsize
        self.in_memory = all(in_memory(part) for part in self.parts)

    @classmethod
    def of(cls, rows: Array) -> Self:
        """An array (N, D) of float16, float32 or float64."""
        return cls((rows,), rows.dtype.name)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: slice) -> Array:
        """The rows (n, D) of a slice."""
        return self.take(np.arange(*index.indices(len(self))))

    def take(self, numbers: Array) -> Array:
        """The rows (n, D) with these numbers, in their order."""
        return self.wide(self.raw(numbers))

    def wide(self, raw: Array) -> Array:
        """Numbers as they are stored, as those of `dtype`."""
        if self.kind == "bfloat16":  # the upper half of a float32
            return (raw.astype(np.uint32) << 16).view(np.float32)
        if self.kind == "float16":  # torch's conversion takes a third of the time of NumPy's
            return torch.from_numpy(raw).float().numpy()
        return raw.astype(self.dtype, copy=False)

    def write(self, raw: Array, place: Array) -> None:
        """Numbers as they are stored, to a place of another type."""
        if self.kind == "float16":
            torch.from_numpy(place).copy_(torch.from_numpy(raw))
            return
        for i in range(0, len(raw), FEW):
            some = raw[i : i + FEW]
            place[i : i + FEW] = self.wide(some) if self.kind == "bfloat16" else some

    def raw(self, numbers: Array, out: Array | None = None, *, on: bool = True) -> Array:
        """As `take`, in the type in which the rows are stored; in memory of that type if it is given.

        `on` says whether rows that follow will be taken next: a disk may then read them already. Without it, the rows
        should be those that were expected.
        """
        numbers = numbers if self.numbers is None else self.numbers[numbers]
        some = self.room(len(numbers)) if out is None else out[: len(numbers)]
        for rows, at, here in self._places(numbers):
            first, end = int(at[0]), int(at[-1]) + 1
            if (np.diff(at) == 1).all() and (np.diff(here) == 1).all():
                with nullcontext() if on else alone(rows, first, end):
                    some[here[0] : here[-1] + 1] = rows[first:end]
            else:
                some[here] = rows[at]
            release(rows, first, end)
        return some

    def expect(self, numbers: Array) -> None:
        """Ask the system to read rows that follow each other: they will be taken soon."""
        for rows, at, _ in self._places(numbers if self.numbers is None else self.numbers[numbers]):
            ask(rows, int(at[0]), int(at[-1]) + 1)

    def _places(self, numbers: Array) -> Iterator[tuple[Array, Array, Array]]:
        """The part in which some of the rows lie, which of its rows they are, and which of those asked for.

        They come in the order of the files.
        """
        places = np.argsort(numbers, kind="stable")
        which = np.searchsorted(self.ends, numbers, side="right")
        for i in range(0, len(places), SCATTERED):
            some = places[i : i + SCATTERED]
            for part in np.unique(which[some]):
                here = some[which[some] == part]
                yield self.parts[part], numbers[here] - (self.ends[part - 1] if part else 0), here

    def room(self, n: int) -> Array:
        """Memory for so many rows as they are stored."""
        return np.empty((n, self.shape[1]), self.parts[0].dtype.newbyteorder("="))

    def without(self, numbers: Array) -> Shards:
        """The rows that do not have these numbers."""
        kept = np.delete(np.arange(len(self)), numbers)
        return Shards(self.parts, self.kind, kept if self.numbers is None else self.numbers[kept])


def open_folder(path: str | os.PathLike[str]) -> Shards:
    """The rows of all files of a folder, as one matrix.

    Files are taken by name, numbers in names by value: part2 before part10. Names that start with a dot are
    passed over.

    Parameters
    ----------
    path : path
        A folder of .npy, .npz (not compressed) and .safetensors, each with one array (N_i, D), or one called X (or,
        in .safetensors, activations); all of D columns and one type of float16, bfloat16, float32 and float64.

    Raises
    ------
    ValueError
        If a file is of another kind, or does not go with the first one; the message names it.
    """
    files = sorted((file for file in Path(path).iterdir() if not file.name.startswith(".")), key=_natural)
    if not files:
        raise ValueError(f"{path} holds no files: {', '.join(SUFFIXES)} were expected")
    parts = [_open(file) for file in files]
    kind, width = parts[0].kind, parts[0].values.shape[1]
    for file, part in zip(files, parts, strict=True):
        if part.kind != kind:
            raise ValueError(f"{file} holds {part.kind}, {files[0].name} {kind}: files of one type were expected")
        if part.values.shape[1] != width:
            raise ValueError(
                f"{file} has {part.values.shape[1]} columns, {files[0].name} {width}: files of the same columns were"
                " expected"
            )
    return Shards([part.values for part in parts], kind)


def open_tensor(path: Path) -> Shards | Array:
    """The rows of a .safetensors file: an array where NumPy has their type."""
    values, kind = _checked(path, map_safetensors(path))
    whole = kind != "bfloat16" and values.flags.aligned  # NumPy may copy what lies across machine words as a whole
    return values if whole else Shards((values,), kind)


def _open(path: Path) -> Mapped:
    """One file of a folder."""
    suffix = path.suffix.lower()
    if path.is_dir():
        raise ValueError(f"{path} is a folder within a folder of rows: files were expected")
    if suffix not in SUFFIXES:
        raise ValueError(
            f"{path} ends in {suffix or 'nothing'!r}: in a folder of rows one of {', '.join(SUFFIXES)} was expected"
        )
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty (0 bytes)")
    part = SUFFIXES[suffix](path)
    if part is None:
        raise ValueError(f"{path} is compressed, so it can't be read in parts: write it with numpy.savez or numpy.save")
    return _checked(path, part)


def _checked(path: Path, part: Mapped) -> Mapped:
    """The array of a file, or a sentence about why it is none of rows."""
    values, kind = part
    if kind not in KINDS.values():
        raise ValueError(f"{path} holds {kind}: one of {', '.join(KINDS.values())} was expected")
    if values.ndim != 2 or not values.size:
        raise ValueError(f"{path} holds an array of shape {values.shape}: rows and columns were expected")
    if not values.flags.c_contiguous:
        raise ValueError(f"{path} is in Fortran order, column after column: write it with numpy.ascontiguousarray")
    return part


def _natural(path: Path) -> list[tuple[int, str]]:
    """A key that sorts numbers in a name by their value; equal values, by their digits."""
    runs = ["".join(run) for _, run in groupby(path.name, str.isdecimal)]
    return [(int(run) if run.isdecimal() else -1, run) for run in runs]
