"""J = L + Σ λᵢ Ωᵢ: the sum of terms, reduced once and by name."""

from __future__ import annotations

import math
import sys
from collections import Counter
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from retell.corruptions import Nothing
from retell.explanation import Explanation, explanation
from retell.parts import Part, Pass

if TYPE_CHECKING:
    from retell.codec import Codec

__all__ = ["Objective", "Term"]


class Term(Part):
    """One summand of the objective: a function of the pass.

    A loss (letter "L") gives a value per cell (N, D), a penalty on the code one per row (N,), a penalty
    on weights or on a whole batch one number. Terms add up and take coefficients as Python writes it.

    Examples
    --------
    >>> from retell import L1, MSE
    >>> MSE() + 0.001 * L1()
    MSE() + 0.001 * L1()
    """

    letter = "Ω"
    needs_corruption: ClassVar[bool] = False
    subtracts: ClassVar[bool] = False
    """Whether it takes the decoder's output for the reconstruction."""
    counts_idle: ClassVar[bool] = False
    """Whether it asks the codec for `idle`."""
    on_weights: ClassVar[bool] = False
    """Whether it is a function of the weights alone."""

    def __call__(self, p: Pass) -> Tensor:
        """The term's value: (N, D), (N,) or a single number."""
        raise NotImplementedError(f"{type(self).__name__} does not define __call__(self, p)")

    def check(self, codec: Codec) -> None:
        """Raise ValueError, with a sentence, if this codec lacks what the term needs."""

    def density(self, n_rows: int, n_features: int) -> tuple[Any, str, float | None] | None:
        """(p, on, rate) where the term is -rate log p of "x", "code" or "weights" a row, up to a constant.

        For weights the rate is that of log p(θ), which all rows share. The rate is None where the scale of p is
        open, as a squared error's is; the whole is None where there is no density.
        """
        return None

    def explain(self, n_rows: int, n_features: int, noise: float = 1.0) -> Explanation:
        """As `Objective.explain`, of the term alone."""
        return as_objective(self).explain(n_rows, n_features, noise)

    def __add__(self, other: Any) -> Any:
        return as_objective(self) + other

    def __radd__(self, other: Any) -> Any:
        return other + as_objective(self)

    def __mul__(self, coefficient: Any) -> Objective:
        return Objective(((coefficient, self),))

    __rmul__ = __mul__


