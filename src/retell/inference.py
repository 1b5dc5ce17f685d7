"""Rows through a fitted codec.

A row's result depends on the row alone, to the bit: matrix products choose their kernels by shape, so those of
NumPy and torch get blocks of a fixed number of rows, padded, and widths that are multiples of 16. oneDNN's get any
number; where they are found to have the same bits, they do all the work of many rows, and few rows are multiplied
fewer at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from copy import copy, deepcopy
from functools import cache, cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from retell.arrays import overflowing
from retell.codec import Codec
from retell.networks import ACTIVATIONS, Net
from retell.padding import CELLS, FEW, pad, round_up
from retell.spread import calm, power_of_two, spread

__all__ = ["Inference", "Run"]

Array = npt.NDArray[Any]

FEWEST, LEAST = 32, 64  # rows of a product: some 32 cells are computed at once, and what is left not to the same bit
ROOM, MOST = 2**23, 2**24  # bytes of what a run holds, to stay near the processor, and where rows are wide
WORK, TURNS = 2**24, 16  # multiplications that repay a thread's turn, and turns that leave enough for every thread
MUCH = 2**30  # multiplications that repay the packing of small matrices
CLOSE = 16  # times as large as usual that sums may be for a shift to be in the biases: four bits of them are lost
PACKED = 2**16, 2**20  # least and most numbers of a matrix that is always packed: larger cost memory
ONEDNN = torch.ops.mkldnn
ALIKE = set[Any]()  # shapes of nets and products that were found to have the same bits
NEAR = 1e15  # factors between this and its inverse, and shifts up to its square, are no danger to float32


class Inference:
    """Encode and decode many rows with a frozen copy of a codec.

    Parameters
    ----------
    codec : Codec
    shift, factor : ndarray of shape (D,), optional
        Rows are encoded as (row - shift) / factor; by default they are in the scaled space already.
    cell : float, default=0.0
        Root mean square of scaled cells about their centre, so far as it is known.
    """

    def __init__(
        self, codec: Codec, shift: Array | None = None, factor: Array | None = None, cell: float = 0.0
    ) -> None:
        self.n_columns, self.n_units = len(codec.centre), codec.n_units
        self.squash = deepcopy(codec.code_activation)
        if isinstance(self.squash, torch.nn.Module):
            self.squash.train(False)
        centre = codec.centre.double().cpu().numpy()
        shift = np.zeros_like(centre) if shift is None else shift
        factor = np.ones_like(centre) if factor is None else factor
        self.encoder = Stack(codec.encoder, codec.n_outputs, shift, factor, centre, cell)
        self.decoder = Stack(codec.decoder, self.n_columns, np.zeros(self.n_units), np.ones(self.n_units))

    @property
    def dtype(self) -> np.dtype[Any]:
        """What codes are computed in."""
        return np.dtype(str(self.encoder.like.dtype).removeprefix("torch."))

    def size(self, n_rows: int) -> int:
        """Rows that both nets take at once, of so many."""
        return min(self.encoder.size(n_rows), self.decoder.size(n_rows))

    def encode(self, rows: Array) -> Array:
        """Rows (N, D), NaN where unseen, to codes (N, K)."""
        return self._through(self.encoder, self.squash, rows, self.n_units)

    def decode(self, h: Array) -> Array:
        """Codes (N, K) to the decoder's outputs (N, D)."""
        return self._through(self.decoder, lambda x_hat: x_hat, h, self.n_columns)

    def _through(self, stack: Stack, last: Callable[[Tensor], Tensor], rows: Array, width: int) -> Array:
        out = np.empty((len(rows), width), self.dtype)
        given = from_dlpack(np.ascontiguousarray(rows))

        def start() -> Callable[[int, int], None]:
            run = Run(stack, len(rows))

            def work(i: int, j: int) -> None:
                out[i:j] = last(run(given[i:j])[0])[: j - i].cpu().numpy()

            return work

        with calm(1):
            spread(start, len(rows), stack.size(len(rows)))
        return out


