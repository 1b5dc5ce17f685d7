"""C, the corruption: x̃ = C(x), while training only. A missing cell stays missing."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from retell.parts import Part

__all__ = ["Gaussian", "Mask", "Nothing"]


class Nothing(Part):
    """x̃ = x"""

    letter = "C"

    def __call__(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        return x


class Gaussian(Part):
    """x̃ = x + scale · e,  e ~ N(0, I)

    Parameters
    ----------
    scale : float
        Standard deviation of the noise in the scaled space, at least 0.
    """

    letter = "C"
    scale: float

    def __post_init__(self) -> None:
        self.require("scale", lambda s: 0 <= s < float("inf"), "a finite number, at least 0")

    def __call__(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        noise = torch.empty_like(x).normal_(generator=generator)
        return x + self.scale * noise


class Mask(Part):
    """x̃_j = missing with probability p, else x_j

    The encoder reads a missing cell as its column's centre, exactly as it reads a hole in the data.

    Parameters
    ----------
    p : float
        Probability that a cell is hidden, in [0, 1).

    References
    ----------
    Vincent et al. 2008, "Extracting and Composing Robust Features with Denoising Autoencoders".
    """

    letter = "C"
    p: float

    def __post_init__(self) -> None:
        self.require("p", lambda p: 0 <= p < 1, "in [0, 1)")

    def __call__(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        hidden = torch.empty_like(x).uniform_(generator=generator) < self.p
        return x.masked_fill(hidden, float("nan"))
