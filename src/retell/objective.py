"""J = L + Σ λᵢ Ωᵢ: the sum of terms, reduced once and by name."""

from __future__ import annotations

import math
import sys
from collections import Counter
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

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

    def __call__(self, p: Pass) -> Tensor:
        """The term's value: (N, D), (N,) or a single number."""
        raise NotImplementedError(f"{type(self).__name__} does not define __call__(self, p)")

    def check(self, codec: Codec) -> None:
        """Raise ValueError, with a sentence, if this codec lacks what the term needs."""

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
        return {name: at(c, step) * mean(term(p), p) for name, (c, term) in zip(self.names, self.summands, strict=True)}

    def by_row(self, p: Pass, step: float = math.inf) -> Tensor:
        """The objective on each row (N,); its mean is the objective."""
        total = torch.zeros(len(p.x), dtype=p.x.dtype, device=p.x.device)
        for c, term in self.summands:
            value = term(p)
            if value.ndim == 2:
                value = (value * p.seen).sum(1) * (len(value) / p.seen.sum().clamp(min=1))
            total += at(c, step) * value
        return total

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
                raise ValueError(f"{losses[0]!r} and {other!r} can't share a reconstruction: their supports differ")
        return losses[0]

    def check(self, codec: Codec) -> None:
        """Raise ValueError if a term lacks what it needs."""
        for term in self.terms:
            term.check(codec)


def as_objective(term: Term | Objective) -> Objective:
    """A term alone is a sum of one."""
    return term if isinstance(term, Objective) else Objective(((1.0, term),))


def at(coefficient: Any, step: float) -> float:
    """The coefficient at a step: itself, or what its schedule says."""
    return float(coefficient) if isinstance(coefficient, Real) else float(coefficient.at(step))


def mean(value: Tensor, p: Pass) -> Tensor:
    """The one reduction: over seen cells (N, D), over rows (N,), or none."""
    if value.ndim == 2:
        return (value * p.seen).sum() / p.seen.sum().clamp(min=1)
    return value.mean() if value.ndim == 1 else value


def _number(coefficient: Any) -> str:
    if isinstance(coefficient, Real):  # NumPy's numbers too
        coefficient = int(coefficient) if isinstance(coefficient, Integral) else float(coefficient)
    return repr(coefficient)
