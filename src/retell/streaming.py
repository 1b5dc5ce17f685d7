"""The fit of a stream: each row is trained on once, in an order that a pool makes, and is gone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from retell.descend import Epoch, up_and_down
from retell.rows.blocks import POOL, spaced
from retell.rows.pool import Pool
from retell.rows.shards import Shards
from retell.scaled import Rows
from retell.seeds import ORDER, generator
from retell.survey import enough
from retell.training import Training

__all__ = ["Streaming"]

Array = npt.NDArray[Any]

SECTION = POOL // 4  # bytes of rows between two lines of the record
WARM = 100  # steps until the learning rate is at its largest, where the end is not known


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
    """

    def __init__(self, training: Training, n_rows: int | None) -> None:
        self.training, self.plan, self.descent = training, training.plan, training.descent
        first: Any = self.plan.survey.rows
        first = first if isinstance(first, Shards) else Shards.of(first)
        raw = first.raw(self.plan.train)
        self.pool = Pool(max(1, len(first)), generator(self.plan.seed, ORDER))
        for _ in self.pool.add(raw):
            raise AssertionError("the first rows are no more than the pool")
        self.batch, a_row = self.plan.recipe.batch_size, raw[:1].nbytes
        self.section = np.empty((self.batch * max(1, SECTION // (self.batch * a_row)), raw.shape[1]), raw.dtype)
        self.filled = 0
        self.plan.survey = replace(self.plan.survey, rows=raw[:0])  # they are in the pool now
        total = math.inf if n_rows is None else self._steps(n_rows - len(self.plan.held_out))
        self.warm = WARM if n_rows is None else 0.1 * total
        whole = partial(up_and_down, total=total, up=training.plan.recipe.warmup)
        self.schedule = self._up if n_rows is None else whole
        self.descent.schedule, self.descent.end = self.schedule, total

    def epochs(self, coming: Iterable[Array]) -> Iterator[Epoch]:
        """Train on the rows (n, D) that come, and on those in the pool; yields after each section of rows."""
        yield from self._sections(some for rows in coming for some in self.pool.add(self._within(rows)))
        if not self._diverged:
            left = self._steps(self.filled + self.pool.count)
            self.descent.schedule = partial(self._down, start=self.descent.step, left=left)
            yield from self._sections(self.pool.rest(len(self.section)))
        if self.filled and not self._diverged:
            yield self._train(self.section[: self.filled])
        self.descent.restore_best()
        self._look_back()
        self.training.settle()

    def _look_back(self) -> None:
        """Let the record be of the rows that judge and of those that came last."""
        seen, last = self.plan.survey, self.pool.rows
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

    @property
    def _diverged(self) -> bool:
        history = self.training.history
        return len(history) > 0 and not math.isfinite(history[-1].loss)

    def _within(self, rows: Array) -> Array:
        """Those that `max_norm` leaves."""
        limit = self.training.limit
        if limit is None:
            return rows
        out = limit.beyond(rows)
        self.training.left_out += len(out)
        return np.delete(rows, out, 0)

    def _sections(self, blocks: Iterable[Array]) -> Iterator[Epoch]:
        """Train on rows whenever enough of them have come, while that does not diverge."""
        for block in blocks:
            while len(block):
                fits = min(len(self.section) - self.filled, len(block))
                self.section[self.filled : self.filled + fits] = block[:fits]
                self.filled, block = self.filled + fits, block[fits:]
                if self.filled == len(self.section):
                    self.filled = 0
                    yield self._train(self.section)
                    if self._diverged:
                        return

    def _train(self, section: Array) -> Epoch:
        plan = self.plan
        rows = Rows(self._wide(section), plan.survey.scaling, plan.codec.centre, holed=bool(np.isnan(section).any()))
        x: Any = rows if rows.device.type == "cpu" else rows[:]
        epoch = self.descent._judge(self.descent.one_epoch(x), None)
        self.training.history.append(epoch)
        return epoch

    def _wide(self, rows: Array) -> Any:
        return Shards.of(rows) if rows.dtype == np.float16 else rows

    def _steps(self, n: int) -> int:
        """Steps that so many rows make: all sections but the last are whole batches."""
        return max(1, math.ceil(n / self.batch))