class Objective(Part):
    """J = Σ λᵢ · termᵢ

    Parameters
    ----------
    summands : tuple of (coefficient, Term)
        A coefficient is a finite number or a schedule.

    Raises
    ------
    TypeError
        If a coefficient is neither.
    """

    letter: ClassVar[str] = "J"
    summands: tuple[tuple[Any, Term], ...]

    def __post_init__(self) -> None:
        for coefficient, term in self.summands:
            number = isinstance(coefficient, Real) and not isinstance(coefficient, bool)
            if not (number or getattr(coefficient, "letter", "") == "λ"):
                raise TypeError(
                    f"the coefficient of {term!r} must be a number or a schedule such as "
                    f"Warmup(0.001, 1000), got {coefficient!r}"
                )
            if number and not -sys.float_info.max <= coefficient <= sys.float_info.max:
                raise ValueError(f"the coefficient of {term!r} must be finite, got {coefficient!r}")

    def __repr__(self) -> str:
        return " + ".join(
            repr(term) if isinstance(c, Real) and c == 1 else f"{_number(c)} * {term!r}" for c, term in self.summands
        )

    def __add__(self, other: Any) -> Objective:
        if isinstance(other, int) and other == 0:  # the start of Python's own sum()
            return self
        if not isinstance(other, Term | Objective):
            return NotImplemented
        return Objective(self.summands + as_objective(other).summands)

    __radd__ = __add__

    def __mul__(self, factor: float) -> Objective:
        if not isinstance(factor, Real) or isinstance(factor, bool):
            raise TypeError(
                f"a sum takes a number; a schedule goes to its terms one by one, got {factor!r} for {self!r}"
            )
        if any(not isinstance(c, Real) for c, _ in self.summands):
            raise TypeError(f"a schedule is not scaled: multiply the terms of {self!r} one by one")
        try:
            return Objective(tuple((factor * c, term) for c, term in self.summands))
        except OverflowError:
            raise ValueError(f"the coefficients of {self!r} must be finite, got the factor {factor!r}") from None

    __rmul__ = __mul__

    def __call__(self, p: Pass, step: float = math.inf) -> dict[str, Tensor]:
        """Every summand, coefficient included, under its own name; `step` inf is the end of all schedules."""
        return {name: at(c, step) * mean(value_of(term, p), p)
                for name, (c, term) in zip(self.names, self.summands, strict=True)}  # fmt: skip

    def by_row(self, p: Pass, step: float = math.inf) -> Tensor:
        """The objective on each row (N,); its mean is the objective."""
        return torch.stack(list(self.each_by_row(p, step).values())).sum(0)

    def each_by_row(self, p: Pass, step: float = math.inf) -> dict[str, Tensor]:
        """Every summand on each row (N,); its mean is the summand."""
        rows = {}
        for name, (c, term) in zip(self.names, self.summands, strict=True):
            value = value_of(term, p)
            if value.ndim == 2:
                value = (value * p.weight).sum(1) * (len(value) / total_weight(p.weight))
            rows[name] = (at(c, step) * value).expand(len(p.x))
        return rows

    @property
    def names(self) -> list[str]:
        """The summands' class names; a second L1 is called L1_2."""
        seen: Counter[str] = Counter()
        names = []
        for _, term in self.summands:
            name = type(term).__name__
            seen[name] += 1
            names.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
        return names

    @property
    def terms(self) -> list[Term]:
        return [term for _, term in self.summands]

    @property
    def loss(self) -> Any:
        """The data term, whose link makes reconstructions.

        Raises
        ------
        ValueError
            If there is none, or if two of them disagree on the data's support.
        """
        losses: list[Any] = [term for term in self.terms if term.letter == "L"]
        if not losses:
            raise ValueError(f"the objective {self!r} has no loss: add one, as in MSE() + {self!r}")
        for other in losses[1:]:
            if other.support != losses[0].support:
                raise ValueError(
                    f"{losses[0]!r} and {other!r} can't share a reconstruction, their supports differ: use one of them"
                )
        return losses[0]

    @property
    def loss_is_of_rows(self) -> bool:
        """Whether the decoder's output is itself the reconstruction: the link is the identity."""
        probe = torch.zeros(1)
        return self.loss.mean(probe) is probe

    @property
    def counts_idle(self) -> bool:
        """Whether a term asks for rows since each unit was active."""
        return any(term.counts_idle for term in self.terms)

    def check(self, codec: Codec, corruption: Any) -> None:
        """Raise ValueError if a term lacks what it needs, or a coefficient is negative."""
        for coefficient, term in self.summands:
            term.check(codec)
            if min(at(coefficient, 0), at(coefficient, math.inf)) < 0:
                raise ValueError(
                    f"the coefficient of {term!r} is {coefficient!r}: a negative one rewards what the term measures,"
                    " without end; a number from 0 on was expected"
                )
            if term.subtracts and not self.loss_is_of_rows:
                raise ValueError(
                    f"{term!r} subtracts the decoder's output from the row, which with {self.loss!r} is not the"
                    " reconstruction: use MSE()"
                )
            if term.needs_corruption and getattr(corruption, "p", 1.0) == 0:
                raise ValueError(f"{term!r} counts corrupted cells, and {corruption!r} hits none: use a p above 0")
            if term.needs_corruption and isinstance(corruption, Nothing):
                raise ValueError(
                    f"{term!r} counts corrupted cells, and nothing corrupts them: set corruption='Mask(0.3)'"
                )

    def explain(self, n_rows: int, n_features: int, noise: float = 1.0) -> Explanation:
        """The objective in both languages: penalties with coefficients, densities with scales.

        Parameters
        ----------
        n_rows, n_features : int
            Of the training rows: a prior on weights is shared by the rows, a squared error by the columns.
        noise : float, default=1.0
            Standard deviation of the noise, in the scaled space, at which a squared error is read: squared
            errors and penalties fix only the ratio of noise and prior scales. A likelihood has its own; one that
            learns it is read at `noise` too.

        Returns
        -------
        Explanation
            `densities` and `penalties` are texts of the grammar; printed, it says all.

        Raises
        ------
        ValueError
            If a term has no density, or a coefficient is a schedule or not above 0.

        Examples
        --------
        >>> from retell import L1, MSE
        >>> print((MSE() + 0.001 * L1()).explain(n_rows=1797, n_features=64))
        as penalties  MSE() + 0.001 * L1()
        as densities  Likelihood(Normal(scale=1.0)) + Prior(Laplace(scale=31.25))
        nats a row    32 x the penalties + constants
        constants     0.918939 a cell; 4.13517 a unit of the code (3.44202 where it can't be negative)
        """
        return explanation(self.summands, n_rows, n_features, noise)


def as_objective(term: Term | Objective) -> Objective:
    """A term alone is a sum of one."""
    return term if isinstance(term, Objective) else Objective(((1.0, term),))


def at(coefficient: Any, step: float) -> float:
    """The coefficient at a step: itself, or what its schedule says."""
    return float(coefficient) if isinstance(coefficient, Real) else float(coefficient.at(step))


def mean(value: Tensor, p: Pass) -> Tensor:
    """The one reduction: over seen cells (N, D), by their weight, over rows (N,), or none."""
    if value.ndim == 2:
        return (value * p.weight).sum() / total_weight(p.weight)
    return value.mean() if value.ndim == 1 else value


def value_of(term: Term, p: Pass) -> Tensor:
    """The term's value, which has one of the three shapes."""
    value = term(p)
    shapes = {(): "", (len(p.x),): "", p.x.shape: "L"}
    if value.shape not in shapes or not term.letter.startswith(shapes[tuple(value.shape)]):
        raise ValueError(
            f"{term!r} has a value of shape {tuple(value.shape)}: a loss gives one per cell {tuple(p.x.shape)}, a"
            f" penalty one per row ({len(p.x)},) or one number"
        )
    return value


def total_weight(weight: Tensor) -> Tensor:
    """The sum of the weights; 1 where no cell was seen."""
    total = weight.sum()
    return torch.where(total > 0, total, 1.0)


def _number(coefficient: Any) -> str:
    if isinstance(coefficient, Real):  # NumPy's numbers too
        coefficient = int(coefficient) if isinstance(coefficient, Integral) else float(coefficient)
    return repr(coefficient)
