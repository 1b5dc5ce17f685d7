"""The fit of a stream: each row is trained on once, in an order that a pool makes, and is gone."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from retell.adam import up_and_down
from retell.descend import Epoch
from retell.rows.blocks import POOL, spaced
from retell.rows.massive import Limit
from retell.rows.pool import Pool
from retell.rows.shards import Shards
from retell.scaled import Rows
from retell.seeds import ORDER, generator
from retell.survey import enough
from retell.training import Training

__all__ = ["Sections", "Streaming"]

Array = npt.NDArray[Any]

SECTION = POOL // 4  # bytes of rows between two lines of the record
WARM = 100  # steps until the learning rate is at its largest, where the end is not known


class Sections:
    """The rows of a stream, through a pool, in sections of whole batches; each is good until the next.

    Parameters
    ----------
    first : Shards
        The rows that have come.
    train : ndarray
        Numbers of those to train on, with which the pool begins.
    batch : int
    seed : int
    limit : Limit, optional
        Beyond which rows are left out.

    Attributes
    ----------
    left : int
        Rows to go since the stream has ended; 0 until then.
    left_out : int
    """

    def __init__(self, first: Shards, train: Array, batch: int, seed: int, limit: Limit | None = None) -> None:
        raw = first.raw(train)
        self.pool = Pool(max(1, len(first)), generator(seed, ORDER))
        for _ in self.pool.add(raw):
            raise AssertionError("the first rows are no more than the pool")
        a_row = raw[:1].nbytes
        self.section = np.empty((batch * max(1, SECTION // (batch * a_row)), raw.shape[1]), raw.dtype)
        self.limit = limit
        self.filled = self.left = self.left_out = 0

    @classmethod
    def of(cls, training: Training) -> Self:
        """Those of a training on a stream's first rows."""
        plan, rows = training.plan, training.plan.survey.rows
        first = rows if isinstance(rows, Shards) else Shards.of(rows)
        return cls(first, plan.train, plan.recipe.batch_size, plan.seed, training.limit)

    def cut(self, coming: Iterable[Array]) -> Iterator[Array]:
        """Sections (n, D) of the rows (n, D) that come, then of those in the pool."""
        yield from self._whole(some for rows in coming for some in self.pool.add(self._within(rows)))
        self.left = self.filled + self.pool.count
        yield from self._whole(self.pool.rest(len(self.section)))
        if self.filled:
            yield self.section[: self.filled]

    def _within(self, rows: Array) -> Array:
        """Those that `max_norm` leaves."""
        if self.limit is None:
            return rows
        out = self.limit.beyond(rows)
        self.left_out += len(out)
        return np.delete(rows, out, 0)

    def _whole(self, blocks: Iterable[Array]) -> Iterator[Array]:
        """A section whenever enough rows for it have come."""
        for block in blocks:
            while len(block):
                fits = min(len(self.section) - self.filled, len(block))
                self.section[self.filled : self.filled + fits] = block[:fits]
                self.filled, block = self.filled + fits, block[fits:]
                if self.filled == len(self.section):
                    self.filled = 0
                    yield self.section


class Streaming:
    """A plan carried out on a stream.

    The learning rate goes up and down as in any fit if the number of rows is known. If not, it goes up and stays;
    when the stream has ended it falls to zero over the rows that are still in the pool.

    Parameters
    ----------
    training : Training
        Its plan was made of the first rows, which are in memory.
    n_rows : int or None
        How many rows will come, the first ones included.
    sections : Sections, optional
        Those of another training on the same rows, if they are to be shared.
    """

    def __init__(self, training: Training, n_rows: int | None, sections: Sections | None = None) -> None:
        self.training, self.plan, self.descent = training, training.plan, training.descent
        self.sections = sections or Sections.of(training)
        self.plan.survey = replace(self.plan.survey, rows=self.sections.section[:0])  # they are in the pool now
        training.n_rows = len(self.plan.held_out)
        self.batch = self.plan.recipe.batch_size
        total = math.inf if n_rows is None else self._steps(n_rows - len(self.plan.held_out))
        self.warm = WARM if n_rows is None else 0.1 * total
        whole = partial(up_and_down, total=total, up=training.plan.recipe.warmup)
        self.schedule = self._up if n_rows is None else whole
        self.descent.schedule, self.descent.end = self.schedule, total
        self.descent.keep()
        self.falls = False

    def epochs(self, coming: Iterable[Array]) -> Iterator[Epoch]:
        """Train on the rows (n, D) that come, and on those in the pool; yields after each section of rows."""
        return self.course(self.sections.cut(coming))

    def course(self, sections: Iterable[Array]) -> Generator[Epoch, None, None]:
        """Train on these sections, while that does not diverge."""
        for section in sections:
            if self.sections.left and not self.falls:
                left, self.falls = self._steps(self.sections.left), True
                self.descent.schedule = partial(self._down, start=self.descent.step, left=left)
            epoch = self._train(section)
            yield epoch
            if not math.isfinite(epoch.loss):
                break
        self.training.left_out += self.sections.left_out
        self.descent.restore_best()
        self._look_back()
        self.training.settle()

    def _look_back(self) -> None:
        """Let the record be of the rows that judge and of those that came last."""
        seen, last = self.plan.survey, self.sections.pool.rows
        some = last[spaced(np.arange(len(last)), enough(last.shape[1]))].astype(seen.kept.dtype)
        judged = np.arange(len(seen.kept))
        self.plan.survey = replace(seen, rows=np.concatenate([seen.kept, some]), judged=judged)
        self.plan.held_out = judged if len(self.plan.held_out) else judged[:0]

    def _up(self, step: float) -> float:
        return min(1.0, (step + 1) / self.warm)

    def _down(self, step: float, start: int, left: int) -> float:
        """The share of the learning rate in the last steps: from what it is to zero, or first up if it is rising."""
        share, end = self.schedule(start), start + left
        if start < self.warm:
            return min(1.0, max(share, (step - start + 1) / max(1.0, 0.1 * left)), (end - step) / (0.9 * left))
        return share * (end - step) / left

    def _train(self, section: Array) -> Epoch:
        plan = self.plan
        holed, turning = bool(np.isnan(section).any()), plan.survey.turning
        rows = Rows(self._wide(section), plan.survey.scaling, plan.codec.centre, holed=holed, turning=turning)
        x: Any = rows if rows.device.type == "cpu" else rows[:]
        terms, astray = self.descent.guarded(x)
        epoch = self.descent._judge(terms, None, astray=astray)
        self.training.n_rows += len(section)
        self.training.history.append(epoch)
        return epoch

    def _wide(self, rows: Array) -> Any:
        return Shards.of(rows) if rows.dtype == np.float16 else rows

    def _steps(self, n: int) -> int:
        """Steps that so many rows make: all sections but the last are whole batches."""
        return max(1, math.ceil(n / self.batch))
