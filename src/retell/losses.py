"""L(x, x̂), a value per cell, or for a `Likelihood` one per row.

`support` is where data may lie; where it is bounded the rows are not scaled. `mean` is the link: it
turns the decoder's output into a reconstruction; `link` is its inverse, for a data-aware start. Where it has
one, `slope_x_hat` is the derivative of the value by x̂, for solvers that write gradients out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from retell.densities import Bernoulli, Normal
from retell.objective import Term
from retell.parts import Part, Pass

if TYPE_CHECKING:
    from retell.codec import Codec

T = TypeVar("T", bound=Term)

__all__ = ["BCE", "MSE", "Hidden", "Huber", "Likelihood", "Nested", "Poisson"]


def _speaks_for(field: str) -> Callable[[type[T]], type[T]]:
    """For a class of losses whose support, mean and link are those of what it holds."""

    def dress(loss: type[T]) -> type[T]:
        for word in ("support", "mean", "link"):
            setattr(loss, word, property(lambda self, word=word: getattr(getattr(self, field), word)))  # type: ignore[misc]
        return loss

    return dress


class MSE(Term):
    """L = (x - x̂)²"""

    letter = "L"
    support: ClassVar[tuple[float, float]] = (-math.inf, math.inf)

    def __call__(self, p: Pass) -> Tensor:
        return (p.x - p.x_hat).square()

    def slope_x_hat(self, p: Pass) -> Tensor:
        return 2 * (p.x_hat - p.x)

    def mean(self, x_hat: Tensor) -> Tensor:
        return x_hat

    def link(self, mean: Tensor) -> Tensor:
        return mean

    def density(self, n_rows: int, n_features: int) -> tuple[Any, str, None]:
        return Normal(), "x", None


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

    def slope_x_hat(self, p: Pass) -> Tensor:
        return (p.x_hat - p.x).clamp(-self.delta, self.delta)

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

    def slope_x_hat(self, p: Pass) -> Tensor:
        return torch.sigmoid(p.x_hat) - p.x

    def mean(self, x_hat: Tensor) -> Tensor:
        return torch.sigmoid(x_hat)

    def link(self, mean: Tensor) -> Tensor:
        return torch.logit(mean, eps=1e-3)

    def density(self, n_rows: int, n_features: int) -> tuple[Any, str, float]:
        return Bernoulli(), "x", 1 / n_features


class _Counts(NamedTuple):
    """The Poisson distribution by its log rate, whose exponential may underflow."""

    log_rate: Tensor

    def log_prob(self, x: Tensor) -> Tensor:
        return x * self.log_rate - self.log_rate.exp() - torch.lgamma(x + 1)


class Poisson(Term):
    """L = exp(x̂) - x x̂ + log x!

    The negative logarithm of the Poisson density of counts x with rate exp(x̂), which is the reconstruction.
    It is also the density in ``Likelihood(Poisson())``. The rows are not scaled.
    """

    letter = "L"
    support: ClassVar[tuple[float, float]] = (0.0, math.inf)

    def __call__(self, p: Pass) -> Tensor:
        return -_Counts(p.x_hat).log_prob(p.x)

    def slope_x_hat(self, p: Pass) -> Tensor:
        return p.x_hat.exp() - p.x

    def slope(self, z: Tensor, location: Tensor, scale: Tensor) -> Tensor:
        return location.exp() - z

    def mean(self, x_hat: Tensor) -> Tensor:
        return x_hat.exp()

    def link(self, mean: Tensor) -> Tensor:
        return mean.clamp(min=1e-3).log()

    def at(self, location: Tensor, scale: Tensor) -> _Counts:
        return _Counts(location)

    def power(self, rate: float) -> Poisson:
        if not math.isclose(rate, 1.0):
            raise ValueError(f"{self!r} to the power {rate:g} is no density of this kind: its coefficient must be 1")
        return self

    def penalty(self, on: str, n: int, D: int) -> tuple[str, float] | None:
        return ("Poisson()", float(D)) if on == "x" else None

    def density(self, n_rows: int, n_features: int) -> tuple[Any, str, float]:
        return self, "x", 1 / n_features


@_speaks_for("p")
class Likelihood(Term):
    """L = -Σ_d log p(x_d | x̂_d), in nats a row

    All constants included, over the seen cells. A density without a scale learns it.

    Parameters
    ----------
    p : Part
        Normal, Laplace, Bernoulli, Poisson or StudentT.

    Examples
    --------
    >>> from retell import Laplace, Likelihood, Normal, Prior
    >>> Likelihood(Normal(scale=0.5)) + Prior(Laplace(scale=0.1))
    Likelihood(Normal(scale=0.5)) + Prior(Laplace(scale=0.1))
    """

    letter = "L"
    p: Part

    def __post_init__(self) -> None:
        if not isinstance(self.p, Part) or not hasattr(self.p, "at") or not hasattr(self.p, "link"):
            raise ValueError(
                f"a likelihood needs a density of the data, got {self.p!r}: use Normal() where it would be MSE(),"
                " Bernoulli() for BCE()"
            )

    def __call__(self, p: Pass) -> Tensor:
        return -(self.log_cells(p) * p.weight).sum(1)

    def slope_x_hat(self, p: Pass) -> Tensor:
        density: Any = self.p
        slope: Tensor = density.slope(p.x, p.x_hat, self._scale(p))
        return slope * p.weight

    def log_cells(self, p: Pass) -> Tensor:
        """log p(x | x̂) of each cell (N, D), unseen ones included."""
        density: Any = self.p
        log_p: Tensor = density.at(p.x_hat, self._scale(p)).log_prob(p.x)
        return log_p

    def _scale(self, p: Pass) -> Tensor:
        learned = p.codec.log_scale if self.learned else None
        return p.x.new_tensor(getattr(self.p, "scale", 1.0)) if learned is None else learned.exp()

    @property
    def learned(self) -> bool:
        """Whether the scale is learned."""
        return getattr(self.p, "scale", 1.0) is None

    def check(self, codec: Codec) -> None:
        if self.learned and codec.log_scale is None:
            raise ValueError(
                f"{self!r} learns its scale, and this codec has none to learn: build it with learns_scale=True"
            )

    def density(self, n_rows: int, n_features: int) -> tuple[Any, str, float]:
        return self.p, "x", 1.0


@_speaks_for("loss")
class Nested(Term):
    """L = mean over m of loss(x, g(h_1 ... h_m, 0 ...)),  m each of the prefixes and K

    Every prefix of the code is a code: the first units carry the most.

    Parameters
    ----------
    loss : Term
        The loss of each prefix.
    prefixes : tuple of int
        How many units each prefix has, from 1 to below K; the whole code is always one more.

    References
    ----------
    Rippel et al. 2014, "Learning Ordered Representations with Nested Dropout"; Bussmann et al. 2025, "Learning
    Multi-Level Features with Matryoshka Sparse Autoencoders".
    """

    letter = "L"
    loss: Term
    prefixes: tuple[int, ...]

    def __post_init__(self) -> None:
        _check_loss(self, self.loss)
        whole = isinstance(self.prefixes, tuple) and all(isinstance(m, int) and m >= 1 for m in self.prefixes)
        if not (whole and self.prefixes):
            raise ValueError(f"Nested: prefixes must be a tuple of whole numbers from 1 on, got {self.prefixes!r}")

    def __call__(self, p: Pass) -> Tensor:
        total = self.loss(p)
        for m in self.prefixes:
            first = torch.arange(p.h.shape[1], device=p.h.device) < m
            h = p.h * first
            total = total + self.loss(p._replace(h=h, x_hat=p.codec.decode(h)))
        return total / (len(self.prefixes) + 1)

    def check(self, codec: Codec) -> None:
        self.loss.check(codec)
        if max(self.prefixes) >= codec.n_units:
            raise ValueError(
                f"{self!r} has a prefix of {max(self.prefixes)} units, but the code has {codec.n_units}: prefixes are"
                " shorter than the code (the whole code is always counted)"
            )

    @property
    def learned(self) -> bool:
        """Whether the scale of the loss is learned."""
        return getattr(self.loss, "learned", False)


@_speaks_for("loss")
class Hidden(Term):
    """L = loss on the corrupted cells only, averaged over them

    Parameters
    ----------
    loss : Term
        A loss per cell.

    Raises
    ------
    ValueError
        If there is no corruption, or if the loss is one per row.
    """

    letter = "L"
    needs_corruption: ClassVar[bool] = True
    loss: Term

    def __post_init__(self) -> None:
        _check_loss(self, self.loss)

    def __call__(self, p: Pass) -> Tensor:
        return self.loss(p) * self._share(p)

    def slope_x_hat(self, p: Pass) -> Tensor:
        loss: Any = self.loss
        slope: Tensor = loss.slope_x_hat(p)
        return slope * self._share(p)

    def _share(self, p: Pass) -> Tensor:
        """What each cell counts: the mean over cells is over all of them."""
        hit = p.hit * p.weight
        return p.hit * (p.weight.sum() / torch.where(hit.any(), hit.sum(), 1.0))

    def check(self, codec: Codec) -> None:
        self.loss.check(codec)


def _check_loss(outer: Term, loss: Any) -> None:
    if getattr(loss, "letter", "") != "L" or isinstance(loss, Nested | Hidden):
        raise ValueError(f"{type(outer).__name__} holds a plain loss, such as MSE(), got {loss!r}")
    if isinstance(outer, Hidden) and isinstance(loss, Likelihood):
        raise ValueError(f"Hidden needs a loss per cell, such as MSE(); {loss!r} is one per row")
