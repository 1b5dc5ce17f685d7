"""σ, the code activation: h = σ(a).

`range` is the open interval that the code lies in; `sparse` says that most of the code is exactly zero.
"""

from __future__ import annotations

import math
import warnings
from typing import ClassVar

import torch
from torch import Tensor

from retell.parts import Part

__all__ = ["Identity", "ReLU", "Sigmoid", "Softplus", "Tanh", "TopK"]


class Identity(Part):
    """h = a"""

    letter = "σ"
    range: ClassVar[tuple[float, float]] = (-math.inf, math.inf)
    sparse: ClassVar[bool] = False

    def __call__(self, a: Tensor) -> Tensor:
        return a


class ReLU(Part):
    """h = max(a, 0)"""

    letter = "σ"
    range: ClassVar[tuple[float, float]] = (0.0, math.inf)
    sparse: ClassVar[bool] = False

    def __call__(self, a: Tensor) -> Tensor:
        return torch.relu(a)


class Sigmoid(Part):
    """h = 1 / (1 + exp(-a))"""

    letter = "σ"
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    sparse: ClassVar[bool] = False

    def __call__(self, a: Tensor) -> Tensor:
        return torch.sigmoid(a)


class Tanh(Part):
    """h = tanh(a)"""

    letter = "σ"
    range: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    sparse: ClassVar[bool] = False

    def __call__(self, a: Tensor) -> Tensor:
        return torch.tanh(a)


class Softplus(Part):
    """h = log(1 + exp(a))"""

    letter = "σ"
    range: ClassVar[tuple[float, float]] = (0.0, math.inf)
    sparse: ClassVar[bool] = False

    def __call__(self, a: Tensor) -> Tensor:
        return torch.nn.functional.softplus(a)


class TopK(Part):
    """h_j = max(a_j, 0) if a_j is among the k largest of its row, else 0

    Parameters
    ----------
    k : int
        How many units of a row may be active, at least 1. A code of fewer units keeps them all, with a warning.

    References
    ----------
    Makhzani & Frey 2013, "k-Sparse Autoencoders"; with the ReLU of Gao et al. 2024.

    Examples
    --------
    >>> import torch
    >>> from retell import TopK
    >>> TopK(1)(torch.tensor([[1.0, 3.0], [-1.0, -2.0]]))
    tensor([[0., 3.],
            [0., 0.]])
    """

    letter = "σ"
    range: ClassVar[tuple[float, float]] = (0.0, math.inf)
    sparse: ClassVar[bool] = True
    k: int

    def __post_init__(self) -> None:
        self.require("k", lambda k: k >= 1 and int(k) == k, "a whole number, at least 1")

    def bind(self, width: int) -> TopK:
        """The part itself; where the code has fewer than k units, one that keeps them all, with a warning."""
        if self.k <= width:
            return self
        warnings.warn(f"{self!r} keeps all {width} units of this code: lower k or raise n_components", stacklevel=2)
        return TopK(width)

    def __call__(self, a: Tensor) -> Tensor:
        values, indices = torch.topk(a, int(self.k), dim=-1)
        return torch.zeros_like(a).scatter(-1, indices, torch.relu(values))
