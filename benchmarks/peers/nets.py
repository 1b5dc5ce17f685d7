"""The plain net in PyTorch, for the peers that take a module."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from torch import nn


def affine(widths: tuple[int, ...], last: type[nn.Module]) -> nn.Sequential:
    """Affine maps with ReLU between them, and `last` after the last one."""
    layers: list[nn.Module] = []
    for i, (n, m) in enumerate(pairwise(widths)):
        layers += [nn.Linear(n, m), nn.ReLU() if i < len(widths) - 2 else last()]
    return nn.Sequential(*layers)


def halves(net: tuple[int, ...], code: str = "relu") -> tuple[nn.Sequential, nn.Sequential]:
    """Encoder and decoder."""
    return affine(net, nn.ReLU if code == "relu" else nn.Identity), affine(net[::-1], nn.Identity)


def reconstruct(module: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[np.ndarray], np.ndarray]:
    """The module as a function of arrays."""

    def of(X: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return module(torch.from_numpy(X)).numpy()

    return of
