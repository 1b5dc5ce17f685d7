"""Rows through a fitted codec in fixed, padded blocks.

A row's result depends on the row alone, to the bit: matrix products choose their kernels by shape, so
every product of a net has the same number of rows, and widths that are multiples of 16. What goes cell by
cell takes several such blocks at once. A few rows are multiplied fewer at a time and many more, where such products
are found to have the same bits: on a processor they are NumPy's or oneDNN's, by one thread, and mostly do.
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
from retell.spread import calm, spread, threads

__all__ = ["Inference", "Run"]

Array = npt.NDArray[Any]

WORK = 2**23  # multiplications a product of all layers may cost: what a row alone pays for
LEAST, MOST = 64, 2048  # rows of a product
ROOM = 2**24  # bytes of what a run holds
FEWEST = 32  # rows of a product: of cells some 32 are computed at once, and what is left otherwise, not to the bit
WIDER, WIDEST, MANY = 8, 16384, 16  # times as many rows a product, at most so many, for so many products
CLOSE = 16  # times as large as usual that sums may be for a shift to be in the biases: four bits of them are lost
PACKED = 2**16, 2**20  # least and most numbers of a matrix that is packed: smaller do not repay it, larger cost memory
ONEDNN = torch.ops.mkldnn
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
        self._others: dict[int, Inference] = {}

    @property
    def dtype(self) -> np.dtype[Any]:
        """What codes are computed in."""
        return np.dtype(str(self.encoder.like.dtype).removeprefix("torch."))

    def sized(self, n_rows: int) -> Inference:
        """For so many rows: with products of fewer or of more, where they are known to have the same bits."""
        block, wide = self.encoder.block, min(stack.wider() for stack in (self.encoder, self.decoder))
        if n_rows >= MANY * wide:
            block = wide
        elif n_rows < block:
            block = min(block, max(FEWEST, 1 << (n_rows - 1).bit_length()))
        if block == self.encoder.block:
            return self
        if block not in self._others:
            self._others[block] = self._other(block)
        return self._others[block]

    def _other(self, block: int) -> Inference:
        other, stacks = copy(self), (self.encoder, self.decoder)
        with calm(1), threads(1), overflowing():  # as `spread` works
            if not all(stack.has_alike(block) for stack in stacks):
                return self
        other.encoder, other.decoder = (stack.sized(block) for stack in stacks)
        return other

    def encode(self, rows: Array) -> Array:
        """Rows (N, D), NaN where unseen, to codes (N, K)."""
        return self._through(self.sized(len(rows)).encoder, self.squash, rows, self.n_units)

    def decode(self, h: Array) -> Array:
        """Codes (N, K) to the decoder's outputs (N, D)."""
        return self._through(self.sized(len(h)).decoder, lambda x_hat: x_hat, h, self.n_columns)

    def _through(self, stack: Stack, last: Callable[[Tensor], Tensor], rows: Array, width: int) -> Array:
        out = np.empty((len(rows), width), self.dtype)
        given = from_dlpack(np.ascontiguousarray(rows))

        def start() -> Callable[[int, int], None]:
            run = stack.start(min(len(rows), stack.size))

            def work(i: int, j: int) -> None:
                out[i:j] = last(run(given[i:j])[0])[: j - i].cpu().numpy()

            return work

        with calm(1):
            spread(start, len(rows), stack.size)
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
    block, size : int
        Rows of a product, and rows that a run takes at most.
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
        biases: list[Tensor | None] = [*self.biases[:-1], None]  # the last one is added where padding is left out
        self.products = [Product(W, b) for W, b in zip(self.weights, biases, strict=True)]
        if self.bounds:
            self.products.append(Product(self.straight))
        work = sum(W.numel() for W in [*self.weights, self.straight])
        self.most = ROOM // (self.like.element_size() * self._breadth())
        block = min(max(1 << (WORK // work).bit_length() >> 1, LEAST), MOST)
        self.block = min(block, max(1 << self.most.bit_length() >> 1, FEW))
        self.size = self.block * min(8, max(1, self.most // self.block))

    def start(self, n_rows: int) -> Run:
        """What one thread needs for blocks of at most so many rows."""
        return Run(self, -(-n_rows // self.block) * self.block)

    def wider(self) -> int:
        """Rows that a product of many may have."""
        return self.block * max(1, min(WIDER, WIDEST // self.block, self.most // self.block))

    def has_alike(self, block: int) -> bool:
        """Whether a row has the same products among so many, wherever it stands."""
        if self.like.device.type != "cpu":
            return False
        draw, least = np.random.default_rng(0), min(block, self.block)
        for product in (product.without_bias() for product in self.products):  # which would hide small differences
            x = torch.from_numpy(draw.random((max(block, self.block), len(product.W)), np.float32))
            x = x.to(product.W) - 0.5
            whole = product(x)
            for some in (slice(least), slice(len(x) - least, None)):
                if not torch.equal(product(x[some].flip(0)).flip(0), whole[some]):
                    return False
        return True

    def sized(self, block: int) -> Stack:
        """The same with products of so many rows."""
        other = copy(self)
        other.block = other.size = block
        return other

    def _breadth(self) -> int:
        """Numbers that a run holds for each of its rows."""
        read = len(self.weights[0]) * (2 if self.bounds else 1)
        widths = [W.shape[1] for W in self.weights]
        return read + sum(widths) + (self.n_outputs if widths[-1] != self.n_outputs else 0)

    @torch.no_grad()
    def _take(self, net: Net, unit: Tensor, lost: Tensor) -> None:
        """The net's matrices (n_in, n_out), biases and bounds, padded, to read x = (block - lost) / unit."""
        weights = [layer.weight.detach() for layer in net.affines()]
        biases = [torch.zeros_like(W[:, 0]) if b is None else b.double() for W, b in
                  zip(weights, (layer.bias for layer in net.affines()), strict=True)]  # fmt: skip
        self.bounds, self.straight = [], self.like
        if net.linear is not None:
            weights = [W.double() for W in weights]
            into, out, V = net.into.double(), net.out.double(), weights.pop() / unit
            bounds = [bound.double() / into * unit + lost for bound in (net.low, net.high)]
            self.bounds = [pad(bound[None].to(self.like))[0] for bound in bounds]
            self.straight = self._matrix(V)
            weights[0], weights[-1], biases[-2] = weights[0] * into, out * weights[-1], out * biases[-2] - V @ lost
            biases.pop()
        if lost.any():
            biases[0] = biases[0] - torch.cat([some @ lost for some in _divided(weights[0], unit)])
        self.weights = [self._matrix(weights[0], unit), *map(self._matrix, weights[1:])]
        self.biases = [pad(b[None].to(self.like))[0] for b in biases]

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
    """What one thread holds while rows go through a stack.

    Parameters
    ----------
    stack : Stack
    n_rows : int
        A multiple of the stack's `block`.
    """

    def __init__(self, stack: Stack, n_rows: int) -> None:
        self.stack, block = stack, stack.block
        new = stack.like.new_empty
        self.inside = new(block if stack.bounds else 0, len(stack.weights[0]))
        self.values = [new(n_rows, W.shape[1]) for W in stack.weights]
        wide = self.values[-1].shape[1] != stack.n_outputs
        self.result = new(n_rows, stack.n_outputs) if wide else None
        self.parts = [y.view(-1, block, y.shape[1]).unbind() for y in self.values]
        self.holed = False

    def __call__(self, rows: Tensor) -> tuple[Tensor, bool]:
        """The net's outputs, those of rows (n, D) first, and whether all cells were finite.

        Unseen cells get the centre. The outputs are good until the next ones; what comes after those of the
        rows belongs to no row.
        """
        rows = rows.to(self.stack.like.device)
        with overflowing():
            y, finite = self._products(rows)
            if not finite:
                self.holed = True
                y, _ = self._products(rows)
        n, result = self.stack.n_outputs, y if self.result is None else self.result
        return torch.add(y[:, :n], self.stack.biases[-1][:n], out=result), finite

    @cached_property
    def x(self) -> Tensor:
        """Rows of one product that are not read as they lie."""
        return self.stack.like.new_zeros(self.stack.block, len(self.stack.weights[0]))

    def _products(self, rows: Tensor) -> tuple[Tensor, bool]:
        """Everything but the last bias, and whether the rows were finite.

        What is not finite in a row is not finite in any product with it, and the products are fewer.
        """
        stack, parts, last = self.stack, [list(some) for some in self.parts], len(self.parts) - 1
        for i, some in enumerate(torch.split(rows, stack.block)):  # small enough to stay near the processor
            x, inside = self._scaled(some)
            parts[0][i] = stack.products[0](inside, parts[0][i])
            if stack.bounds:
                parts[last][i] = stack.products[-1](x, parts[last][i])
        looked = last if stack.bounds else 0
        finite = math.isfinite(self._whole(looked, parts)[: len(rows)].sum())
        for layer in range(1, last + 1):
            stack.squash_(self._whole(layer - 1, parts))
            adds = bool(stack.bounds) and layer == last
            parts[layer] = [
                stack.products[layer](h, y, adds=adds) for h, y in zip(parts[layer - 1], parts[layer], strict=True)
            ]
        return self._whole(last, parts), finite

    def _whole(self, layer: int, parts: list[list[Tensor]]) -> Tensor:
        """All of a layer's products side by side; those in memory of their own are copied, and seen there from then."""
        found = parts[layer]
        if len(found) == 1:
            return found[0]
        parts[layer] = list(self.parts[layer])
        for y, part in zip(found, parts[layer], strict=True):
            if y is not part:
                part.copy_(y)
        return self.values[layer]

    def _scaled(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of one product, as the straight matrix reads them, and as the first one does."""
        stack = self.stack
        as_is = rows.dtype == stack.like.dtype and rows.shape == (stack.block, len(stack.weights[0]))
        if stack.plain and as_is and not self.holed:
            x = rows
        else:
            x, some = self.x, self.x[: len(rows), : rows.shape[1]]
            if stack.near:
                torch.sub(rows, stack.shift, out=some)
            else:
                some.copy_((rows - stack.shift) / stack.factor)
            if self.holed:  # where one block has holes, the next ones will have some
                some.copy_(torch.where(torch.isnan(rows), stack.hole, some))
        return x, torch.clamp(x, *stack.bounds, out=self.inside) if stack.bounds else x


class Product:
    """x W + b, by one thread on a processor: oneDNN's where a matrix repays being packed, else NumPy's.

    Parameters
    ----------
    W : Tensor of shape (n_in, n_out)
    b : Tensor of shape (n_out,), optional
    """

    def __init__(self, W: Tensor, b: Tensor | None = None) -> None:
        self.W, self.b, self.cpu = W, b, W.device.type == "cpu"
        self.packed: Tensor | None = None
        if self.cpu and W.dtype == torch.float32 and PACKED[0] <= W.numel() <= PACKED[1] and has_onednn():
            self.packed = ONEDNN._reorder_linear_weight(W.T, LEAST)  # a hint: any number of rows may come

    def without_bias(self) -> Product:
        """x W alone."""
        bare = copy(self)
        bare.b = None
        return bare

    def __call__(self, x: Tensor, y: Tensor | None = None, *, adds: bool = False) -> Tensor:
        """x W + b: in y, or in memory of its own where there is no y, or the matrix is packed; or y += x W + b."""
        if self.packed is not None:
            found = ONEDNN._linear_pointwise(x, self.packed, self.b, "none", [], "")
            return found if y is None or not adds else y.add_(found)
        y = x.new_empty(len(x), self.W.shape[1]) if y is None else y
        if not self.cpu:
            y = y.addmm_(x, self.W) if adds else torch.mm(x, self.W, out=y)
        elif adds:
            y += torch.from_numpy(x.numpy() @ self.W.numpy())
        else:
            np.matmul(x.numpy(), self.W.numpy(), out=y.numpy())
        return y if self.b is None else y.add_(self.b)


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
