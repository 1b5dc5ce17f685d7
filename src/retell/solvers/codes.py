"""Codes by optimisation: argmin_h of the objective, the decoder fixed.

    F(h) = smooth(h) + κ ||h / unit||₁ + [h in the code's range]

by FISTA, a proximal gradient method with momentum: each row steps, tests its step and stops on its own, so
its code does not depend on the rows beside it. κ gathers what has a kink at 0 (L1, Laplace priors), which is
what makes codes exactly 0; the rest is differentiated.
"""

from __future__ import annotations

import math
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from retell.codec import Codec
from retell.densities import Exponential, Laplace
from retell.objective import Objective, at
from retell.padding import in_blocks, padded
from retell.penalties import L1, L2, L1Weights, Prior, StudentT

__all__ = ["check_map", "optimise"]

Array = npt.NDArray[Any]

MOST_STEPS = 20_000
TOL = 1e-10  # of the largest entry: by how much a code may still move in one step
CLOSE = 1e-9  # how far inside an open range a code stays


def check_map(objective: Objective, code_activation: Any) -> None:
    """Raise ValueError where the objective of one row is not a function of its code alone."""
    for term in objective.terms:
        if not (term.letter == "L" or isinstance(term, L1 | StudentT | Prior | L2 | L1Weights)):
            raise ValueError(
                f"inference='map' minimises over the code of a row, the decoder fixed; {term!r} is not known to be a"
                " function of that code alone: use inference='encoder', or only losses, L1, StudentT, priors and"
                " penalties on weights"
            )
        if term.needs_corruption:
            raise ValueError(f"inference='map' has no corrupted cells for {term!r}: use inference='encoder'")
    if code_activation.sparse or hasattr(code_activation, "sample"):
        raise ValueError(
            f"inference='map' chooses codes by the penalty, and {code_activation!r} chooses them itself: use Identity()"
            " or ReLU() with L1, or inference='encoder'"
        )


def optimise(codec: Codec, objective: Objective, rows: Array, unit: Array | float) -> tuple[Array, Array]:
    """The codes of least objective and by how much they beat the encoder's, in float64.

    A mean over cells is over all D of them, and a prior on weights is left out: it is the same for any code.

    Parameters
    ----------
    codec : Codec
    objective : Objective
    rows : ndarray of shape (N, D)
        Scaled rows, NaN where unseen.
    unit : ndarray of shape (K,) or float
        As in `Pass`.

    Returns
    -------
    h : ndarray of shape (N, K)
    gap : ndarray of shape (N,)
        The objective at the encoder's code minus that at h, at least 0.
    """
    wide, (D, K) = padded(codec).double(), (len(codec.centre), codec.n_units)
    units = torch.nn.functional.pad(torch.as_tensor(unit).to(wide.centre).expand(K), (0, wide.n_units - K), value=1.0)

    @torch.no_grad()
    def best(x: Tensor) -> Tensor:
        x = x.clone()
        x[:, D:] = math.nan
        a = wide.encoder(wide.fill(x))[:, : codec.n_outputs]
        first = torch.nn.functional.pad(wide.code_activation(a), (0, wide.n_units - K))
        h = map_codes(wide, objective, x, first, units, D)
        gap = (_sum(wide, objective, x, at, units, D, kinked=True) for at in (first, h))
        return torch.cat([h[:, :K], (next(gap) - next(gap)).clamp(min=0)[:, None]], 1)

    both = in_blocks(best, rows, K + 1, like=wide.centre)
    return both[:, :K], both[:, K]


