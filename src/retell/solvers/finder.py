"""Which units of a batch may be active: the encoder's product, and of its N x K cells those that a code may keep.

A block of rows is multiplied, looked through and forgotten, each by a thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retell.activations import BatchTopK, JumpReLU, TopK
from retell.codec import Codec
from retell.parts import part_of
from retell.solvers.pairs import Block, Pairs, joined
from retell.solvers.passes import Algebra
from retell.spread import Work, even, spread

__all__ = ["Finder"]

CELLS = 5 * 2**19  # of the (rows, K) matrix that a thread holds


class Finder:
    """Finds the pairs of batch after batch.

    Parameters
    ----------
    codec : Codec
        Whose σ decides; a dial may give it another one between batches.
    low : Tensor of shape (K, D + 1 or more)
        The encoder's matrix, its bias beside it, as the product reads them.

    Attributes
    ----------
    read : Tensor of shape (N, D + 1 or more)
        The last batch as the product has read it, a one after each row.
    """

    def __init__(self, codec: Codec, low: Tensor) -> None:
        self.codec, self.low = codec, low
        self.most = max(64, CELLS // len(low))  # rows of a block
        self.blocks: list[Block] = []  # one a thread
        self.read = low[:0]
        self.guess = 0.0  # what BatchTopK's threshold will be above

    @property
    def part(self) -> Any:
        return part_of(self.codec.code_activation)

    def __call__(self, x: Tensor, n_threads: int) -> Pairs:
        """Every pair of rows (n, D) that may be active, its value a, by so many threads."""
        n, D = x.shape
        if len(self.read) != n:
            self.read = Algebra(numpy=False).with_ones(n, D, x, self.low.dtype)
        size = even(n, self.most, n_threads)
        if len(self.blocks) != n_threads or len(self.blocks[0].cells) != size:
            self.blocks = [Block(size, len(self.low), self.low.dtype) for _ in range(n_threads)]
        read, find, parts, free = self.read, self._find(x), {}, iter(self.blocks)
        low = self.low[:, : D + 1]  # what lies behind aligns rows, which is worth its bytes, not its products

        def start() -> Work:
            block = next(free)

            def work(i: int, j: int) -> None:
                read[i:j, :D] = x[i:j]
                parts[i] = find(block, torch.mm(read[i:j, : D + 1], low.T, out=block.cells[: j - i]))

            return work

        spread(start, n, size, enough=1, most=n_threads, staggered=True)  # one multiplies while another compares
        found = joined([parts[i] for i in sorted(parts)])
        found = found._replace(values=found.values.to(x.dtype))
        if isinstance(self.part, TopK) and self.part.least:
            return found.where((found.values > self.part.least).numpy())
        return self._of_batch(x, found, n_threads) if isinstance(self.part, BatchTopK) else found

    def _find(self, x: Tensor) -> Callable[[Block, Tensor], Pairs]:
        """What finds the pairs of a block (n, K) of a."""
        part, tiny = self.part, torch.finfo(self.low.dtype).tiny
        if isinstance(part, TopK):
            return lambda block, a: block.largest(a, int(part.k))
        if isinstance(part, BatchTopK):
            if not self.guess:
                few = x[: self.most]
                a = few.to(self.low.dtype) @ self.low[:, : x.shape[1]].T + self.low[:, x.shape[1]]
                self.guess = float(a.float().flatten().kthvalue(a.numel() - int(part.k) * len(a) + 1).values) / 2
            return lambda block, a: block.above(a, a.new_full((1, 1), max(tiny, self.guess)))
        if isinstance(part, JumpReLU):
            least = (self.codec.code_activation.threshold.detach().clamp(min=0) - part.bandwidth / 2)[None].to(
                self.low.dtype
            )
            return lambda block, a: block.above(a, least)
        return lambda block, a: block.above(a, a.new_full((1, 1), tiny))

    def _of_batch(self, x: Tensor, found: Pairs, n_threads: int) -> Pairs:
        """The pairs that are among the k N largest of the batch."""
        wanted, values = int(self.part.k) * len(x), found.values.numpy()
        if len(values) < wanted and self.guess > torch.finfo(self.low.dtype).tiny:
            self.guess = self.guess / 2 if self.guess > 1e-3 else torch.finfo(self.low.dtype).tiny
            return self(x, n_threads)
        least = np.partition(values, -wanted)[-wanted] if len(values) > wanted else values.min(initial=0.0)
        self.guess = 0.8 * float(least)
        return found.where(values >= least)
