"""Both ways through a net, written out as lists of calls on memory that is taken once.

    a_l = W_l h_(l-1) + b_l,                h_l = s(a_l)
    d_l = (W_(l+1)ᵀ d_(l+1)) ∘ s'(a_l),     ∂J/∂W_l = d_lᵀ h_(l-1),     ∂J/∂b_l = Σ_n d_l

Small nets cost less to compute than to describe, so the description is made once: every call has its tensors
bound, and a step only runs down the list. For the same reason a bias lies beside its matrix, and rows end in a
one: the product adds the bias, and its backward pass sums d. Rows come and go in the codec's dtype; each
layer's products are in that of its place.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from retell.networks import Affine, Net
from retell.spread import calm

__all__ = ["SQUASHES", "Algebra", "Call", "Passes", "Place", "breadth", "lying"]

aten = torch.ops.aten

NARROW = 12  # columns that are few, at most
SMALL = 2**14  # weights of a small matrix, at most

Call = Callable[[], Any]


class Squash(NamedTuple):
    """A hidden layer's activation and what it makes of a gradient, as calls in place."""

    forward: Callable[[Tensor, Tensor], list[Call]]
    """From a to h, which are one and the same unless `keeps`."""
    backward: Callable[[Tensor, Tensor, Tensor], list[Call]]
    """From d, a and h to d ∘ s'(a)."""
    keeps: bool = False
    """Whether the derivative needs a."""


def _kernel(overload: Any) -> Any:
    """What a call of it ends in; a layer of Python less, half a microsecond."""
    return getattr(overload, "_op", overload)


def _of_h(in_place: str, backward: Any, *threshold: float) -> Squash:
    """An activation whose derivative is a function of h."""
    return Squash(
        lambda a, _h: [getattr(a, in_place)],
        lambda d, _a, h: [partial(_kernel(backward.grad_input), d, h, *threshold, grad_input=d)],
    )


def _of_a(forward: Any, backward: Any) -> Squash:
    """An activation whose derivative is a function of a."""

    def ahead(a: Tensor, h: Tensor) -> list[Call]:
        if a.stride() == h.stride():
            return [partial(forward.out, a, out=h)]
        dense = torch.empty_like(a)  # torch's gelu of rows without gaps writes as if its output had none either
        return [partial(forward.out, a, out=dense), partial(h.copy_, dense)]

    return Squash(ahead, lambda d, a, _h: [partial(_kernel(backward.grad_input), d, a, grad_input=d)], True)


SQUASHES = {
    "identity": Squash(lambda _a, _h: [], lambda _d, _a, _h: []),
    "relu": _of_h("relu_", aten.threshold_backward, 0.0),
    "tanh": _of_h("tanh_", aten.tanh_backward),
    "sigmoid": _of_h("sigmoid_", aten.sigmoid_backward),
    "gelu": _of_a(aten.gelu, aten.gelu_backward),
    "silu": _of_a(aten.silu, aten.silu_backward),
}


class Place(NamedTuple):
    """Where a matrix and perhaps its bias, its last column, or a bias alone is read and its gradient written."""

    value: Tensor
    gradient: Tensor


