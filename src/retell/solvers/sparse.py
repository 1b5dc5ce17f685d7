"""The step of `descend` for sparse codes over a linear encoder and decoder, at the cost of its active pairs.

    a = W x + b,   h = σ(a),   x̂ = V h + c,   d = x̂ - x
    ∂J/∂v_j = s Σ_n h_nj d_n,   ∂J/∂a_nj = s d_n · v_j,   ∂J/∂w_j = Σ_n ∂J/∂a_nj x_n,   s = 2 λ / (N D)

Only the encoder's product looks at all N x K cells, a block of rows at a time, and only active pairs are kept. In
bfloat16 that product, and the sums that make the two large gradients, read rounded copies; what is kept, decoded and
stepped is float32.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from retell.activations import BatchTopK, JumpReLU, ReLU, TopK
from retell.codec import Codec
from retell.constraints import Free, NonNegative, UnitNorm
from retell.corruptions import Nothing
from retell.descend import Descent, Moments, Recipe, adamw, clip
from retell.losses import MSE, Nested
from retell.objective import at
from retell.penalties import L0, L1, AuxK
from retell.solvers.pairs import Block, ByUnit, Pairs, joined
from retell.solvers.passes import breadth, with_ones
from retell.spread import spread

__all__ = ["Sparse", "why_not"]

CELLS = 3 * 2**20  # of the (rows, K) matrix that a thread holds


def why_not(codec: Codec, recipe: Recipe, *, holes: bool) -> str:
    """The reason for which pairs are not enough here, or an empty text."""
    squash = _part(codec.code_activation)
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
        assert encoder.bias is not None
        assert decoder.own is not None
        assert decoder.bias is not None
        (K, D), like = encoder.own.shape, codec.centre
        self.dtype = torch.bfloat16 if rounded else like.dtype
        block = like.new_zeros(4, K, breadth(D, self.dtype))  # value, gradient and moments of W, b beside it
        self._settle(encoder.own, block[:, :, :D])
        self._settle(encoder.bias, block[:, :, D])
        self._settle(decoder.own, like.new_zeros(4, K, D).transpose(1, 2))
        self.W, self.V = block[0], decoder.own.detach().T
        self.low = self.W.to(self.dtype)
        rest = [p for p in self.parameters.values() if p.grad is None]
        for p in rest:
            self._settle(p, torch.zeros(4, *p.shape).to(p))
        V = [some.T for some in (decoder.own.detach(), _gradient_of(decoder.own), *self.moments[decoder.own][:2])]
        steps = [self.moments[encoder.own].step, self.moments[decoder.own].step]
        others = [[p.detach(), p.grad, *self.moments[p]] for p in rest]
        self.stepped = [list(kind) for kind in zip([*block, steps[0]], [*V, steps[1]], *others, strict=True)]
        self.W_gradient, self.V_gradient = block[1], V[1]
        self.c, self.c_gradient = decoder.bias.detach(), _gradient_of(decoder.bias)
        self.most = max(64, CELLS // K)  # rows of a block
        self.blocks: list[Block] = []  # one a thread
        self.guess = 0.0  # what BatchTopK's threshold will be above

    @property
    def part(self) -> Any:
        """σ as it was written, or as a dial has set it."""
        return _part(self.codec.code_activation)

    def _settle(self, p: Any, views: Tensor) -> None:
        """The parameter, its gradient and its moments in memory (4, ...) of ours."""
        value, p.grad, mean, square = views
        value.copy_(p.detach())
        p.data = value
        self.moments[p] = Moments(mean, square, torch.zeros((), device=p.device))

    def load_state(self, state: dict[str, Tensor]) -> None:
        super().load_state(state)
        self.low.copy_(self.W)

    def restore_best(self) -> None:
        for p in self.parameters.values():
            p.data, p.grad = p.data.clone(memory_format=torch.contiguous_format), None
        super().restore_best()

    @torch.no_grad()
    def one_step(self, x: Tensor, noise: Generator, rate: float) -> list[Tensor]:  # noqa: ARG002
        recipe, dictionary, gradient = self.recipe, self.V.T, self.V_gradient.T
        values = self._gradient(x)
        recipe.constraint.tangent(dictionary, gradient)
        parameters, gradients, *moments = self.stepped
        clip(gradients, recipe.clip)
        adamw(parameters, gradients, moments, rate, self.groups[0])
        recipe.constraint.project(dictionary)
        self.revive(rate)
        if self.dial:
            self.turn(*self.seen, x, rate)
        self.low.copy_(self.W)
        self.step += 1
        return values

    def _gradient(self, x: Tensor) -> list[Tensor]:
        """Write the gradient of every parameter; the terms' values."""
        n, D = x.shape
        read = with_ones(n, D, x, self.dtype)
        read[:, :D] = x
        found = self._found(read)
        active, self.by_unit = found._replace(values=self._code(found)), ByUnit(found, len(self.V))
        on = active.values > 0
        by_h, by_step = (torch.zeros_like(active.values) for _ in range(2))
        values: list[Tensor] = []
        term: Any
        for coefficient, term in self.recipe.objective.summands:
            c = at(coefficient, self.step)
            if isinstance(term, L1):
                values.append(c / n * active.values.sum())
                by_h.add_(on, alpha=c / n)
            elif isinstance(term, L0):
                values.append(c / n * on.sum(dtype=x.dtype))
                by_step += c / n
            elif isinstance(term, AuxK):
                values.append(x.new_zeros(()))
            else:
                value, slope, d = self._loss(x, active, c, getattr(term, "prefixes", ()))
                values.append(value)
                by_h += slope
        self.W_gradient.copy_(self.by_unit.sums(read, by_h * on))
        for i, (coefficient, term) in enumerate(self.recipe.objective.summands):
            if isinstance(term, AuxK):
                values[i] = self._revive(read, d, term, at(coefficient, self.step))
        self._observe(found, active, by_h, by_step)
        if self.dial:
            self.seen = on.sum(), d
        return values

    def _found(self, read: Tensor) -> Pairs:
        """Every pair of rows (n, D + 1) that may be active, its value a."""
        n, threads = read.shape[0], torch.get_num_threads()
        size = min(self.most, -(-n // threads))
        if not self.blocks or len(self.blocks[0].cells) != size:
            self.blocks = [Block(size, len(self.low), self.dtype) for _ in range(threads)]
        find, parts, free = self._find(read), {}, iter(self.blocks)

        def start() -> Callable[[int, int], None]:
            block = next(free)

            def work(i: int, j: int) -> None:
                parts[i] = find(block, torch.mm(read[i:j], self.low.T, out=block.cells[: j - i]))

            return work

        spread(start, n, size, enough=1)
        found = joined([parts[i] for i in sorted(parts)])
        found = found._replace(values=found.values.to(self.V.dtype))
        return self._of_batch(read, found) if isinstance(self.part, BatchTopK) else found

    def _find(self, read: Tensor) -> Callable[[Block, Tensor], Pairs]:
        """What finds the pairs of a block (n, K) of a."""
        part, tiny = self.part, torch.finfo(self.dtype).tiny
        if isinstance(part, TopK):
            return lambda block, a: block.largest(a, int(part.k))
        if isinstance(part, BatchTopK):
            if not self.guess:
                a = read[: self.most] @ self.low.T
                self.guess = float(a.float().flatten().kthvalue(a.numel() - int(part.k) * len(a) + 1).values) / 2
            return lambda block, a: block.above(a, a.new_full((1, 1), max(tiny, self.guess)))
        if isinstance(part, JumpReLU):
            least = (self.squash.threshold.detach().clamp(min=0) - part.bandwidth / 2)[None].to(self.dtype)
            return lambda block, a: block.above(a, least)
        return lambda block, a: block.above(a, a.new_full((1, 1), tiny))

    def _of_batch(self, read: Tensor, found: Pairs) -> Pairs:
        """The pairs that are among the k N largest of the batch."""
        wanted, values = int(self.part.k) * read.shape[0], found.values.numpy()
        if len(values) < wanted and self.guess > torch.finfo(self.dtype).tiny:
            self.guess = self.guess / 2 if self.guess > 1e-3 else torch.finfo(self.dtype).tiny
            return self._found(read)
        least = np.partition(values, -wanted)[-wanted] if len(values) > wanted else values.min(initial=0.0)
        self.guess = 0.8 * float(least)
        return found.where(values >= least)

    def _code(self, found: Pairs) -> Tensor:
        """h of each pair (M,)."""
        if not isinstance(self.part, JumpReLU):
            return found.values
        return found.values * (found.values > self._thresholds(found))

    def _thresholds(self, found: Pairs) -> Tensor:
        """JumpReLU's of each pair (M,)."""
        threshold: Tensor = self.squash.threshold.detach().clamp(min=0)
        return threshold[found.units]

    def _loss(self, x: Tensor, active: Pairs, c: float, prefixes: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
        """c L, its gradient by each h (M,), and x̂ - x; V's and the bias's are written.

        The units between two prefixes are in all reconstructions from the second on.
        """
        edges = list(pairwise([0, *sorted(prefixes), len(self.V)]))
        inside = [_within(active.units, edge) for edge in edges] if prefixes else []
        bands = [active.where(some) for some in inside] or [active]
        scale, off, offs = 2 * c / (len(edges) * x.numel()), self.c - x, []
        for band in bands:
            off = band.decode(self.V).add_(off)
            offs.append(off)
        slope, behind = torch.empty_like(active.values), torch.zeros_like(x) if prefixes else off
        for i in reversed(range(len(bands))):
            band, behind = bands[i], behind + offs[i] if prefixes else off
            slope[torch.from_numpy(inside[i]) if prefixes else slice(None)] = band.dots(behind, self.V)
            units = ByUnit(band, len(self.V)) if prefixes else self.by_unit
            sums = units.sums(behind.to(self.dtype), band.values)
            torch.mul(sums[slice(*edges[i])], scale, out=self.V_gradient[slice(*edges[i])])
        torch.mul(behind.sum(0), scale, out=self.c_gradient)
        value = torch.stack([torch.dot(d.view(-1), d.view(-1)) for d in offs]).sum() * (scale / 2)
        return value, slope.mul_(scale), off

    def _revive(self, read: Tensor, d: Tensor, term: AuxK, c: float) -> Tensor:
        """The value of AuxK; its gradients are added."""
        dead = (self.codec.idle >= term.rows).nonzero().view(-1)
        if not len(dead):
            return d.new_zeros(())
        (n, D), k = d.shape, min(int(term.k), len(dead))
        best = torch.topk(read @ self.low[dead].T, k, dim=1, sorted=False)
        starts, rows = (torch.arange(some, dtype=torch.int32) for some in (n + 1, n))
        z = Pairs(starts * k, rows.repeat_interleave(k), dead[best.indices].view(-1).int(), best.values.view(-1).to(d))
        missed, scale = z.decode(self.V).add_(d), 2 * c / (n * D)
        units = ByUnit(z, len(self.V))
        self.V_gradient.add_(units.sums(missed.to(self.dtype), z.values), alpha=scale)
        self.W_gradient.add_(units.sums(read, z.dots(missed, self.V) * scale))
        return torch.dot(missed.view(-1), missed.view(-1)) * (scale / 2)

    def _observe(self, found: Pairs, active: Pairs, by_h: Tensor, by_step: Tensor) -> None:
        """What the code learns and counts besides."""
        K, n = len(self.V), len(active.starts) - 1
        if isinstance(self.part, JumpReLU):
            threshold, width = self._thresholds(found), self.part.bandwidth
            window = (found.values - threshold).abs() < width / 2
            by_threshold = (threshold * by_h + by_step) * window / -width
            self.squash.threshold.grad.copy_(torch.bincount(found.units, by_threshold, K))
        if isinstance(self.part, BatchTopK):
            self.part.settle(active.values.min() if len(active.values) else None, self.squash)
        if self.counts_idle:
            self.codec.idle += n
            self.codec.idle[active.units[active.values > 0].long()] = 0


def _gradient_of(p: Tensor) -> Tensor:
    """Its memory, which there is."""
    assert p.grad is not None
    return p.grad


def _within(units: Tensor, edge: tuple[int, int]) -> Any:
    """Which units (M,) are from the first number up to the second, without it."""
    return ((units >= edge[0]) & (units < edge[1])).numpy()


def _part(squash: Any) -> Any:
    """σ as the value that it was written as."""
    return getattr(squash, "part", squash)
