"""Rows in another order than they come: through a pool, so that they may come one after another, from a disk.

places = m of the pool's, drawn;    out = pool[places];    pool[places] = in
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["Pool", "recut", "shuffled"]

Array = npt.NDArray[Any]


class Pool:
    """At most so many rows; once it is full, each that comes takes the place of one that goes.

    Parameters
    ----------
    capacity : int
    draw : torch.Generator
    """

    def __init__(self, capacity: int, draw: torch.Generator) -> None:
        self.capacity, self.draw, self.count = capacity, draw, 0
        self.held = self.gone = np.empty((0, 0))
        self.order = torch.empty(0, dtype=torch.long)  # of places; each is drawn once before all are drawn anew

    @property
    def rows(self) -> Array:
        """What is in the pool (n, D)."""
        return self.held[: self.count]

    def add(self, block: Array) -> Iterator[Array]:
        """Put rows (n, D) in; those that go for them, drawn at random."""
        if not self.count:
            self.held = np.empty((self.capacity, *block.shape[1:]), block.dtype)
        fits = min(self.capacity - self.count, len(block))
        self.held[self.count : self.count + fits] = block[:fits]
        self.count += fits
        for i in range(fits, len(block), self.capacity):
            some = block[i : i + self.capacity]
            if len(self.order) < len(some):
                self.order = torch.randperm(self.capacity, generator=self.draw)
            places, self.order = self.order[: len(some)].numpy(), self.order[len(some) :]
            yield self._copy(places)
            self.held[places] = some

    def rest(self, size: int) -> Iterator[Array]:
        """What is left, at random, so many at a time; the pool stays as it is."""
        order = torch.randperm(self.count, generator=self.draw).numpy()
        for i in range(0, self.count, size):
            yield self._copy(order[i : i + size])

    def _copy(self, places: Array) -> Array:
        if len(places) > len(self.gone):
            self.gone = np.empty((len(places), *self.held.shape[1:]), self.held.dtype)
        return np.take(self.held, places, axis=0, out=self.gone[: len(places)], mode="clip")


def shuffled(blocks: Iterable[Array], capacity: int, draw: torch.Generator) -> Iterator[Array]:
    """The rows of all blocks, each once, in an order that a pool of so many rows makes.

    Examples
    --------
    >>> import numpy as np, torch
    >>> from retell.rows.pool import shuffled
    >>> blocks = np.arange(12).reshape(6, 2, 1)
    >>> some = [block.copy() for block in shuffled(blocks, 4, torch.Generator().manual_seed(0))]
    >>> np.sort(np.concatenate(some)[:, 0]).tolist() == list(range(12)), some[0].max() < 4
    (True, np.True_)
    """
    pool, size = Pool(capacity, draw), 1
    for block in blocks:
        size = max(size, len(block))
        yield from pool.add(block)
    yield from pool.rest(size)


def recut(
    blocks: Iterable[Array], sizes: Sequence[int], room: Array, write: Callable[[Array, Array], None]
) -> Iterator[Array]:
    """The same rows in blocks of other sizes, each good until the next but one.

    Parameters
    ----------
    blocks : iterable of ndarray
    sizes : sequence of int
        Their sum is the number of the rows.
    room : ndarray of shape (2, max(sizes), D)
        Where the blocks are written, in turn.
    write : callable
        write(rows, place) writes some rows to their place.

    Examples
    --------
    >>> import numpy as np
    >>> from retell.rows.pool import recut
    >>> blocks, room = np.split(np.arange(6)[:, None], [4]), np.empty((2, 3, 1), int)
    >>> cut = recut(blocks, [3, 2, 1], room, lambda rows, place: np.copyto(place, rows))
    >>> [some[:, 0].tolist() for some in cut]
    [[0, 1, 2], [3, 4], [5]]
    """
    coming, left = iter(blocks), room[0, :0]
    for turn, size in enumerate(sizes):
        place, done = room[turn % 2, :size], 0
        while done < size:
            left = left if len(left) else next(coming)
            some, left = left[: size - done], left[size - done :]
            write(some, place[done : done + len(some)])
            done += len(some)
        yield place
