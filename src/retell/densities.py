"""p, the density that an objective's term may be the negative logarithm of.

For a `Likelihood` the reconstruction is the location: x̂ is the decoder's output and each docstring says
which argument of the density it is. For a `Prior` the location is 0. `penalty(on, n, D)` says how the same
energy is written without densities: `-log p = rate · term + constant` a row. `power(rate)` is p^rate,
normalised again. `slope(z, location, scale)` is the derivative of -log p(z) by the location.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import Bernoulli as TorchBernoulli
from torch.distributions import Distribution
from torch.distributions import Exponential as TorchExponential
from torch.distributions import Laplace as TorchLaplace
from torch.distributions import Normal as TorchNormal

from retell.parts import Part

__all__ = ["Bernoulli", "Exponential", "Laplace", "Normal"]

Energy = tuple[str, float]  # a term and its rate
ANYWHERE = (-math.inf, math.inf)


class Normal(Part):
    """p(z) = exp(-(z - m)² / (2 scale²)) / √(2π scale²)

    As a likelihood the reconstruction is m.

    Parameters
    ----------
    scale : float, optional
        Standard deviation in the scaled space, above 0. Without one a likelihood learns it, one number for all
        columns; a prior needs one.
    """

    letter = "p"
    support: ClassVar[tuple[float, float]] = ANYWHERE
    signed: ClassVar[bool] = True
    scale: float | None = None

    def __post_init__(self) -> None:
        if self.scale is not None:
            self.require("scale", lambda s: s > 0, "a finite number above 0")

    def at(self, location: Tensor, scale: Tensor) -> Distribution:
        return TorchNormal(location, scale, validate_args=False)

    def slope(self, z: Tensor, location: Tensor, scale: Tensor) -> Tensor:
        return (location - z) / scale**2

    def mean(self, x_hat: Tensor) -> Tensor:
        return x_hat

    def link(self, mean: Tensor) -> Tensor:
        return mean

    def power(self, rate: float) -> Normal:
        return self if self.scale is None else Normal(self.scale / math.sqrt(rate))

    def penalty(self, on: str, n: int, D: int) -> Energy | None:
        assert self.scale is not None
        known = {"x": ("MSE()", D / (2 * self.scale**2)), "weights": ("L2()", 1 / (n * self.scale**2))}
        return known.get(on)


class Laplace(Part):
    """p(z) = exp(-|z - m| / scale) / (2 scale)

    As a likelihood the reconstruction is m, the median.

    Parameters
    ----------
    scale : float, optional
        Mean absolute deviation in the scaled space, above 0. Without one a likelihood learns it; a prior needs
        one.
    """

    letter = "p"
    support: ClassVar[tuple[float, float]] = ANYWHERE
    signed: ClassVar[bool] = True
    scale: float | None = None

    def __post_init__(self) -> None:
        if self.scale is not None:
            self.require("scale", lambda s: s > 0, "a finite number above 0")

    def at(self, location: Tensor, scale: Tensor) -> Distribution:
        return TorchLaplace(location, scale, validate_args=False)

    def slope(self, z: Tensor, location: Tensor, scale: Tensor) -> Tensor:
        return torch.sign(location - z) / scale

    def mean(self, x_hat: Tensor) -> Tensor:
        return x_hat

    def link(self, mean: Tensor) -> Tensor:
        return mean

    def power(self, rate: float) -> Laplace:
        return self if self.scale is None else Laplace(self.scale / rate)

    def penalty(self, on: str, n: int, D: int) -> Energy | None:
        assert self.scale is not None
        known = {"code": ("L1()", 1 / self.scale), "weights": ("L1Weights()", 1 / (n * self.scale))}
        return known.get(on)


class Exponential(Part):
    """p(z) = exp(-z / scale) / scale,  z >= 0

    A prior for codes that can't be negative: there it is the one-sided Laplace.

    Parameters
    ----------
    scale : float
        The mean, above 0.
    """

    letter = "p"
    signed: ClassVar[bool] = False
    scale: float

    def __post_init__(self) -> None:
        self.require("scale", lambda s: s > 0, "a finite number above 0")

    def at(self, location: Tensor, scale: Tensor) -> Distribution:
        return TorchExponential((1 / scale).expand_as(location), validate_args=False)

    def slope(self, z: Tensor, location: Tensor, scale: Tensor) -> Tensor:
        return -(1 / scale).expand_as(z)

    def power(self, rate: float) -> Exponential:
        return Exponential(self.scale / rate)

    def penalty(self, on: str, n: int, D: int) -> Energy | None:
        return ("L1()", 1 / self.scale) if on == "code" else None


class Bernoulli(Part):
    """p(x) = s^x (1 - s)^(1 - x),  s = 1 / (1 + exp(-x̂))

    The likelihood of cells that are 0 or 1; the reconstruction s is the probability of a 1. Cells between 0
    and 1 are read as such probabilities themselves.
    """

    letter = "p"
    support: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def at(self, location: Tensor, scale: Tensor) -> Distribution:
        return TorchBernoulli(logits=location, validate_args=False)

    def slope(self, z: Tensor, location: Tensor, scale: Tensor) -> Tensor:
        return torch.sigmoid(location) - z

    def mean(self, x_hat: Tensor) -> Tensor:
        return torch.sigmoid(x_hat)

    def link(self, mean: Tensor) -> Tensor:
        return torch.logit(mean, eps=1e-3)

    def power(self, rate: float) -> Bernoulli:
        if not math.isclose(rate, 1.0):
            raise ValueError(f"{self!r} to the power {rate:g} is no density of this kind: its coefficient must be 1")
        return self

    def penalty(self, on: str, n: int, D: int) -> Energy | None:
        return ("BCE()", float(D)) if on == "x" else None