def map_codes(codec: Codec, objective: Objective, x: Tensor, h: Tensor, unit: Tensor, D: int) -> Tensor:
    """The codes (N, K) of least objective for rows x of D columns (and some of padding), from the codes h on.

    For a linear decoder and a convex loss this is the minimum; a deep decoder has local ones, and the code
    is never worse than h.

    References
    ----------
    Beck & Teboulle 2009, "A Fast Iterative Shrinkage-Thresholding Algorithm for Linear Inverse Problems";
    O'Donoghue & Candès 2015, "Adaptive Restart for Accelerated Gradient Schemes".
    """
    kappa = _kappa(objective) / unit
    low, high = (bound + side * CLOSE if math.isfinite(bound) and bound else bound
                 for bound, side in zip(codec.code_activation.range, (1, -1), strict=True))  # fmt: skip

    def smooth(at: Tensor) -> Tensor:
        return _sum(codec, objective, x, at, unit, D, kinked=False)

    def whole(at: Tensor) -> Tensor:
        return smooth(at) + (kappa * at.abs()).sum(1)

    h = h.clamp(low, high)
    start, y = h, h
    t = torch.ones(len(h), 1, dtype=h.dtype, device=h.device)
    steep = torch.full_like(t, 1e-6)  # the curvature that each row's step assumes
    going = torch.ones_like(t, dtype=torch.bool)
    for _ in range(MOST_STEPS):
        value, slope = _slope(smooth, y)
        steep = steep / 1.02  # a bend that was passed need not slow all that follows
        while True:
            step = y - slope / steep
            new = (step.sign() * (step.abs() - kappa / steep).clamp(min=0)).clamp(low, high)
            move = new - y
            most = value + (slope * move).sum(1) + (steep[:, 0] / 2) * move.square().sum(1)
            bad = going[:, 0] & (smooth(new) > most + 1e-12 * most.abs())
            if not bad.any():
                break
            steep = torch.where(bad[:, None], 2 * steep, steep)
        # momentum that points uphill is dropped
        wrong = ((y - new) * (new - h)).sum(1, keepdim=True) > 0
        t_new = torch.where(wrong, 1.0, (1 + (1 + 4 * t.square()).sqrt()) / 2)
        ahead = torch.where(wrong, new, new + (t - 1) / t_new * (new - h))
        still = (new - h).abs().amax(1, keepdim=True) + move.abs().amax(1, keepdim=True)
        done = still <= TOL * (1 + new.abs().amax(1, keepdim=True))
        h, y, t = (torch.where(going, b, a) for a, b in ((h, new), (y, ahead.clamp(low, high)), (t, t_new)))
        going = going & ~done
        if not going.any():
            break
    return torch.where((whole(h) <= whole(start))[:, None], h, start)


def _slope(f: Any, h: Tensor) -> tuple[Tensor, Tensor]:
    """f(h) (N,) and its gradient (N, K)."""
    with torch.enable_grad():
        h = h.detach().requires_grad_()
        value = f(h)
        (slope,) = torch.autograd.grad(value.sum(), h)
    return value.detach(), slope


def _sum(codec: Codec, objective: Objective, x: Tensor, h: Tensor, unit: Tensor, D: int, *, kinked: bool) -> Tensor:
    p = codec.as_pass(x, h, unit)
    total = torch.zeros(len(x), dtype=x.dtype, device=x.device)
    for coefficient, term in objective.summands:
        if isinstance(term, L2 | L1Weights) or getattr(term, "on", "") == "weights":
            continue
        rate = _rate(term)
        value = term(p)
        if rate and not kinked:  # its constants stay
            size = p.h / unit  # an Exponential's energy is a line, with its slope at 0 too
            value = value - rate * (size if isinstance(getattr(term, "p", None), Exponential) else size.abs()).sum(1)
        total = total + at(coefficient, math.inf) * ((value * p.weight).sum(1) / D if value.ndim == 2 else value)
    return total


def _rate(term: Any) -> float:
    """How steep the term's kink at 0 is."""
    if isinstance(term, L1):
        return 1.0
    kinked = isinstance(term, Prior) and term.on == "code" and isinstance(term.p, Laplace | Exponential)
    return 1 / term.p.scale if kinked else 0.0


def _kappa(objective: Objective) -> float:
    return sum(at(coefficient, math.inf) * _rate(term) for coefficient, term in objective.summands)
