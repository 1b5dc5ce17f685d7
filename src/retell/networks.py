"""f and g: a linear path beside a nonlinear one.

    y = W x + mlp(x)

Weights are created empty; `start.py` fills them from a private generator.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["ACTIVATIONS", "Affine", "Net", "mirror", "mlp"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "gelu": functional.gelu,
    "silu": functional.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "identity": lambda z: z,
}


class Affine(nn.Module):
    """y = W x + b, with W (n_out, n_in) empty or, tied, the transpose of another's.

    Parameters
    ----------
    n_in, n_out : int
        Widths.
    bias : bool, default=True
        Whether there is a b.
    tied_to : Affine, optional
        The map (n_out -> n_in) whose matrix this one shares: one storage, W* = Wᵀ, so its gradient is the
        sum of both uses'. Biases are never shared.
    """

    def __init__(self, n_in: int, n_out: int, *, bias: bool = True, tied_to: Affine | None = None) -> None:
        super().__init__()
        self.own = None if tied_to is not None else nn.Parameter(torch.empty(n_out, n_in))
        self.bias: nn.Parameter | None = nn.Parameter(torch.empty(n_out)) if bias else None
        object.__setattr__(self, "tied_to", tied_to)  # a reference, not a submodule: stored and counted once

    @property
    def weight(self) -> Tensor:
        """W (n_out, n_in)."""
        if self.own is None:
            return cast(Affine, self.tied_to).weight.T
        return self.own

    @property
    def gradient(self) -> Tensor:
        """The gradient of W (n_out, n_in); shared storage holds the sum of both uses'."""
        if self.own is None:
            return cast(Affine, self.tied_to).gradient.T
        return cast(Tensor, self.own.grad)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight, self.bias)


class Net(nn.Module):
    """y = W x + out · layers(clip(into · x)), one of f and g.

    The clip keeps the nonlinear path inside the range that the training rows spanned: beyond it the net
    goes on as its linear path does. `start.py` sets `into`, `out` and the range; a net fresh from `mlp`
    has 1, 1 and no bounds.

    Parameters
    ----------
    layers : sequence of Affine
        The mlp; `activation` stands between them, none after the last.
    activation : str
        A key of `ACTIVATIONS`.
    linear : Affine or None
        The linear path W; None for the plain net, which has no clip either.
    """

    low: Tensor
    high: Tensor
    into: Tensor
    out: Tensor

    def __init__(self, layers: Sequence[Affine], activation: str, linear: Affine | None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.activation = activation
        self.linear = linear
        if linear is not None:
            width = linear.weight.shape[1]
            self.register_buffer("low", torch.full((width,), -math.inf))
            self.register_buffer("high", torch.full((width,), math.inf))
            self.register_buffer("into", torch.ones(()))
            self.register_buffer("out", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.linear is None:
            return self._layers(x)
        inside = torch.clamp(self.into * x, self.low, self.high)
        return cast(Tensor, self.linear(x) + self.out * self._layers(inside))

    def _layers(self, y: Tensor) -> Tensor:
        squash = ACTIVATIONS[self.activation]
        first, *rest = self.layers
        y = first(y)
        for layer in rest:
            y = layer(squash(y))
        return y

    @property
    def last(self) -> Affine:
        """The mlp's last map, whose bias is the net's."""
        return cast(Affine, self.layers[-1])

    @property
    def bias(self) -> nn.Parameter:
        """That bias (n_out,), which is always there."""
        return cast(nn.Parameter, self.last.bias)

    def affines(self) -> list[Affine]:
        """Every affine map, the linear path last."""
        layers = [cast(Affine, layer) for layer in self.layers]
        return layers if self.linear is None else [*layers, self.linear]

    @property
    def deep(self) -> bool:
        return len(self.layers) > 1

    @property
    def straight(self) -> Affine | None:
        """The linear path, or the only layer of a linear net; None for a plain deep one."""
        return self.linear if self.deep else cast(Affine, self.layers[0])


def mlp(widths: Sequence[int], activation: str = "relu", *, linear_path: bool = True) -> Net:
    """The net through `widths`; with two widths it is one affine map and has no path beside it.

    Examples
    --------
    >>> from retell.networks import mlp
    >>> [layer.weight.shape for layer in mlp([64, 32, 8]).affines()]
    [torch.Size([32, 64]), torch.Size([8, 32]), torch.Size([8, 64])]
    """
    layers = [Affine(n_in, n_out) for n_in, n_out in pairwise(widths)]
    beside = linear_path and len(layers) > 1
    return Net(layers, activation, Affine(widths[0], widths[-1], bias=False) if beside else None)


def mirror(encoder: Net, *, tied: bool = False) -> Net:
    """The encoder's widths backwards; tied, with its matrices transposed.

    Examples
    --------
    >>> from retell.networks import mirror, mlp
    >>> f = mlp([64, 8])
    >>> g = mirror(f, tied=True)
    >>> g.layers[0].weight.data_ptr() == f.layers[0].weight.data_ptr()
    True
    """

    def turn(layer: Affine, *, bias: bool = True) -> Affine:
        n_out, n_in = layer.weight.shape
        return Affine(n_out, n_in, bias=bias, tied_to=layer if tied else None)

    layers = [turn(cast(Affine, layer)) for layer in reversed(encoder.layers)]
    linear = None if encoder.linear is None else turn(encoder.linear, bias=False)
    return Net(layers, encoder.activation, linear)
