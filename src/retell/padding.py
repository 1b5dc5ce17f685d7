"""Products that do not depend on how many rows there are: rows in padded blocks, widths in multiples of 16."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from retell.codec import Codec
from retell.networks import Affine, Net
from retell.spread import threads

__all__ = ["CELLS", "FEW", "in_blocks", "pad", "padded", "round_up"]

Array = npt.NDArray[Any]

WIDTH = 16
ROWS, FEW = 256, 16  # rows of a product, and where rows are wide
CELLS = 2**20  # of a block of a function that is not known, and of what is held in float64
NARROW = 512  # columns and units up to which one thread is enough


@torch.no_grad()
def in_blocks(net: Callable[[Tensor], Tensor], rows: Array, width: int, like: Tensor) -> Array:
    """net(rows), computed in blocks of the dtype and on the device of `like`; the first `width` columns."""
    widest = max(rows.shape[1], width)
    size = min(ROWS, max(FEW, CELLS // widest // FEW * FEW))
    block = torch.zeros(size, round_up(rows.shape[1]), dtype=like.dtype, device=like.device)
    out = np.empty((len(rows), width), dtype=like.detach().cpu().numpy().dtype)
    with threads(1 if widest <= NARROW else torch.get_num_threads()):
        for i in range(0, len(rows), size):
            some = torch.from_numpy(np.require(rows[i : i + size], requirements=["C", "W"]))
            block[: len(some), : rows.shape[1]] = some
            block[len(some) :] = 0
            out[i : i + size] = net(block)[: len(some), :width].cpu().numpy()
    return out


def pad(matrix: Tensor) -> Tensor:
    """The matrix with rows and columns of zeros up to multiples of 16, detached."""
    matrix = matrix.detach()
    height, width = matrix.shape
    return torch.nn.functional.pad(matrix, (0, round_up(width) - width, 0, round_up(height) - height))


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
    wide = Affine(round_up(n_in), round_up(n_out), bias=layer.bias is not None).to(layer.weight)
    wide.weight.copy_(pad(layer.weight))
    if layer.bias is not None and wide.bias is not None:
        wide.bias.copy_(pad(layer.bias[None])[0, : len(wide.bias)])
    return wide.requires_grad_(False)


def round_up(width: int) -> int:
    """The next multiple of 16."""
    return -(-width // WIDTH) * WIDTH
