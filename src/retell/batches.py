"""The rows of an epoch, a batch at a time; where several fits take them in step, each batch is read once."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from retell.seeds import row_order
from retell.spread import ahead, even, spread

__all__ = ["Batches", "Common", "Due", "InStep", "how_many"]

T = TypeVar("T")

CELLS = 2**18  # taken at a time: rows may have to be scaled, or to come from a disk


def how_many(n_rows: int, size: int) -> int:
    """Batches of at most so many rows."""
    return math.ceil(n_rows / size)


@dataclass(frozen=True)
class Due:
    """A batch that has not been taken yet: some of the rows (N, D), by number (n,)."""

    rows: Any
    numbers: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.numbers), self.rows.shape[1]

    def __getitem__(self, part: slice) -> Due:
        return Due(self.rows, self.numbers[part])

    def into(self, out: Tensor) -> None:
        """Take it into memory (n, D)."""
        if isinstance(self.rows, Tensor):
            torch.index_select(self.rows, 0, self.numbers, out=out)
        else:
            self.rows.take(self.numbers, out)


class Batches:
    """Batches of rows, in memory that is taken once: each is good until the next."""

    def __init__(self) -> None:
        self.taken = torch.zeros(0)

    def shuffled(
        self, x: Any, size: int, seed: int, epoch: int, n_threads: int = 1, *, late: bool = False
    ) -> Iterator[Any]:
        """All rows once, in batches of nearly equal size, in an order that is a function of (seed, epoch).

        Many rows are taken at a time, a batch is given at a time. Threads that share a step share that too. Rows on a
        disk are read a batch ahead, which takes less of a core than waiting for them would.

        Parameters
        ----------
        x : Tensor or Rows of shape (N, D)
        size : int
            Rows of the largest batch.
        seed, epoch : int
        n_threads : int, default=1
            That a step of who asks is shared by.
        late : bool, default=False
            Whether batches of which one is taken at a time are given as `Due`, for a step to take.
        """
        steps = how_many(len(x), size)
        ends = [len(x) * i // steps for i in range(steps + 1)]
        if getattr(x, "pooled", False):
            yield from ahead(x.shuffled([end - start for start, end in pairwise(ends)], seed, epoch))
            return
        order = row_order(seed, epoch, len(x)).to(x.device)
        most = max(1, CELLS // (size * x.shape[1]))
        if late and most == 1:
            all_rows, numbers = (x, order) if isinstance(x, Tensor) else x.of_all(order)
            yield from (Due(all_rows, numbers[start:end]) for start, end in pairwise(ends))
            return
        several = [ends[i : i + most + 1] for i in range(0, steps, most)]
        shape = (max(some[-1] - some[0] for some in several), x.shape[1])
        if self.taken.shape != shape:
            self.taken = torch.empty(shape, dtype=x.dtype, device=x.device)
        for some in several:
            taken = self.taken[: some[-1] - some[0]]
            self._take(x, order[some[0] : some[-1]], taken, n_threads)
            yield from torch.split(taken, [end - start for start, end in pairwise(some)])

    def _take(self, x: Any, numbers: Tensor, taken: Tensor, n_threads: int) -> None:
        due = Due(x, numbers)
        if n_threads == 1 or torch.get_num_threads() > 1:  # torch's share each call, and others would be in the way
            due.into(taken)
        else:
            block = even(len(numbers), max(1, CELLS // x.shape[1]), n_threads)
            spread(lambda: lambda u, v: due[u:v].into(taken[u:v]), len(numbers), block, enough=1, most=n_threads)

    def in_order(self, x: Any, size: int, epoch: int) -> Iterator[Tensor]:  # noqa: ARG002
        """All rows once, as they lie; those of an epoch are those of any other."""
        return (x[i : i + size] for i in range(0, len(x), size))


class Common(Generic[T]):
    """The values of an iterator for several who take them in step: only the last one is kept for the others.

    Parameters
    ----------
    values : iterator

    Raises
    ------
    RuntimeError
        If one of them asks for a value that is gone.

    Examples
    --------
    >>> from retell.batches import Common
    >>> common = Common(iter("ab"))
    >>> one, other = iter(common), iter(common)
    >>> [next(it) for it in (one, other, one, other)], next(other, "end")
    (['a', 'a', 'b', 'b'], 'end')
    """

    def __init__(self, values: Iterator[T]) -> None:
        self.values, self.count = values, 0
        self.last: list[T] = []
        self.failure: Exception | None = None

    def __iter__(self) -> Iterator[T]:
        mine = 0
        while self._reaches(mine):
            if mine != self.count - 1:
                raise RuntimeError(f"value {mine} is gone: {self.count} have been taken by others")
            yield self.last[0]
            mine += 1

    def _reaches(self, number: int) -> bool:
        """Whether there is a value of this number; it is taken if nobody has."""
        if self.failure is not None:  # what has failed once would seem to have ended to those who ask later
            raise self.failure
        if number == self.count:
            try:
                self.last = [next(self.values)]
            except StopIteration:
                return False
            except Exception as error:
                self.failure = error
                raise
            self.count += 1
        return True


class InStep:
    """`Batches` for several fits that take the same rows in step: a batch is read when the first of them asks."""

    def __init__(self) -> None:
        self.batches = Batches()
        self.latest: dict[str, tuple[Hashable, Common[Tensor]]] = {}

    def shuffled(
        self, x: Any, size: int, seed: int, epoch: int, n_threads: int = 1, *, late: bool = False,  # noqa: ARG002
    ) -> Iterator[Tensor]:  # fmt: skip
        """As those of `Batches`, taken once for all."""
        asked = (size, seed, epoch)
        return self._common("shuffled", asked, partial(self.batches.shuffled, x, *asked, n_threads))

    def in_order(self, x: Any, size: int, epoch: int) -> Iterator[Tensor]:
        """As those of `Batches`."""
        asked = (size, epoch)
        return self._common("in order", asked, partial(self.batches.in_order, x, *asked))

    def _common(self, what: str, asked: Hashable, values: Callable[[], Iterator[Tensor]]) -> Iterator[Tensor]:
        if what not in self.latest or self.latest[what][0] != asked:
            self.latest[what] = asked, Common(values())
        return iter(self.latest[what][1])
