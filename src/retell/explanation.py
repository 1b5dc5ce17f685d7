"""An objective in both languages: penalties with coefficients, densities with scales."""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Real
from typing import Any, NamedTuple

import torch

__all__ = ["Explanation", "explanation"]

KINDS = {"x": "cell", "code": "unit of the code", "weights": "weight"}


class Explanation(NamedTuple):
    """-log p(x, h, θ) a row = factor · penalties + constants.

    Parameters
    ----------
    penalties, densities : str
        The objective in the two languages, in the grammar.
    factor : float
        Nats a row for each unit of the penalty form.
    constants : dict of str to float
        Nats for each cell, each unit of a signed code and each weight (whose sum is shared by the rows). A unit
        that can't be negative has log 2 less.
    """

    penalties: str
    densities: str
    factor: float
    constants: dict[str, float]

    def __str__(self) -> str:
        said = []
        for on, value in self.constants.items():
            one_sided = f" ({value - math.log(2):.6g} where it can't be negative)" if on == "code" else ""
            said.append(f"{value:.6g} a {KINDS[on]}{one_sided}")
        return (
            f"as penalties  {self.penalties}\nas densities  {self.densities}\n"
            f"nats a row    {self.factor:.6g} x the penalties + constants\nconstants     {'; '.join(said) or 'none'}"
        )


def explanation(summands: Iterable[tuple[Any, Any]], n: int, D: int, noise: float) -> Explanation:
    """As `Objective.explain`."""
    read = [(coefficient, *_density(coefficient, term, n, D)) for coefficient, term in summands]
    data = [(coefficient, p, rate) for coefficient, p, on, rate in read if on == "x"]
    if len(data) != 1:
        raise ValueError(f"an objective with {len(data)} losses is not one log density: exactly one was expected")
    if len({on for _, _, on, _ in read}) < len(read):
        raise ValueError("two densities of one thing multiply to one whose constant is not known: use one term on each")
    nats, likelihood = _nats(*data[0], n, D, noise)
    energies, densities, factor = [], [], 1.0
    constants: dict[str, float] = {}
    for coefficient, p, on, rate in read:
        p = likelihood if on == "x" else p.power(nats * coefficient * rate)
        text = f"Likelihood({p!r})" if on == "x" else f"Prior({p!r})" if on == "code" else f"Prior({p!r}, on='weights')"
        densities.append(text)
        energy = p.penalty(on, n, D)
        if energy is not None:
            constants[on] = _constant(p)
        energies.append(energy or (text, 1.0))
        factor = energies[-1][1] if on == "x" else factor
    penalties = [term if math.isclose(r, factor) else f"{r / factor:.12g} * {term}" for term, r in energies]
    return Explanation(" + ".join(penalties), " + ".join(densities), factor, constants)


def _density(coefficient: Any, term: Any, n: int, D: int) -> tuple[Any, str, Any]:
    if not isinstance(coefficient, Real) or coefficient <= 0:
        raise ValueError(f"a density has a constant exponent above 0, got the coefficient {coefficient!r} of {term!r}")
    found: tuple[Any, str, Any] | None = term.density(n, D)
    if found is None:
        raise ValueError(
            f"{term!r} is not the logarithm of a density of the data, the code or the weights: the objective has no"
            " probabilistic reading"
        )
    return found


def _nats(coefficient: float, p: Any, rate: float | None, n: int, D: int, noise: float) -> tuple[float, Any]:
    """Nats for each unit of the objective, and the likelihood; `noise` is its scale where it leaves that open."""
    if getattr(p, "scale", 1.0) is None:
        p = type(p)(noise)
    return (p.penalty("x", n, D)[1] if rate is None else 1 / rate) / coefficient, p


def _constant(p: Any) -> float:
    """-log p at zero energy, which is at 0; the penalties of densities without a scale hold all constants."""
    if not hasattr(p, "scale"):
        return 0.0
    zero = torch.zeros((), dtype=torch.float64)
    # a one-sided density is told as the two-sided one that it is half of
    one_sided = 0.0 if p.signed else math.log(2)
    return one_sided - float(p.at(zero, torch.tensor(p.scale, dtype=torch.float64)).log_prob(zero))
