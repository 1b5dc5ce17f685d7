"""C, the corruption: x̃ = C(x), while training only. A missing cell stays missing.

`p` is the probability that a cell is hit, each drawn on its own; `emphasis` is what a hit cell counts in
the loss, where another counts one (Vincent et al. 2010, section 4.3).
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from retell.parts import Corrupted, Part

__all__ = ["Gaussian", "Mask", "Nothing", "SaltAndPepper", "Swap", "Uniform"]


class Nothing(Part):
    """x̃ = x"""

    letter = "C"

    def __call__(self, x: Tensor, generator: Generator | None = None) -> Corrupted:
        return Corrupted(x, torch.zeros_like(x, dtype=torch.bool))


class Gaussian(Part):
    """x̃ = x + scale · e,  e ~ N(0, I)

    Parameters
    ----------
    scale : float
        Standard deviation of the noise in the scaled space, at least 0.
    p : float, default=1.0
        Probability that a cell is hit, in [0, 1].
    emphasis : float, default=1.0
        What a hit cell counts in the loss, above 0.
    """

    letter = "C"
    scale: float
    p: float = 1.0
    emphasis: float = 1.0

    def __post_init__(self) -> None:
        self.require("scale", lambda s: s >= 0, "a finite number, at least 0")
        _check(self)

    def __call__(self, x: Tensor, generator: Generator | None = None) -> Corrupted:
        noise = torch.empty_like(x).normal_(generator=generator)
        hit = _hit(x, self.p, generator)
        return Corrupted(torch.where(hit, x + self.scale * noise, x), hit, self.emphasis)


class Uniform(Part):
    """x̃ = x + scale · e,  e ~ U(-1, 1)

    Parameters
    ----------
    scale : float
        Half the width of the noise in the scaled space, at least 0.
    p : float, default=1.0
        Probability that a cell is hit, in [0, 1].
    emphasis : float, default=1.0
        What a hit cell counts in the loss, above 0.
    """

    letter = "C"
    scale: float
    p: float = 1.0
    emphasis: float = 1.0

    def __post_init__(self) -> None:
        self.require("scale", lambda s: s >= 0, "a finite number, at least 0")
        _check(self)

    def __call__(self, x: Tensor, generator: Generator | None = None) -> Corrupted:
        noise = torch.empty_like(x).uniform_(-1, 1, generator=generator)
        hit = _hit(x, self.p, generator)
        return Corrupted(torch.where(hit, x + self.scale * noise, x), hit, self.emphasis)


class Mask(Part):
    """x̃_j = missing with probability p, else x_j

    The encoder reads a missing cell as its column's centre, exactly as it reads a hole in the data.

    Parameters
    ----------
    p : float
        Probability that a cell is hidden, in [0, 1).
    emphasis : float, default=1.0
        What a hidden cell counts in the loss, above 0.

    References
    ----------
    Vincent et al. 2008, "Extracting and Composing Robust Features with Denoising Autoencoders".
    """

    letter = "C"
    p: float
    emphasis: float = 1.0

    def __post_init__(self) -> None:
        self.require("p", lambda p: p < 1, "in [0, 1)")
        _check(self)

    def __call__(self, x: Tensor, generator: Generator | None = None) -> Corrupted:
        hit = _hit(x, self.p, generator)
        return Corrupted(x.masked_fill(hit, float("nan")), hit, self.emphasis)


class SaltAndPepper(Part):
    """x̃_j = the least or the largest x_j of the batch, each with probability p / 2, else x_j

    Parameters
    ----------
    p : float
        Probability that a cell is hit, in [0, 1].
    emphasis : float, default=1.0
        What a hit cell counts in the loss, above 0.

    References
    ----------
    Vincent et al. 2010, "Stacked Denoising Autoencoders", section 3.3.
    """

    letter = "C"
    p: float
    emphasis: float = 1.0

    def __post_init__(self) -> None:
        _check(self)

    def __call__(self, x: Tensor, generator: Generator | None = None) -> Corrupted:
        hit, unseen = _hit(x, self.p, generator), torch.isnan(x)
        salt = torch.empty_like(x).uniform_(generator=generator) < 0.5
        high = x.masked_fill(unseen, float("-inf")).amax(0)
        low = x.masked_fill(unseen, float("inf")).amin(0)
        return Corrupted(torch.where(hit, torch.where(salt, high, low), x), hit, self.emphasis)


class Swap(Part):
    """x̃_j = x_j of another row of the batch with probability p, else x_j

    Every column keeps its distribution; what belongs together is broken. A donor whose cell was not seen
    gives nothing.

    Parameters
    ----------
    p : float
        Probability that a cell is hit, in [0, 1].
    emphasis : float, default=1.0
        What a hit cell counts in the loss, above 0.
    """

    letter = "C"
    p: float
    emphasis: float = 1.0

    def __post_init__(self) -> None:
        _check(self)

    def __call__(self, x: Tensor, generator: Generator | None = None) -> Corrupted:
        n = len(x)
        hit = _hit(x, self.p, generator)
        if n == 1:
            return Corrupted(x, torch.zeros_like(hit), self.emphasis)
        away = torch.randint(1, n, x.shape, generator=generator, device=x.device)
        donor = x.gather(0, (torch.arange(n, device=x.device)[:, None] + away) % n)
        hit &= ~torch.isnan(donor)
        return Corrupted(torch.where(hit, donor, x), hit, self.emphasis)


def _check(corruption: Part) -> None:
    corruption.require("p", lambda p: 0 <= p <= 1, "in [0, 1]")
    corruption.require("emphasis", lambda e: e > 0, "a finite number above 0")


def _hit(x: Tensor, p: float, generator: Generator | None) -> Tensor:
    """Seen cells, each with probability p."""
    return (torch.empty_like(x).uniform_(generator=generator) < p) & ~torch.isnan(x)
