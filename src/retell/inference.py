"""Rows through a fitted codec in fixed, padded blocks.

A row's result depends on the row alone, to the bit: matrix products choose their kernels by shape, so
every product of a net has the same number of rows, and widths that are multiples of 16. What goes cell by
cell takes several such blocks at once. A few rows are multiplied fewer at a time and many more, where such products
are found to have the same bits: on a processor they are NumPy's, by one thread, and mostly do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from copy import copy, deepcopy
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from retell.arrays import overflowing
from retell.codec import Codec
from retell.networks import ACTIVATIONS, Affine, Net
from retell.spread import calm, spread, threads

__all__ = ["Inference", "Run", "in_blocks", "pad", "padded"]

Array = npt.NDArray[Any]

ROWS = 256
WIDTH = 16
CELLS = 2**20  # of a block of a function that is not known, and of what is held in float64
NARROW = 512  # columns and units up to which one thread is enough
WORK = 2**23  # multiplications a product of all layers may cost: what a row alone pays for
LEAST, MOST = 64, 2048  # rows of a product
FEW, ROOM = 16, 2**24  # rows of a product, and bytes of what a run holds, where codes are wide
FEWEST = 32  # rows of a product: of cells some 32 are computed at once, and what is left otherwise, not to the bit
WIDER, WIDEST, MANY = 8, 8192, 16  # times as many rows a product, at most so many, for so many products
NEAR = 1e15  # factors between this and its inverse, and shifts up to its square, are no danger to float32


class Inference:
    """Encode and decode many rows with a frozen copy of a codec.

    Parameters
    ----------
    codec : Codec
    shift, factor : ndarray of shape (D,), optional
        Rows are encoded as (row - shift) / factor; by default they are in the scaled space already.
    """

    def __init__(self, codec: Codec, shift: Array | None = None, factor: Array | None = None) -> None:
        self.n_columns, self.n_units = len(codec.centre), codec.n_units
        self.squash = deepcopy(codec.code_activation)
        if isinstance(self.squash, torch.nn.Module):
            self.squash.train(False)
        centre = codec.centre.double().cpu().numpy()
        shift = np.zeros_like(centre) if shift is None else shift
        factor = np.ones_like(centre) if factor is None else factor
        self.encoder = Stack(codec.encoder, codec.n_outputs, shift, factor, centre)
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
        with calm(1), overflowing():
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

    The division is in the first matrices; so is what is lost of the shift in the net's precision. Where columns have
    extreme units, or that is more than a unit, rows are scaled in float64 instead.

    Parameters
    ----------
    net : Net
    n_outputs : int
    shift, factor : ndarray of shape (D,)
    centre : ndarray of shape (D,), optional
        What stands for an unseen cell, scaled; zeros by default.

    Attributes
    ----------
    block, size : int
        Rows of a product, and rows that a run takes at most.
    """

    def __init__(self, net: Net, n_outputs: int, shift: Array, factor: Array, centre: Array | None = None) -> None:
        first = net.affines()[0].weight
        self.like, self.n_outputs, self.squash_ = first.detach()[:0], n_outputs, _in_place(net.activation)
        centre = np.zeros_like(shift) if centre is None else centre
        self.factor, whole = (torch.from_numpy(some).to(first.device) for some in (factor, shift))
        lost = whole - whole.to(first.dtype).double()
        sized = (whole.abs() < NEAR**2) & (lost.abs() <= self.factor) & (self.factor < NEAR) & (self.factor > 1 / NEAR)
        self.near = bool(sized.all())
        self.shift = whole.to(first.dtype) if self.near else whole
        lost = whole - self.shift.double()
        unit = self.factor if self.near else torch.ones_like(self.factor)
        self.hole = (unit * torch.from_numpy(centre).to(unit) + lost).to(first.dtype)
        self._take(net, unit, lost)
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
        for W in (_read(W) for W in [*self.weights, *([self.straight] if self.bounds else [])]):
            x = draw.standard_normal((max(block, self.block), len(W))).astype(W.dtype)
            whole = x @ W
            for some in (slice(least), slice(-least, None)):
                backwards = np.ascontiguousarray(x[some][::-1])
                if not np.array_equal((backwards @ W)[::-1], whole[some]):
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
        matrix, done = self.like.new_zeros(_round_up(n_in), _round_up(n_out)), 0
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
        self.x = stack.like.new_zeros(block, len(stack.weights[0]))
        self.inside = new(self.x.shape) if stack.bounds else self.x
        self.values = [new(n_rows, W.shape[1]) for W in stack.weights]
        whole = self.values[-1]
        self.result = whole if whole.shape[1] == stack.n_outputs else new(n_rows, stack.n_outputs)
        self.parts = [[_read(part) for part in y.view(-1, block, y.shape[1]).unbind()] for y in self.values]
        self.weights, self.straight = [_read(W) for W in stack.weights], _read(stack.straight)
        self.reads = _read(self.x), _read(self.inside)
        self.holed = False

    def __call__(self, rows: Tensor) -> tuple[Tensor, bool]:
        """The net's outputs, those of rows (n, D) first, and whether all cells were finite.

        Unseen cells get the centre. The outputs are good until the next ones; what comes after those of the
        rows belongs to no row.
        """
        rows = rows.to(self.stack.like.device)
        with overflowing():
            finite = self._products(rows)
            if not finite:
                self.holed = True
                self._products(rows)
        n = self.stack.n_outputs
        return torch.add(self.values[-1][:, :n], self.stack.biases[-1][:n], out=self.result), finite

    def _products(self, rows: Tensor) -> bool:
        """Everything but the last bias; whether the rows were finite.

        What is not finite in a row is not finite in any product with it, and the products are fewer.
        """
        stack, block, last = self.stack, self.stack.block, len(self.parts) - 1
        x, inside = self.reads
        for i, some in enumerate(torch.split(rows, block)):  # small enough to stay near the processor
            self._scale(some)
            _multiply(inside, self.weights[0], self.parts[0][i])
            if stack.bounds:
                _multiply(x, self.straight, self.parts[-1][i])
        looked = self.values[-1 if stack.bounds else 0][: len(rows)]
        finite = math.isfinite(looked.sum())
        for layer in range(1, last + 1):
            stack.squash_(self.values[layer - 1].add_(stack.biases[layer - 1]))
            for h, y in zip(self.parts[layer - 1], self.parts[layer], strict=True):
                _multiply(h, self.weights[layer], y, adds=bool(stack.bounds) and layer == last)
        return finite

    def _scale(self, rows: Tensor) -> None:
        """Rows of one product, as the first matrices read them."""
        stack, x = self.stack, self.x[: len(rows), : rows.shape[1]]
        if stack.near:
            torch.sub(rows, stack.shift, out=x)
        else:
            x.copy_((rows - stack.shift) / stack.factor)
        if self.holed:  # where one block has holes, the next ones will have some
            x.copy_(torch.where(torch.isnan(rows), stack.hole, x))
        if stack.bounds:
            torch.clamp(self.x, *stack.bounds, out=self.inside)


