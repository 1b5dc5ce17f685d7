"""The step of `descend` for sparse codes over a linear encoder and decoder, at the cost of its active pairs.

    a = W x + b,   h = σ(a),   x̂ = V h + c,   d = x̂ - x
    ∂J/∂v_j = s Σ_n h_nj d_n,   ∂J/∂a_nj = s d_n · v_j,   ∂J/∂w_j = Σ_n ∂J/∂a_nj x_n,   s = 2 λ / (N D)

Only the encoder's product looks at all N x K cells, a block of rows at a time, and only active pairs are kept. In
bfloat16 that product, and the sums that make the two large gradients, read rounded copies; what is kept, decoded and
stepped is float32.
"""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Generator, Tensor

from retell.activations import BatchTopK, JumpReLU, ReLU, TopK
from retell.adam import Moments, adamw, clip
from retell.codec import Codec
from retell.constraints import Free, NonNegative, UnitNorm
from retell.corruptions import Nothing
from retell.descend import Descent, Number, Recipe, Turns
from retell.losses import MSE, Nested
from retell.objective import at
from retell.parts import part_of
from retell.penalties import L0, L1, AuxK
from retell.solvers.finder import Finder
from retell.solvers.pairs import ByUnit, Pairs, Sum, summed
from retell.solvers.passes import breadth
from retell.spread import Work, even, spread, threads

__all__ = ["Sparse", "why_not"]

ROWS = 1024
UNITS = 768


def why_not(codec: Codec, recipe: Recipe, *, holes: bool) -> str:
    """The reason for which pairs are not enough here, or an empty text."""
    squash = part_of(codec.code_activation)
    if not isinstance(squash, ReLU | TopK | BatchTopK | JumpReLU):
        return f"{squash!r} has no active pairs"
    if codec.encoder.deep or codec.decoder.deep or codec.tied:
        return "it takes one affine map each way, not tied"
    if holes or not isinstance(recipe.corruption, Nothing):
        return "it takes whole rows, not corrupted"
    if codec.centre.device.type != "cpu":
        return "it runs on the processor"
    if not isinstance(recipe.constraint, Free | NonNegative | UnitNorm):
        return f"the derivative of the unit of {recipe.constraint!r} is left to autograd"
    for term in recipe.objective.terms:
        if not isinstance(term, MSE | L0 | L1 | AuxK) and not (isinstance(term, Nested) and term.loss == MSE()):
            return f"the derivative of {term!r} is left to autograd"
    return ""