class Stack:
    """A net, frozen, as matrices that read rows as they are.

    y = net((row - shift) / factor)

    The division is in the first matrices. The shift is in the biases where it is small beside cells, and so is what
    each unit of the first matrices makes of it: rows of the net's own dtype, without holes, are then read as they lie.
    Elsewhere it is taken from the rows, and what it loses in the net's precision is in the biases. Where columns have
    extreme units, or a shift loses more than a unit, rows are scaled in float64 instead.

    Parameters
    ----------
    net : Net
    n_outputs : int
    shift, factor : ndarray of shape (D,)
    centre : ndarray of shape (D,), optional
        What stands for an unseen cell, scaled; zeros by default.
    cell : float, default=0.0
        As for `Inference`.

    Attributes
    ----------
    block : int
        Rows of a product.
    work : int
        Multiplications a row.
    """

    def __init__(
        self, net: Net, n_outputs: int, shift: Array, factor: Array, centre: Array | None = None, cell: float = 0.0
    ) -> None:
        first = net.affines()[0].weight
        self.like, self.n_outputs, self.squash_ = first.detach()[:0], n_outputs, _in_place(net.activation)
        centre = np.zeros_like(shift) if centre is None else centre
        self.factor, whole = (torch.from_numpy(some).to(first.device) for some in (factor, shift))
        lost = whole - whole.to(first.dtype).double()
        sized = (whole.abs() < NEAR**2) & (lost.abs() <= self.factor) & (self.factor < NEAR) & (self.factor > 1 / NEAR)
        self.near = bool(sized.all())
        self.plain = self.near and _is_small(whole / self.factor, net, CLOSE * cell)
        self.shift = (whole * (not self.plain)).to(first.dtype) if self.near else whole
        lost = whole - self.shift.double()
        unit = self.factor if self.near else torch.ones_like(self.factor)
        self.hole = (unit * torch.from_numpy(centre).to(unit) + lost).to(first.dtype)
        self._take(net, unit, lost)
        shapes = [product.W.shape for product in self.products]
        self.work = sum(math.prod(shape) for shape in shapes)
        read = shapes[0][0] * (2 if self.bounds else 1)
        cut = n_outputs if n_outputs != shapes[-1][1] else 0
        held = self.like.element_size() * (read + sum(n_out for _, n_out in shapes) + cut)
        self.block = power_of_two(max(ROOM // held, min(LEAST, MOST // held), FEW))
        self._others: dict[int, Stack] = {}

    def size(self, n_rows: int) -> int:
        """Rows of a run, of so many: whatever the number of threads, as sums over rows are sums of those of runs."""
        return min(self.block, max(power_of_two(WORK // self.work), power_of_two(n_rows // TURNS), LEAST))

    def fitted(self, n_rows: int, of: int) -> Stack:
        """For a block of so many rows of all."""
        if of * self.work >= MUCH and self.packed is not self:
            return self.packed
        return self.sized(max(FEWEST, 1 << (n_rows - 1).bit_length()))

    @cached_property
    def packed(self) -> Stack:
        """With packed products of any number of blocks of few rows, if a row has the same bits by them."""
        other = copy(self)
        other.block, other.products = FEWEST, [product.whole() for product in self.products]
        other.bounds = [bound[: len(other.products[0].W)] for bound in self.bounds]
        packs = all(product.packed is not None for product in other.products)
        return self._if_alike(other, (FEWEST, 3 * FEWEST, self.block)) if packs else self

    def sized(self, block: int) -> Stack:
        """With products of so many rows, at most `block`, if a row has the same bits by them."""
        if block >= self.block:
            return self
        if block not in self._others:
            other = copy(self)
            other.block = block
            self._others[block] = self._if_alike(other, (block,))
        return self._others[block]

    def _if_alike(self, other: Stack, sizes: tuple[int, ...]) -> Stack:
        """The other, where a row has the same bits by it: shapes decide that, so it is asked once of each."""
        shapes = (tuple(product.W.shape) for stack in (self, other) for product in stack.products)
        asked = self.like.dtype, self.block, sizes, *shapes
        if asked not in ALIKE and self.has_alike(other, sizes):
            ALIKE.add(asked)
        return other if asked in ALIKE else self

    def has_alike(self, other: Stack, sizes: tuple[int, ...]) -> bool:
        """Whether a row has the same products by another among so many, wherever it stands."""
        if self.like.device.type != "cpu":
            return False
        draw = np.random.default_rng(0)
        for mine, theirs in ((a.bare(), b.bare()) for a, b in zip(self.products, other.products, strict=True)):
            x = torch.from_numpy(draw.random((min(self.block, LEAST), len(mine.W)), np.float32)).to(mine.W) - 0.5
            x = x.repeat(self.block // len(x), 1)
            n_in, n_out = theirs.W.shape
            whole = mine(x, {})[:, :n_out]
            for n in sizes:
                for some in (slice(n), slice(-n, None)):
                    if not torch.equal(theirs(x[some, :n_in].flip(0), {}).flip(0), whole[some]):
                        return False
        return True

    @torch.no_grad()
    def _take(self, net: Net, unit: Tensor, lost: Tensor) -> None:
        """The net's products, that of a straight path last, and bounds, padded, to read x = (block - lost) / unit."""
        weights = [layer.weight.detach() for layer in net.affines()]
        shapes = [(W.shape[1], W.shape[0]) for W in weights]
        biases = [torch.zeros_like(W[:, 0]) if b is None else b.double() for W, b in
                  zip(weights, (layer.bias for layer in net.affines()), strict=True)]  # fmt: skip
        self.bounds = []
        if net.linear is not None:
            weights = [W.double() for W in weights]
            into, out = net.into.double(), net.out.double()
            bounds = [bound.double() / into * unit + lost for bound in (net.low, net.high)]
            self.bounds = [pad(bound[None].to(self.like))[0] for bound in bounds]
            weights[0], weights[-2], weights[-1] = weights[0] * into, out * weights[-2], weights[-1] / unit
            biases[-2], biases[-1] = out * biases[-2] - weights[-1] @ lost, torch.zeros_like(biases[-1])
        if lost.any():
            biases[0] = biases[0] - torch.cat([some @ lost for some in _divided(weights[0], unit)])
        matrices = [self._matrix(weights[0], unit), *map(self._matrix, weights[1:])]
        vectors = [pad(b[None].to(self.like))[0] for b in biases]
        self.products = [Product(*each) for each in zip(matrices, vectors, shapes, strict=True)]

    def _matrix(self, W: Tensor, unit: Tensor | None = None) -> Tensor:
        """(W / unit)ᵀ, padded."""
        n_out, n_in = W.shape
        matrix, done = self.like.new_zeros(round_up(n_in), round_up(n_out)), 0
        if unit is None or bool((unit == 1).all()):
            matrix[:n_in, :n_out] = W.T
            return matrix
        for some in _divided(W, unit):
            matrix[:n_in, done : done + len(some)] = some.T
            done += len(some)
        return matrix


def _divided(W: Tensor, unit: Tensor) -> Iterator[Tensor]:
    """W / unit in float64, some rows at a time: a wide matrix need not be there twice."""
    for some in torch.split(W, max(1, CELLS // W.shape[1])):
        yield some.double() / unit


class Run:
    """What one thread knows and holds while so many rows go through a stack."""

    def __init__(self, stack: Stack, n_rows: int) -> None:
        self.whole, self.n_rows, self.holed = stack, n_rows, False
        self.held: dict[Any, Tensor] = {}

    def __call__(self, rows: Tensor) -> tuple[Tensor, bool]:
        """The net's outputs, those of rows (n, D) first, and whether all cells were finite.

        Unseen cells get the centre. The outputs are good until the next ones; what comes after those of the
        rows belongs to no row, and lets cells be computed alike that are computed several at a time.
        """
        rows, n = rows.to(self.whole.like.device), self.whole.n_outputs
        stack = self.whole.fitted(len(rows), self.n_rows)
        y, finite = self._products(stack, rows)
        if not finite:
            self.holed = True  # where one block has holes, the next ones will have some
            y, _ = self._products(stack, rows)
        return y if y.shape[1] == n else y[:, :n].contiguous(), finite

    def _products(self, stack: Stack, rows: Tensor) -> tuple[Tensor, bool]:
        """The outputs, padded, and whether the rows were finite.

        What is not finite in a row is not finite in any product with it, and the products are fewer.
        """
        held, x = self.held, self.read(stack, rows)
        first, *others = stack.products
        if stack.bounds:
            straight = others.pop()(x, held)
            x = torch.clamp(x, *stack.bounds, out=_memory(held, "inside", x, *x.shape))
        h = first(x, held)
        finite = math.isfinite((straight if stack.bounds else h).sum())
        for product in others:
            h = product(stack.squash_(h), held)
        return h.add_(straight) if stack.bounds else h, finite

    def read(self, stack: Stack, rows: Tensor) -> Tensor:
        """Rows as the first product of a stack reads them: where it can, as they lie."""
        n, D = rows.shape
        width, height = len(stack.products[0].W), -(-n // stack.block) * stack.block
        if stack.plain and rows.dtype == stack.like.dtype and (n, D) == (height, width) and not self.holed:
            return rows
        x = _memory(self.held, "x", stack.like, height, width)
        x[n:], x[:, D:] = 0, 0
        some = x[:n, :D]
        if stack.near:
            torch.sub(rows, stack.shift, out=some)
        else:
            some.copy_((rows - stack.shift) / stack.factor)
        if self.holed:
            some.copy_(torch.where(torch.isnan(rows), stack.hole, some))
        return x


class Product:
    """x W + b, by one thread on a processor: oneDNN's where a matrix repays being packed, else NumPy's.

    Parameters
    ----------
    W : Tensor of shape (n_in, n_out)
    b : Tensor of shape (n_out,)
    shape : tuple of int
        Of W without padding.
    """

    def __init__(self, W: Tensor, b: Tensor, shape: tuple[int, int]) -> None:
        self.W, self.b, self.shape, self.cpu = W, b, shape, W.device.type == "cpu"
        self.packed: Tensor | None = None
        if W.numel() >= PACKED[0]:
            self._pack()

    def whole(self) -> Product:
        """Packed, and without padding."""
        if self.packed is not None and self.W.shape == self.shape:
            return self
        other, (n_in, n_out) = copy(self), self.shape
        other.W, other.b = self.W[:n_in, :n_out], self.b[:n_out]
        other._pack()
        return other

    def bare(self) -> Product:
        """x W alone."""
        other = copy(self)
        other.b = torch.zeros_like(self.b)
        return other

    def _pack(self) -> None:
        W = self.W
        if self.cpu and W.dtype == torch.float32 and W.numel() <= PACKED[1] and has_onednn():
            self.packed = ONEDNN._reorder_linear_weight(W.T, LEAST)  # a hint: any number of rows may come

    def __call__(self, x: Tensor, held: dict[Any, Tensor]) -> Tensor:
        """In memory that is held, or of its own where the matrix is packed."""
        if self.packed is not None:
            found: Tensor = ONEDNN._linear_pointwise(x, self.packed, self.b, "none", [], "")
            return found
        y = _memory(held, self, x, len(x), self.W.shape[1])
        if self.cpu:
            with overflowing():
                np.matmul(x.numpy(), self.W.numpy(), out=y.numpy())
        else:
            torch.mm(x, self.W, out=y)
        return y.add_(self.b)


def _memory(held: dict[Any, Tensor], key: Any, like: Tensor, height: int, width: int) -> Tensor:
    """Kept from block to block: what is taken anew each time, the system may have to clear."""
    if key not in held or len(held[key]) < height:
        held[key] = like.new_empty(height, width)
    return held[key][:height]


def _is_small(shift: Tensor, net: Net, bound: float) -> bool:
    """Whether a scaled shift is small beside cells, and to the first matrices beside what they make of rows."""
    if not shift.any():  # of a decoder, say, whose matrix may be large
        return True
    firsts = [net.affines()[0].weight.detach(), *([] if net.linear is None else [net.linear.weight.detach()])]
    return bool((shift.abs() <= bound).all()) and all(
        bool(((W @ shift.to(W)).abs() <= bound * W.norm(dim=1)).all()) for W in firsts
    )


@cache
def has_onednn() -> bool:
    """Whether torch gives oneDNN a packed matrix: by an inner call, that a build may lack and a version may change."""
    x = torch.ones(LEAST, LEAST, dtype=torch.float32, device="cpu")
    try:
        packed = ONEDNN._reorder_linear_weight(x, LEAST)
        return torch.equal(ONEDNN._linear_pointwise(x, packed, x[0], "none", [], ""), LEAST * x + 1)
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):
        return False


def _in_place(activation: str) -> Callable[[Tensor], Tensor]:
    if activation == "identity":
        return ACTIVATIONS[activation]
    squash: Callable[[Tensor], Tensor] = getattr(torch.ops.aten, f"{activation}_")
    return squash
