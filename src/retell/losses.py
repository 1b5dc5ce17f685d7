"""L(x, x̂), a value per cell.

`support` is where data may lie; where it is bounded the rows are not scaled. `mean` is the link: it
turns the decoder's output into a reconstruction; `link` is its inverse, for a data-aware start.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from retell.objective import Term
from retell.parts import Pass

__all__ = ["BCE", "MSE", "Huber"]


class MSE(Term):
    """L = (x - x̂)²"""

    letter = "L"
    support: ClassVar[tuple[float, float]] = (-math.inf, math.inf)

    def __call__(self, p: Pass) -> Tensor:
        return (p.x - p.x_hat).square()

    def mean(self, x_hat: Tensor) -> Tensor:
        return x_hat

    def link(self, mean: Tensor) -> Tensor:
        return mean


class Huber(Term):
    """L = r² / 2 if |r| <= delta else delta (|r| - delta / 2),  r = x - x̂

    Parameters
    ----------
    delta : float, default=1.0
        Where the square turns into a line, in the scaled space, above 0.
    """

    letter = "L"
    support: ClassVar[tuple[float, float]] = (-math.inf, math.inf)
    delta: float = 1.0

    def __post_init__(self) -> None:
        self.require("delta", lambda d: 0 < d < math.inf, "a finite number above 0")

    def __call__(self, p: Pass) -> Tensor:
        return functional.huber_loss(p.x_hat, p.x, reduction="none", delta=float(self.delta))

    def mean(self, x_hat: Tensor) -> Tensor:
        return x_hat

    def link(self, mean: Tensor) -> Tensor:
        return mean


class BCE(Term):
    """L = -x log s(x̂) - (1 - x) log(1 - s(x̂)),  s the logistic function, x̂ logits

    For rows in [0, 1]; they are not scaled, and the reconstruction is s(x̂).
    """

    letter = "L"
    support: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def __call__(self, p: Pass) -> Tensor:
        return functional.binary_cross_entropy_with_logits(p.x_hat, p.x, reduction="none")

    def mean(self, x_hat: Tensor) -> Tensor:
        return torch.sigmoid(x_hat)

    def link(self, mean: Tensor) -> Tensor:
        return torch.logit(mean, eps=1e-3)