def _read(x: Tensor) -> Any:
    """x as its products read it: NumPy's on a processor."""
    return x.numpy() if x.device.type == "cpu" else x


def _multiply(a: Any, b: Any, y: Any, *, adds: bool = False) -> None:
    """y = a b, or y + a b."""
    if isinstance(y, Tensor):
        y.addmm_(a, b) if adds else torch.mm(a, b, out=y)
    elif adds:
        y += a @ b
    else:
        np.matmul(a, b, out=y)


@torch.no_grad()
def in_blocks(net: Callable[[Tensor], Tensor], rows: Array, width: int, like: Tensor) -> Array:
    """net(rows), computed in blocks of the dtype and on the device of `like`; the first `width` columns."""
    widest = max(rows.shape[1], width)
    size = min(ROWS, max(FEW, CELLS // widest // FEW * FEW))
    block = torch.zeros(size, _round_up(rows.shape[1]), dtype=like.dtype, device=like.device)
    out = np.empty((len(rows), width), dtype=like.detach().cpu().numpy().dtype)
    with threads(1 if widest <= NARROW else torch.get_num_threads()):
        for i in range(0, len(rows), size):
            some = torch.from_numpy(np.require(rows[i : i + size], requirements=["C", "W"]))
            block[: len(some), : rows.shape[1]] = some
            block[len(some) :] = 0
            out[i : i + size] = net(block)[: len(some), :width].cpu().numpy()
    return out


def _in_place(activation: str) -> Callable[[Tensor], Tensor]:
    if activation == "identity":
        return ACTIVATIONS[activation]
    squash: Callable[[Tensor], Tensor] = getattr(torch.ops.aten, f"{activation}_")
    return squash


def pad(matrix: Tensor) -> Tensor:
    """The matrix with rows and columns of zeros up to multiples of 16, detached."""
    matrix = matrix.detach()
    height, width = matrix.shape
    return torch.nn.functional.pad(matrix, (0, _round_up(width) - width, 0, _round_up(height) - height))


def padded(codec: Codec) -> Codec:
    """A frozen copy of a codec, its columns and units padded to multiples of 16; σ stays as wide."""
    squash = deepcopy(codec.code_activation)
    wide = Codec(_padded(codec.encoder), squash, _padded(codec.decoder), pad(codec.centre[None])[0]).train(False)
    if codec.log_scale is not None:
        wide.log_scale = torch.nn.Parameter(codec.log_scale.detach().clone(), requires_grad=False)
    return wide


def _padded(net: Net) -> Net:
    layers = [_widened(layer) for layer in net.affines()]
    straight = None if net.linear is None else layers.pop()
    wide = Net(layers, net.activation, straight)
    if straight is not None:
        wide.low, wide.high = pad(net.low[None])[0], pad(net.high[None])[0]
        wide.into, wide.out = net.into, net.out
    return wide


@torch.no_grad()
def _widened(layer: Affine) -> Affine:
    n_out, n_in = layer.weight.shape
    wide = Affine(_round_up(n_in), _round_up(n_out), bias=layer.bias is not None).to(layer.weight)
    wide.weight.copy_(pad(layer.weight))
    if layer.bias is not None and wide.bias is not None:
        wide.bias.copy_(pad(layer.bias[None])[0, : len(wide.bias)])
    return wide.requires_grad_(False)


def _round_up(width: int) -> int:
    return -(-width // WIDTH) * WIDTH
