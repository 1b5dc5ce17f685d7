"""The step of the mean squared error of whole rows alone: the common case, and small nets have no time for Python.

    d = x̂ - x,     Σ d² / (n D),     and all gradients n D / 2 times those of that mean, which Adam's kernel sets right

Small products are shared badly by threads, which wait for each other at each of them and find little of what they read
near their core. `Shares` gives each thread rows of its own, from end to end.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise, repeat

import torch
from torch import Tensor

from retell.activations import Identity, ReLU, Sigmoid, Tanh
from retell.batches import Due
from retell.codec import Codec
from retell.descend import Number
from retell.solvers.passes import SQUASHES, Algebra, Call, Passes, Place
from retell.spread import at_once

__all__ = ["SQUARED", "Shares", "Squares"]

SQUARED = {kind: SQUASHES[kind.__name__.lower()] for kind in (Identity, ReLU, Sigmoid, Tanh)}


class Squares:
    """The step of n rows or fewer: all its calls in two lists. d takes the place of x̂.

    Products in bfloat16 like rows by 32; those beyond the rows given have a gradient of zero.
    """

    def __init__(self, codec: Codec, places: dict[int, Place], algebra: Algebra, n: int) -> None:
        like, squash = codec.centre, SQUARED[type(codec.code_activation)]
        rounded = any(place.value.dtype == torch.bfloat16 for place in places.values())
        padded = -(-n // 32) * 32 if rounded else n
        straight = codec.encoder.linear is not None  # adds no bias, and layers beside it read a copy that is clipped
        of_x = padded, len(like), like, like.dtype
        x = algebra.memory(*of_x).zero_() if straight else algebra.with_ones(*of_x)  # what lies beyond rows is finite
        h = algebra.with_ones(padded, codec.n_units, like, like.dtype)
        h_only = h[:, : codec.n_units]
        self.y = y = algebra.memory(padded, len(like), like, like.dtype)
        decoder = Passes(codec.decoder, places, algebra, h, adds=False, further=True, y=y, d=y)
        encoder = Passes(codec.encoder, places, algebra, x, adds=codec.tied, further=False, y=h_only, d=decoder.back)
        # rows land where the first layer reads, if nothing else reads them
        ahead, lands = (encoder.calls, x) if straight else (encoder.after_reading, encoder.reads[0])
        self.lands = lands[:, : len(like)]
        self.views = dict[int, tuple[Tensor, Tensor, Tensor | None]]()
        self.ahead: list[Call] = [*ahead, *squash.forward(h_only, h_only), *decoder.calls]
        self.square = algebra.square((y if y.is_contiguous() else y.T).view(-1))
        self.back: list[Call] = [
            *decoder.back_calls,
            *squash.backward(decoder.back, h_only, h_only),
            *encoder.back_calls,
        ]

    def forward(self, x: Tensor | Due) -> Tensor:
        """What the net makes of rows (n, D) or fewer."""
        lands, y, _ = self._of(x.shape[0])
        if isinstance(x, Due):
            x.into(lands)
        else:
            lands.copy_(x)
        for call in self.ahead:
            call()
        return y

    def __call__(self, x: Tensor | Due) -> Number:
        """Write a multiple of the gradient at rows (n, D) or fewer; Σ (x̂ - x)²."""
        y, (lands, _, beyond) = self.forward(x), self._of(x.shape[0])  # len() of a tensor takes a microsecond
        y.sub_(lands if isinstance(x, Due) else x)
        if beyond is not None:
            beyond.zero_()
        square: Number = self.square()
        for call in self.back:
            call()
        return square

    def _of(self, n: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Of so many rows where they land, what is made of them, and what lies beyond that."""
        if n not in self.views:  # an epoch's batches have two sizes, and a view takes as long as a small product
            self.views[n] = self.lands[:n], self.y[:n], self.y[n:] if n < len(self.y) else None
        return self.views[n]


class Shares:
    """`Squares` of n rows or fewer by as many threads as there are `places`, each with a gradient of its own."""

    def __init__(self, codec: Codec, places: list[dict[int, Place]], algebra: Algebra, n: int) -> None:
        self.ends = [n * i // len(places) for i in range(len(places) + 1)]
        sizes = (end - start for start, end in pairwise(self.ends))
        self.squares = [Squares(codec, *its) for its in zip(places, repeat(algebra), sizes, strict=False)]

    def __call__(self, x: Tensor | Due) -> Number:
        """Write a multiple of the gradient, a part of it for each share; Σ (x̂ - x)²."""
        shares = zip(self.squares, pairwise(self.ends), strict=True)
        return sum(at_once([partial(squares, x[start:end]) for squares, (start, end) in shares]))