class Sparse(Descent):
    """`Descent`, its step by active pairs.

    Parameters
    ----------
    codec : Codec
        Filled; trained in place. Until `restore_best` its parameters are views of memory here.
    recipe : Recipe
        One for which `why_not` has nothing to say.
    seed : int
    rounded : bool, default=False
        The encoder's product and the sums of the matrices' gradients in bfloat16.
    """

    def __init__(self, codec: Codec, recipe: Recipe, seed: int, *, rounded: bool = False) -> None:
        super().__init__(codec, recipe, seed)
        self.squash = codec.code_activation
        encoder, decoder = codec.encoder.last, codec.decoder.last
        assert encoder.own is not None
        assert decoder.own is not None
        b, c, (K, D), like = codec.encoder.bias, codec.decoder.bias, encoder.own.shape, codec.centre
        self.dtype = torch.bfloat16 if rounded else like.dtype
        block = like.new_zeros(3, K, breadth(D, self.dtype))  # value and moments of W, b beside it
        self._settle(encoder.own, block[:, :, :D])
        self._settle(b, block[:, :, D])
        self._settle(decoder.own, like.new_zeros(3, K, D).transpose(1, 2))
        of_V = decoder.own.detach(), *self.moments[decoder.own][:2]
        self.kinds = [[one, other.T] for one, other in zip(block, of_V, strict=True)]  # values and moments of W and V
        self.steps = [self.moments[p].step for p in (encoder.own, decoder.own)]
        self.W, self.V = self.kinds[0]
        self.low = self.W.to(self.dtype)
        self.gradients: list[Tensor] = []  # all of W's and V's, where they are wanted before a step
        if recipe.clip < math.inf:
            self.gradients = [torch.zeros_like(self.W), torch.zeros_like(self.V)]
            encoder.own.grad, b.grad = self.gradients[0][:, :D], self.gradients[0][:, D]
            decoder.own.grad = self.gradients[1].T
        self.rest = [p for p in self.parameters.values() if p not in {encoder.own, b, decoder.own}]
        for p in self.rest:
            self._settle(p, torch.zeros(3, *p.shape).to(p))
            p.grad = torch.zeros_like(p)
        self.c, self.c_gradient = c.detach(), _gradient_of(c)
        self.finder = Finder(codec, self.low)
        # of a batch x: x̂ - x; for each prefix the sum of its own x̂ - x and those of larger ones
        self.off = self.behind = torch.zeros(0)
        self.sums: list[list[Sum]] = [[], []]  # what adds up to the gradients of W and of V

    def _settle(self, p: Any, views: Tensor) -> None:
        """The parameter and its moments in memory (3, ...) of ours."""
        value, mean, square = views
        value.copy_(p.detach())
        p.data = value
        self.moments[p] = Moments(mean, square, torch.zeros((), device=p.device))

    def stepping(self, x: Tensor, *, constant_rate: bool = False) -> Turns[dict[str, float]]:
        self.threads = torch.get_num_threads()
        with threads(1):  # those of `spread` are all: torch's own would go on turning on a core that they need
            return (yield from super().stepping(x, constant_rate=constant_rate))

    def reread(self) -> None:
        self.low.copy_(self.W)

    def restore_best(self) -> None:
        for p in self.parameters.values():
            p.data, p.grad = p.data.clone(memory_format=torch.contiguous_format), None
        super().restore_best()

    @torch.no_grad()
    def one_step(self, x: Tensor, noise: Generator, rate: float) -> list[Number]:  # noqa: ARG002
        values = self._gradient(x)
        self.hold()
        self.revive()
        self._learn(rate)
        if self.dial:
            self.answer(self.off, x, rate)
        self.step += 1
        return values

    def _learn(self, rate: float) -> None:
        """The step of each parameter; of units a few at a time, whose gradients no other memory need hold."""
        torch._foreach_add_([moments.step for moments in self.moments.values()], 1)

        def write(u: int, v: int) -> None:
            for whole, some in zip(self.gradients, self._of_units(u, v), strict=True):
                whole[u:v] = some

        def move(u: int, v: int) -> None:
            self._move([some[u:v] for some in self.gradients] or self._of_units(u, v), u, v, rate)

        over = partial(spread, n_rows=len(self.V), size=UNITS, enough=1, most=self.threads)
        with self.far_bias():
            if self.gradients:
                over(lambda: write)
                clip([*self.gradients, *(p.grad for p in self.rest)], self.recipe.clip)
            over(lambda: move)
        D = self.V.shape[1]
        self.low[:, D].copy_(self.W[:, D])  # the bias has gone further since
        moments = [list(kind) for kind in zip(*(self.moments[p] for p in self.rest), strict=True)]
        adamw(
            [p.detach() for p in self.rest],
            [p.grad for p in self.rest],
            moments,
            rate,
            self.betas(rate),
            self.groups[0],
        )

    def _of_units(self, u: int, v: int) -> list[Tensor]:
        """The gradients of W and V at the units from u up to v."""
        gradients = [summed(sums, u, v).to(some.dtype) for sums, some in zip(self.sums, self.kinds[0], strict=True)]
        self.recipe.constraint.tangent(self.V[u:v].T, gradients[1].T)
        return gradients

    def _move(self, gradients: list[Tensor], u: int, v: int, rate: float) -> None:
        """The step of W and V at the units from u up to v."""
        values, *moments = [[some[u:v] for some in kind] for kind in self.kinds]
        adamw(values, gradients, [*moments, self.steps], rate, self.betas(rate), self.groups[0])
        self.recipe.constraint.project(values[1].T)
        self.low[u:v].copy_(values[0])

    def _gradient(self, x: Tensor) -> list[Number]:
        """Write the gradients, those of W and V as sums that are left to do; the terms' values."""
        n, found = len(x), self.finder(x, self.threads)
        active = found._replace(values=self._code(found))
        on = active.values > 0
        values: list[Number] = []
        by_each = by_step = 0.0
        term: Any
        for coefficient, term in self.recipe.objective.summands:
            c = at(coefficient, self.step)
            if isinstance(term, L1):
                values.append(c / n * active.values.sum())
                by_each += c / n
            elif isinstance(term, L0):
                values.append(c / n * on.sum(dtype=x.dtype))
                by_step += c / n
            elif isinstance(term, AuxK):
                values.append(x.new_zeros(()))
            else:
                value, by_h = self._loss(x, active, c, getattr(term, "prefixes", ()))
                values.append(value)
        if by_each:
            by_h.add_(on, alpha=by_each)
        self.sums[0] = [
            self.by_unit.sum(self.finder.read, by_h * on if isinstance(self.finder.part, JumpReLU) else by_h)
        ]
        for i, (coefficient, term) in enumerate(self.recipe.objective.summands):
            if isinstance(term, AuxK):
                values[i] = self._revive(term, at(coefficient, self.step))
        self._observe(found, active, by_h, by_step)
        return values

    def _code(self, found: Pairs) -> Tensor:
        """h of each pair (M,)."""
        if not isinstance(self.finder.part, JumpReLU):
            return found.values
        return found.values * (found.values > self._thresholds(found))

    def _thresholds(self, found: Pairs) -> Tensor:
        """JumpReLU's of each pair (M,)."""
        threshold: Tensor = self.squash.threshold.detach().clamp(min=0)
        return threshold[found.units]

    def _loss(self, x: Tensor, active: Pairs, c: float, prefixes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """c L and its gradient by each h (M,); the bias's is written, V's among the sums.

        The units between two prefixes are in all reconstructions from the second on.
        """
        edges = list(pairwise([0, *sorted(prefixes), len(self.V)]))
        scale = 2 * c / (len(edges) * x.numel())
        by_h, h = (torch.empty_like(active.values) for _ in range(2))
        if self.behind.shape != (len(edges), *x.shape):
            self.behind = x.new_empty(len(edges), *x.shape, dtype=self.dtype)
            self.off = torch.empty_like(x) if self.dial or self.recipe.objective.counts_idle else x[:0]
        tallies: dict[int, tuple[Tensor, Tensor]] = {}

        def work(i: int, j: int) -> None:
            there, some = active.between(i, j)
            inside = [_within(some.units, edge) for edge in edges] if prefixes else []
            bands = [some.where(those) for those in inside] or [some]
            offs = [self.c - x[i:j]]
            for band in bands:
                offs.append(band.decode(self.V).add_(offs[-1]))
            so_far, slopes = torch.zeros(()), by_h[there]
            for b in reversed(range(len(bands))):
                so_far = offs[b + 1] if b + 1 == len(bands) else so_far + offs[b + 1]
                slopes[torch.from_numpy(inside[b]) if prefixes else slice(None)] = bands[b].dots(so_far, self.V)
                self.behind[b][i:j] = so_far
            if len(self.off):
                self.off[i:j] = offs[-1]
            torch.mul(some.values, scale, out=h[there])
            slopes.mul_(scale)
            tallies[i] = torch.stack([torch.dot(off.view(-1), off.view(-1)) for off in offs[1:]]).sum(), so_far.sum(0)

        def start() -> Work:
            if next(alone, False):
                self.by_unit = ByUnit(active, len(self.V))
            return work

        alone = iter([True])  # one thread sorts while others decode
        spread(start, len(x), even(len(x), ROWS, self.threads), enough=1, most=self.threads)
        squares, by_bias = zip(*(tallies[i] for i in sorted(tallies)), strict=True)
        torch.mul(torch.stack(by_bias).sum(0), scale, out=self.c_gradient)
        self.sums[1] = [self.by_unit.sum(some, h, *edge) for some, edge in zip(self.behind, edges, strict=True)]
        return torch.stack(squares).sum() * (scale / 2), by_h

    def _revive(self, term: AuxK, c: float) -> Tensor:
        """The value of AuxK; its gradients are among the sums."""
        dead, d = (self.codec.idle >= term.rows).nonzero().view(-1), self.off
        if not len(dead):
            return d.new_zeros(())
        (n, D), k = d.shape, min(int(term.k), len(dead))
        best = torch.topk(self.finder.read @ self.low[dead].T, k, dim=1, sorted=False)
        starts = torch.arange(n + 1, dtype=torch.int32) * k
        z = Pairs(starts, dead[best.indices].view(-1).int(), best.values.view(-1).to(d))
        missed, scale = z.decode(self.V).add_(d), 2 * c / (n * D)
        by_unit = ByUnit(z, len(self.V))
        self.sums[0].append(by_unit.sum(self.finder.read, z.dots(missed, self.V) * scale))
        self.sums[1].append(by_unit.sum(missed.to(self.dtype), z.values * scale))
        return torch.dot(missed.view(-1), missed.view(-1)) * (scale / 2)

    def _observe(self, found: Pairs, active: Pairs, by_h: Tensor, by_step: float) -> None:
        """What the code learns and counts besides."""
        K, n = len(self.V), len(active.starts) - 1
        if isinstance(self.finder.part, JumpReLU):
            threshold, width = self._thresholds(found), self.finder.part.bandwidth
            window = (found.values - threshold).abs() < width / 2
            by_threshold = (threshold * by_h + by_step) * window / -width
            self.squash.threshold.grad.copy_(torch.bincount(found.units, by_threshold, K))
        if isinstance(self.finder.part, BatchTopK):
            self.finder.part.settle(active.values.min() if len(active.values) else None, self.squash)
        if self.counts_idle:
            self.codec.idle += n
            all_on = not isinstance(self.finder.part, JumpReLU)
            fired = self.by_unit.starts.diff() if all_on else torch.bincount(active.units, active.values > 0, K)
            self.codec.idle[fired > 0] = 0


def _gradient_of(p: Tensor) -> Tensor:
    """Its memory, which there is."""
    assert p.grad is not None
    return p.grad


def _within(units: Tensor, edge: tuple[int, int]) -> Any:
    """Which units (M,) are from the first number up to the second, without it."""
    return ((units >= edge[0]) & (units < edge[1])).numpy()