def breadth(width: int, dtype: torch.dtype) -> int:
    """Columns of rows that end in a one; in bfloat16 a multiple of 32, as its products like them."""
    return width + 1 if dtype != torch.bfloat16 else -(-(width + 1) // 32) * 32


class Algebra(NamedTuple):
    """Whose products are used, and how rows lie for them.

    NumPy's take less where they are so small that a call counts. For torch's, few columns lie one after the other, each
    with all its rows: products with them take half as long, or less.
    """

    numpy: bool

    def product(self, a: Tensor, b: Tensor, y: Tensor, *, adds: bool = False, alpha: float = 1.0) -> list[Call]:
        """y = a b, or y + alpha a b."""
        if not self.numpy:
            return [partial(y.addmm_, a, b, alpha=alpha)] if adds else [partial(torch.mm, a, b, out=y)]
        into = torch.empty_like(y) if adds else y
        call = partial(np.matmul, a.numpy(), b.numpy(), into.numpy())
        return [call, partial(y.add_, into, alpha=alpha)] if adds else [call]

    def calm(self) -> AbstractContextManager[Any]:
        """Products use the thread that asks for them and no other."""
        return calm(1) if self.numpy else nullcontext()

    def square(self, x: Tensor) -> Callable[[], Any]:
        """The sum of the squares of x (n,)."""
        return partial(np.dot, x.numpy(), x.numpy()) if self.numpy else partial(torch.dot, x, x)

    def few(self, width: int, dtype: torch.dtype) -> bool:
        """Whether so many columns lie one after the other."""
        return width <= NARROW and dtype != torch.bfloat16 and not self.numpy

    def turned(self, shape: tuple[int, ...], dtype: torch.dtype, *, outer: bool) -> bool:
        """Whether the columns of a matrix and its gradient, the bias the last of them, lie one after the other.

        `outer` says that no gradient is wanted of what it reads. Torch's products of a small matrix's gradient take a
        tenth less, or more, where a row of what they write is no longer by one than the units.
        """
        if self.numpy or len(shape) != 2:
            return self.numpy and outer
        (n_out, n_in), small = shape, shape[0] * shape[-1] <= SMALL
        return (n_out >= n_in and self.few(n_in - 1, dtype)) or (small and not self.few(n_out, torch.float32))

    def memory(self, n: int, width: int, like: Tensor, dtype: torch.dtype) -> Tensor:
        """Memory for n rows."""
        cells = torch.empty(n * width, dtype=dtype, device=like.device)
        return lying(cells, n, width, by_columns=self.few(width, dtype))

    def with_ones(self, n: int, width: int, like: Tensor, dtype: torch.dtype) -> Tensor:
        """Memory for n rows, each of which ends in a one, and perhaps zeros."""
        wide = breadth(width, dtype)
        cells = torch.zeros(n * wide, dtype=dtype, device=like.device)
        rows = lying(cells, n, wide, by_columns=self.few(width, dtype))
        rows[:, width] = 1
        return rows


def lying(cells: Tensor, n: int, width: int, *, by_columns: bool) -> Tensor:
    """A stretch of memory (n · width,) as a matrix (n, width), its columns or its rows one after the other."""
    return cells.view(width, n).T if by_columns else cells.view(n, width)


class Passes:
    """n rows through a net and their gradients back.

    Parameters
    ----------
    net : Net
    places : dict of int to Place
        Of each parameter, by its id.
    algebra : Algebra
    x : Tensor of shape (n, n_in + 1)
        Where the rows will be, a one after each, as `algebra` makes it; (n, n_in) where there is a linear path, which
        adds no bias, for the layers beside it read a copy.
    adds : bool
        Whether the matrices' gradients are added to what is there: those of the other net that shares them.
    further : bool
        Whether the gradient by x is wanted.
    y, d : Tensor of shape (n, n_out), optional
        Memory to use, in place of its own.

    Attributes
    ----------
    y : Tensor of shape (n, n_out)
        Written by `forward`.
    d : Tensor of shape (n, n_out)
        Where the gradient by y is to be put before `backward`.
    back : Tensor of shape (n, n_in)
        The gradient by x, written by `backward`.
    """

    def __init__(
        self, net: Net, places: dict[int, Place], algebra: Algebra, x: Tensor, *, adds: bool, further: bool,
        y: Tensor | None = None, d: Tensor | None = None,
    ) -> None:  # fmt: skip
        self.net, self.algebra, self.x, self.further = net, algebra, x, further
        self.squash = SQUASHES[net.activation]
        self.layers = [Layer(cast(Affine, layer), places, algebra, adds=adds) for layer in net.layers]
        self.linear = None if net.linear is None else Layer(net.linear, places, algebra, adds=adds)
        n_out = self.layers[-1].n_out
        self.y = self._memory(n_out, x.dtype) if y is None else y
        self.d = self._memory(n_out, x.dtype) if d is None else d
        self.back = self._memory(self.layers[0].n_in, x.dtype)
        self.calls = self._forward()
        self.back_calls = self._backward()

    @property
    def after_reading(self) -> list[Call]:
        """Without a linear path: what is left to do of `forward` once rows are where the first layer reads them."""
        return self.calls if self.reads[0] is self.x else self.calls[1:]  # the first would bring them there

    def forward(self) -> Tensor:
        """From x to y."""
        for call in self.calls:
            call()
        return self.y

    def backward(self) -> Tensor:
        """From d to the parameters' gradients and `back`."""
        for call in self.back_calls:
            call()
        return self.back

    def _forward(self) -> list[Call]:
        calls: list[Call] = []
        h, last = self.x, self.y
        if self.linear is not None:
            n_in = self.layers[0].n_in
            self.free = _times(self.x[:, :n_in], float(self.net.into), calls)
            h = self.algebra.with_ones(len(h), n_in, h, h.dtype)
            self.inside = h[:, :n_in]
            calls.append(partial(torch.clamp, self.free, self.net.low, self.net.high, out=self.inside))
        if self.linear is not None or self.layers[-1].dtype != self.x.dtype:
            last = self._memory(self.layers[-1].n_out, self.layers[-1].dtype)
        self.a, self.h, self.reads = [], [], []  # type: list[Tensor], list[Tensor], list[Tensor]
        for layer in self.layers[:-1]:
            self.reads.append(layer.reads(h, calls))
            h = self.algebra.with_ones(len(self.x), layer.n_out, self.x, layer.dtype)
            inner = h[:, : layer.n_out]
            a = _beside(inner) if self.squash.keeps else inner
            calls += layer.forward(self.reads[-1], a)
            calls += self.squash.forward(a, inner)
            self.a.append(a)
            self.h.append(inner)
        self.reads.append(self.layers[-1].reads(h, calls))
        if self.linear is None:
            calls += self.layers[-1].forward(self.reads[-1], last)
            return calls if last is self.y else [*calls, partial(self.y.copy_, last)]
        calls += self.linear.forward(self.x, self.y)
        if self.layers[-1].joined and last.dtype == self.y.dtype:
            read, block, out = self.reads[-1], self.layers[-1].block, float(self.net.out)
            return [*calls, *self.algebra.product(read, block.T, self.y, adds=True, alpha=out)]
        calls += self.layers[-1].forward(self.reads[-1], last)
        return [*calls, partial(self.y.add_, last, alpha=float(self.net.out))]

    def _backward(self) -> list[Call]:
        calls: list[Call] = []
        d = self.d
        if self.linear is not None:
            d = _times(d, float(self.net.out), calls)
        for i in range(len(self.layers) - 1, -1, -1):
            layer = self.layers[i]
            d = _cast(d, layer.dtype, calls)
            calls += layer.backward(d, self.reads[i])
            if i or self.further:
                whole = i == 0 and self.linear is None and layer.dtype == self.x.dtype
                into = self.back if whole else self._gone(i, layer)
                calls += self.algebra.product(d, layer.value, into)
                d = into
            if i:
                d = _cast(d, self.layers[i - 1].dtype, calls)
                calls += self.squash.backward(d, self.a[i - 1], self.h[i - 1])
        if self.linear is not None:
            calls += self.linear.backward(self.d, self.x)
        if self.linear is not None and self.further:
            calls += self.algebra.product(self.d, self.linear.value, self.back)
            passed = torch.empty_like(d)  # 1 where the clip let the input through
            calls.append(partial(torch.eq, self.free, self.inside, out=passed))
            calls.append(partial(self.back.addcmul_, passed, d, value=float(self.net.into)))
        elif self.further and d is not self.back:
            calls.append(partial(self.back.copy_, d))
        return calls

    def _gone(self, i: int, layer: Layer) -> Tensor:
        """Memory for the gradient by what a layer reads: where that lies if nobody asks for it any more."""
        if i and self.squash.keeps and self.h[i - 1].dtype == layer.dtype:
            return self.h[i - 1]  # near the processor, as it has just been read
        return self._memory(layer.n_in, layer.dtype)

    def _memory(self, width: int, dtype: torch.dtype) -> Tensor:
        return self.algebra.memory(len(self.x), width, self.x, dtype)


class Layer:
    """y = W x + b, its places at hand; a tied matrix is the transpose of another's place."""

    def __init__(self, affine: Affine, places: dict[int, Place], algebra: Algebra, *, adds: bool) -> None:
        owner: Affine = affine if affine.own is not None else affine.tied_to  # type: ignore[assignment]  # set past Module
        assert owner.own is not None
        self.n_out, self.n_in = affine.weight.shape
        self.algebra, self.adds, self.bias = algebra, adds, None
        value, gradient = places[id(owner.own)]
        n = owner.weight.shape[1]
        self.dtype = value.dtype
        self.value, self.gradient = value[:, :n], gradient[:, :n]
        self.joined = affine is owner and affine.bias is not None
        if self.joined:  # what lies behind the bias aligns rows, which is worth its bytes, not its products
            self.block, self.block_gradient = value[:, : n + 1], gradient[:, : n + 1]
        elif affine is not owner:
            self.value, self.gradient = self.value.T, self.gradient.T
            self.bias = None if affine.bias is None else places[id(affine.bias)]

    def reads(self, x: Tensor, calls: list[Call]) -> Tensor:
        """x, or memory into which a further call copies it in this layer's dtype; a one after each row, no more."""
        if x.dtype != self.dtype:
            memory = self.algebra.with_ones(len(x), self.n_in, x, self.dtype)
            calls.append(partial(memory[:, : self.n_in].copy_, x[:, : self.n_in]))
            x = memory
        return x if x.shape[1] == self.n_in + 1 else x[:, : self.n_in + 1]

    def forward(self, x: Tensor, y: Tensor) -> list[Call]:
        """From x, each of whose rows ends in a one, to y (n, n_out)."""
        if self.joined:
            return self.algebra.product(x, self.block.T, y)
        calls = self.algebra.product(x[:, : self.n_in], self.value.T, y)
        return calls if self.bias is None else [*calls, partial(y.add_, self.bias.value)]

    def backward(self, d: Tensor, x: Tensor) -> list[Call]:
        """The parameters' gradients of d (n, n_out)."""
        gradient, x = (self.block_gradient, x) if self.joined else (self.gradient, x[:, : self.n_in])
        # to the matrix's; a bias has no other
        calls: list[Call] = [self.block_gradient[:, self.n_in].zero_] if self.adds and self.joined else []
        calls += self.algebra.product(d.T, x, gradient, adds=self.adds)
        if self.bias is not None:
            into = self.bias.gradient
            calls.append(partial(torch.sum, d, 0, dtype=into.dtype, out=into))
        return calls


def _beside(h: Tensor) -> Tensor:
    """Memory for a: as h lies, but without gaps in bfloat16, over which loops take up to ten times as long."""
    if h.dtype == torch.bfloat16:
        return torch.empty(h.shape, dtype=h.dtype, device=h.device)
    return torch.empty_strided(h.shape, h.stride(), dtype=h.dtype, device=h.device)


def _times(x: Tensor, factor: float, calls: list[Call]) -> Tensor:
    """x, or memory into which a further call puts its multiple."""
    if factor == 1:
        return x
    y = torch.empty_like(x)
    calls.append(partial(torch.mul, x, factor, out=y))
    return y


def _cast(x: Tensor, dtype: torch.dtype, calls: list[Call]) -> Tensor:
    """x, or memory into which a further call copies it in another dtype."""
    if x.dtype == dtype:
        return x
    copy = x.to(dtype)
    calls.append(partial(copy.copy_, x))
    return copy
