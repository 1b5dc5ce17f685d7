"""Rows through a fitted codec in fixed, padded blocks.

A row's result depends on the row alone, to the bit: matrix products choose their kernels by shape, so
every product here has the same number of rows, and widths that are multiples of 16. Narrow products run on
one thread: how several threads share the rows is up to the moment, and on a busy machine they wait for each
other far longer than the product takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from retell.codec import Codec
from retell.networks import Affine, Net

__all__ = ["Inference", "in_blocks", "pad", "padded"]

Array = npt.NDArray[Any]

ROWS = 256
WIDTH = 16
NARROW = 512  # columns and units up to which one thread is enough


class Inference:
    """Encode and decode many rows with a frozen copy of a codec, widths padded with zeros.

    Parameters
    ----------
    codec : Codec
    """

    def __init__(self, codec: Codec) -> None:
        self.n_columns, self.n_units, self.n_outputs = len(codec.centre), codec.n_units, codec.n_outputs
        self.centre = codec.centre
        self.wide = padded(codec)

    def encode(self, x: Array) -> Array:
        """Scaled rows (N, D), NaN where unseen, to codes (N, K)."""
        centre = self.centre.cpu().numpy()
        return in_blocks(self._encode, np.where(np.isnan(x), centre, x), self.n_units, like=self.centre)

    def decode(self, h: Array) -> Array:
        """Codes (N, K) to the decoder's outputs (N, D)."""
        return in_blocks(self.wide.decoder, h, self.n_columns, like=self.centre)

    def _encode(self, x: Tensor) -> Tensor:
        h: Tensor = self.wide.code_activation(self.wide.encoder(x)[:, : self.n_outputs].contiguous())
        return h


@torch.no_grad()
def in_blocks(net: Callable[[Tensor], Tensor], rows: Array, width: int, like: Tensor) -> Array:
    """net(rows), computed in blocks of the dtype and on the device of `like`; the first `width` columns."""
    block = torch.zeros(ROWS, _round_up(rows.shape[1]), dtype=like.dtype, device=like.device)
    out = np.empty((len(rows), width), dtype=like.detach().cpu().numpy().dtype)
    with _threads(1 if max(rows.shape[1], width) <= NARROW else torch.get_num_threads()):
        for i in range(0, len(rows), ROWS):
            some = torch.from_numpy(np.require(rows[i : i + ROWS], requirements=["C", "W"]))
            block[: len(some), : rows.shape[1]] = some
            block[len(some) :] = 0
            out[i : i + ROWS] = net(block)[: len(some), :width].cpu().numpy()
    return out


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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
