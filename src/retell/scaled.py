"""Rows in the scaled space, scaled when they are taken: where they are many, never more than are looked at."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from copy import copy
from itertools import zip_longest
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from retell.rows.blocks import CHUNK, POOL, blocks, in_memory, pooled, rows_a_block, take
from retell.rows.pool import recut, shuffled
from retell.rows.shards import Shards
from retell.scaling import Scaling
from retell.seeds import ORDER, generator
from retell.spread import threads
from retell.turning import AS_THEY_ARE, Turning

__all__ = ["Rows"]

Array = npt.NDArray[Any]

FEW = 2**22  # cells that may be held scaled too
NEAR = 16.0  # |shift / factor| up to which float32 loses no more than a digit


class Rows:
    """x = (row - shift) / factor, its columns turned where that is asked for; NaN where unseen.

    Parameters
    ----------
    rows : ndarray or Shards of shape (M, D)
        As given, float32 or float64, in memory or mapped from a file; not copied.
    scaling : Scaling
    like : Tensor
        Its dtype and device are those of what is taken.
    numbers : ndarray of shape (N,), optional
        The rows that count, by number; all by default.
    holed : bool, default=True
        Whether cells may be unseen.
    turning : Turning, optional
        Of whole rows.

    Attributes
    ----------
    pooled : bool
        Whether a file holds more of them than a pool: an epoch then takes them by `shuffled`.
    """

    def __init__(
        self, rows: Array, scaling: Scaling, like: Tensor, numbers: Array | None = None, *, holed: bool = True,
        turning: Turning = AS_THEY_ARE,
    ) -> None:  # fmt: skip
        self.holed, self.turning = holed, turning
        self.rows, self.scaling, self.numbers = rows, scaling, numbers
        self.dtype, self.device = like.dtype, like.device
        self.shape = (len(rows) if numbers is None else len(numbers), rows.shape[1])
        single = rows.dtype == np.float32 and like.dtype == torch.float32 and _is_near(scaling)
        self._work = torch.float32 if single else torch.float64
        self._shift, self._factor = (torch.from_numpy(some).to(self._work) for some in (scaling.shift, scaling.factor))
        self._scales = bool((self._factor != 1).any() or (self._shift != 0).any())
        self._inverse, self._offset = 1 / self._factor, -self._shift / self._factor
        self._numbers = None if numbers is None else torch.from_numpy(numbers)
        self._whole = _readable(rows) if isinstance(rows, np.ndarray) and in_memory(rows) else None
        self._scaled: Tensor | None = None
        self.pooled = pooled(rows)
        if math.prod(self.shape) <= FEW:
            with threads(1):  # others would go on turning, on cores that the first step wants
                self._scaled = self.take(torch.arange(len(self)))
            self.pooled = False

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: slice) -> Tensor:
        """The rows (n, D) of a slice."""
        if self._scaled is not None:
            return self._scaled[index]
        return self.take(torch.arange(*index.indices(len(self))))

    def of_all(self, index: Tensor) -> tuple[Rows, Tensor]:
        """All rows, and the numbers there of these: who takes a few of them at a time looks them up once."""
        if self._numbers is None or self._scaled is not None:
            return self, index
        rows = copy(self)
        rows.numbers, rows._numbers, rows.shape = None, None, (len(self.rows), self.shape[1])
        return rows, torch.index_select(self._numbers, 0, index)

    def take(self, index: Tensor, out: Tensor | None = None) -> Tensor:
        """The rows (n, D) that a tensor of numbers names, into memory of their size and kind if it is given."""
        index = index.cpu()
        if self._scaled is not None:
            return torch.index_select(self._scaled, 0, index.to(self.device), out=out)
        index = index if self._numbers is None else torch.index_select(self._numbers, 0, index)
        if self._whole is None:
            some = torch.from_numpy(take(self.rows, index.numpy()))
        else:
            ready = out is not None and out.dtype == self._whole.dtype and out.device == self._whole.device
            some = _picked(self._whole, index, out if ready else None)
        some = self._scale(some.to(self._work))
        if out is None:
            return some.to(self.device, self.dtype)
        return out if out is some else out.copy_(some)

    def shuffled(self, sizes: Sequence[int], seed: int, epoch: int) -> Iterator[Tensor]:
        """All rows once, in batches of these sizes, in an order that is a function of (seed, epoch) and suits a disk.

        Chunks of consecutive rows, in random order, go through a pool. A batch is good until the next but one.
        """
        rows = self.rows if isinstance(self.rows, Shards) else Shards.of(self.rows)
        a_row, draw = rows.nbytes // len(rows), generator(seed, ORDER, epoch)
        size = max(1, CHUNK // a_row)
        order = torch.randperm(-(-len(self) // size), generator=draw).tolist()
        some = shuffled(self._chunks(rows, order, size), max(size, POOL // a_row), draw)
        room = torch.empty(2, max(sizes), self.shape[1], dtype=self._work)
        for x in recut(some, sizes, room.numpy(), rows.write):
            yield self._scale(torch.from_numpy(x)).to(self.device, self.dtype)

    def _chunks(self, rows: Shards, order: list[int], size: int) -> Iterator[Array]:
        """Chunks of so many rows, by their numbers in order, each asked of the disk while the one before it is used."""
        room = rows.room(size)

        def numbers(i: int) -> Array:
            first, end = i * size, min((i + 1) * size, len(self))
            return np.arange(first, end) if self.numbers is None else self.numbers[first:end]

        for now, after in zip_longest([None, *order], order):
            if after is not None:
                rows.expect(numbers(after))
            if now is not None:
                yield rows.raw(numbers(now), room, on=False)

    def _scale(self, x: Tensor) -> Tensor:
        """In place."""
        if self._scales and self._work == torch.float32:  # one pass, where no digit is lost by it
            torch.addcmul(self._offset, x, self._inverse, out=x)
        elif self._scales:
            x.sub_(self._shift).div_(self._factor)
        return self.turning.turn_(x)

    def blocks(self, size: int | None = None) -> Iterator[Array]:
        """All rows in order, float64 (n, D)."""
        size = size or rows_a_block(self.shape[1])
        if self.numbers is None:
            for _, block in blocks(self.rows, size):
                yield self.turning(self.scaling.to(block))
        else:
            for i in range(0, len(self), size):
                yield self.turning(self.scaling.to(take(self.rows, self.numbers[i : i + size])))


def _is_near(scaling: Scaling) -> bool:
    """Whether float32 is enough to scale float32 rows."""
    factor = scaling.factor
    return bool((np.abs(scaling.shift) < NEAR * factor).all() and factor.min() > 1e-30 and factor.max() < 1e30)


def _picked(rows: Tensor, index: Tensor, out: Tensor | None) -> Tensor:
    """Rows by their numbers; on one thread NumPy takes a sixth less than torch."""
    if out is None or not out.is_contiguous() or torch.get_num_threads() > 1:
        return torch.index_select(rows, 0, index, out=out)
    np.take(rows.numpy(), index.numpy(), axis=0, out=out.numpy(), mode="clip")  # other modes write to a copy first
    return out


def _readable(rows: Array) -> Tensor:
    """The rows as a tensor that shares their memory; nothing here writes to it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable", category=UserWarning)
        return torch.from_numpy(rows)
