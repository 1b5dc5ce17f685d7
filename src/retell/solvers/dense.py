"""The step of `descend` with its gradient written out: no graph, memory taken once, one call that steps all.

Values, gradients and moments of the parameters lie each in one stretch. In bfloat16 the products of nonlinear
layers read rounded copies of the weights; what is kept, summed and stepped is float32, and the linear path and
small layers are float32 throughout.
"""

from __future__ import annotations

import math
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import Generator, Tensor, nn

from retell.adam import Group, Moments, adamw
from retell.arrays import overflowing, silence
from retell.batches import Due
from retell.codec import Codec
from retell.constraints import Free, NonNegative, UnitNorm, UnitRMS
from retell.corruptions import Nothing
from retell.descend import Descent, Number, Recipe, Turns
from retell.guard import Judgement
from retell.losses import MSE
from retell.metrics import Explained
from retell.objective import Objective, at, mean, total_weight, value_of
from retell.parts import Pass
from retell.penalties import KL, Contractive
from retell.solvers.passes import Algebra, Passes, Place, breadth, lying
from retell.solvers.squares import SQUARED, Shares, Squares
from retell.spread import threads

__all__ = ["Dense", "why_not"]

LARGE = 2**13  # weights of a layer from which bfloat16 gains more by products than it loses by casts
JUDGED = 2**16  # cells at a time
SMALL = 2**22  # multiplications in a product up to which a second thread saves a tenth, and costs far more at times
SHARED = 2**24  # up to which threads that take a share of the rows each are faster than threads that share a product
MOST, ENOUGH = 4, 512  # such threads, and rows that repay one


def why_not(codec: Codec, recipe: Recipe) -> str:
    """The reason for which the gradient is not written out here, or an empty text."""
    squash = codec.code_activation
    if not hasattr(squash, "pull") or (isinstance(squash, nn.Module) and any(True for _ in squash.parameters())):
        return f"the derivative of {squash!r} is left to autograd"
    if not isinstance(recipe.constraint, Free | NonNegative | UnitNorm | UnitRMS):
        return f"the derivative of the unit of {recipe.constraint!r} is left to autograd"
    for term in recipe.objective.terms:
        if not _is_written(term, codec, recipe):
            return f"the derivative of {term!r} is left to autograd"
    return ""


def _is_written(term: Any, codec: Codec, recipe: Recipe) -> bool:
    units = isinstance(recipe.constraint, UnitRMS)
    if isinstance(term, Contractive):
        bends = hasattr(codec.code_activation, "bend")
        return term.closed(codec) and bends and isinstance(recipe.corruption, Nothing) and not units
    if getattr(term, "learned", False) or (isinstance(term, KL) and units):
        return False
    density, loss = getattr(term, "p", None), getattr(term, "loss", None)
    if (density is not None and not hasattr(density, "slope")) or (
        loss is not None and not hasattr(loss, "slope_x_hat")
    ):
        return False
    return any(hasattr(term, slope) for slope in ("slope_x_hat", "slope_h", "slope_weights"))


class Dense(Descent):
    """`Descent`, its step written out.

    Parameters
    ----------
    codec : Codec
        Filled; trained in place. Until `restore_best` its parameters are views of a few stretches of memory.
    recipe : Recipe
        One for which `why_not` has nothing to say.
    seed : int
    rounded : bool, default=False
        Products of nonlinear layers in bfloat16.
    """

    def __init__(self, codec: Codec, recipe: Recipe, seed: int, *, rounded: bool = False) -> None:
        super().__init__(codec, recipe, seed)
        biases = {
            id(layer.own): layer.bias for layer in codec.affines() if layer.own is not None and layer.bias is not None
        }
        nets = (codec.encoder, codec.decoder) if rounded else ()
        some = {id(p) for net in nets for p in net.layers.parameters() if p.ndim == 2 and p.numel() >= LARGE}
        alone = recipe.objective == Objective(((1.0, MSE()),)) and isinstance(recipe.corruption, Nothing)
        self.alone = alone and not self.dial and type(codec.code_activation) in SQUARED
        largest = max(layer.weight.numel() for layer in codec.affines()) * recipe.batch_size
        here, small = codec.centre.device.type == "cpu", largest <= SMALL
        self.threads = 1 if small else self.threads
        self.algebra = Algebra(numpy=small and not some and here)
        shared = self.alone and here and not small and not some and largest <= SHARED
        self.shares = max(1, min(self.threads, MOST, recipe.batch_size // ENOUGH)) if shared else 1
        first = [codec.encoder.layers[0], *([] if codec.encoder.linear is None else [codec.encoder.linear])]
        outer = set() if codec.tied else {id(layer.own) for layer in first}
        how = biases, some, outer, self.algebra, self.shares
        self.stretches = [Stretch(group, self.moments, *how) for group in self.groups]
        self.rounded = [stretch for stretch in self.stretches if len(stretch.low)]
        self.works: dict[int, Work | Squares | Shares] = {}
        self.scales: dict[int, Tensor] = {}  # by which gradients of so many rows are too large
        self.silence = silence()
        dictionary = codec.dictionary()
        self.held = None if dictionary is None else (dictionary.detach(), codec.dictionary_gradient())
        self.holed, self.most = True, 0  # whether cells of an epoch may be unseen, and rows of its largest batch

    def stepping(self, x: Tensor, *, constant_rate: bool = False) -> Turns[dict[str, float]]:
        holed = _holed(x)
        if holed != self.holed:  # memory for the one way is none for the other
            self.holed, self.works = holed, {}
        self.most = -(-len(x) // self._steps(x))
        with threads(1 if self.shares > 1 and not holed else self.threads), self.algebra.calm():
            return (yield from super().stepping(x, constant_rate=constant_rate))

    def takes(self, x: Tensor) -> bool:
        like, as_it_is = self.codec.centre, not self.rounded or self.codec.encoder.linear is not None
        return self.alone and not self.holed and as_it_is and (x.dtype, x.device) == (like.dtype, like.device)

    def reread(self) -> None:
        for stretch in self.rounded:
            stretch.round()

    def restore_best(self) -> None:
        for value in self.parameters.values():
            value.data, value.grad = value.data.clone(memory_format=torch.contiguous_format), None
        self.works = {}  # what comes after the last step needs room too
        super().restore_best()

    @torch.no_grad()
    def judging(self, x: Tensor) -> Turns[Judgement]:
        if not self.alone or _holed(x) or self.rounded:
            return (yield from super().judging(x))
        errors: list[Tensor] = []
        # other threads of torch's would go on turning, on cores that the next step wants for its own
        with threads(1 if self.shares > 1 else self.threads), self.algebra.calm():
            size, new = max(1, min(len(x), JUDGED // x.shape[1])), x is not self.judges
            if new:
                self.judges, self.explained = x, Explained(self.codec.centre.double().cpu().numpy())
                self.judge = Squares(self.codec, self._places(), self.algebra, size)
            for some in self.batches.in_order(x, size, self.epoch):
                if new:
                    self.explained.see(some.double().cpu().numpy())
                with overflowing():
                    off = self.judge.forward(some) - some
                errors.append(off.square_().mean(1).double())
                yield
        rows = torch.cat(errors)
        self.explained.error = float(rows.sum()) * x.shape[1]
        return Judgement({self.recipe.objective.names[0]: float(rows.mean())}, rows, self.explained.score)

    def one_step(self, x: Tensor, noise: Generator, rate: float) -> list[Number]:
        recipe = self.recipe
        if self.holed or not self.alone:
            values, scale = self.silence.run(self._any, x, noise)
        else:
            values, scale = self.silence.run(self._squares, x)
        if self.held is not None:
            recipe.constraint.tangent(*self.held)
        with self.far_bias():
            for stretch in self.stretches:
                stretch.step(rate, self.betas(rate), scale)
        if self.held is not None:
            recipe.constraint.project(self.held[0])
        if self.dial:
            self.answer(*self.seen, rate)
        self.reread()
        self.step += 1
        return values

    def _squares(self, x: Tensor | Due) -> tuple[list[Number], Tensor | None]:
        """As `_any`, of the mean squared error of whole rows alone."""
        n, D = x.shape
        if n not in self.scales:  # an epoch's batches have two sizes
            self.scales[n] = torch.tensor(n * D / 2, dtype=torch.float32, device=self.codec.centre.device)
        square: Number = self._work(Shares if self.shares > 1 else Squares, max(self.most, n))(x)
        for stretch in self.stretches if self.shares > 1 else self.rounded:
            stretch.gather()
        return [square / (n * D)], self.scales[n]

    @torch.no_grad()
    def _any(self, x: Tensor, noise: Generator) -> tuple[list[Number], Tensor | None]:
        """Write the gradient of every parameter; the terms' values, and what to divide the gradient by."""
        work: Work = self._work(Work, x.shape[0])
        read, rows = self.codec.reads(x, self.recipe.corruption(x, noise))
        work.x.copy_(read)
        a = work.encoder.forward()
        h = work.h.copy_(self.codec.code_activation(a))
        p = Pass(self.codec, *rows, a, h, work.decoder.forward(), noise, self.recipe.constraint.unit(h))
        n, values = p.x.shape[0], list[Number]()
        later: list[tuple[float, list[Any], list[Tensor]]] = []
        term: Any
        work.decoder.d.zero_()
        by_h: list[Tensor] = []
        by_a: list[Tensor] = []
        for coefficient, term in self.recipe.objective.summands:
            c = at(coefficient, self.step)
            value = value_of(term, p)
            values.append(c * mean(value, p))
            if hasattr(term, "slope_x_hat"):
                each = c * p.weight / total_weight(p.weight) if value.ndim == 2 else c / n
                work.decoder.d += term.slope_x_hat(p) * each
            elif isinstance(term, Contractive):
                slope, by_weight = term.slopes(p)
                by_a.append(c / n * slope)
                later.append((c / n, [p.codec.encoder.last.own], [by_weight]))
            elif term.on_weights:
                later.append((c, p.codec.matrices(), term.slope_weights(p)))
            else:
                by_h.append(_through_unit(term.slope_h(p) * (c / n if value.ndim == 1 else c), p))
        d = sum(by_h, work.decoder.backward())
        work.encoder.d.copy_(sum(by_a, self.codec.code_activation.pull(d, p.a, p.h)))
        work.encoder.backward()
        for stretch in self.rounded:
            stretch.gather()
        for c, matrices, slopes in later:
            for matrix, slope in zip(matrices, slopes, strict=True):
                matrix.grad.add_(slope, alpha=c)
        self.codec.code_activation.observe(p)
        if self.dial:
            off = self.recipe.objective.loss.mean(p.x_hat) - p.x
            self.seen = torch.where(p.seen, off, 0.0), p.x
        return values, None

    def _work(self, kind: type[Work] | type[Squares] | type[Shares], n: int) -> Any:
        if n not in self.works:
            places = [self._places(share) for share in range(self.shares)] if kind is Shares else self._places()
            self.works[n] = kind(self.codec, places, self.algebra, n)  # type: ignore[arg-type]
        return self.works[n]

    def _places(self, share: int = 0) -> dict[int, Place]:
        return {key: place for stretch in self.stretches for key, place in stretch.places[share].items()}


class Work:
    """Memory for n rows, and both ways through the nets."""

    def __init__(self, codec: Codec, places: dict[int, Place], algebra: Algebra, n: int) -> None:
        like = codec.centre
        x, h = (algebra.with_ones(n, width, like, like.dtype) for width in (len(like), codec.n_units))
        self.x, self.h = x[:, : len(like)], h[:, : codec.n_units]
        self.decoder = Passes(codec.decoder, places, algebra, h, adds=False, further=True)
        # tied, the decoder's gradients are written first
        self.encoder = Passes(codec.encoder, places, algebra, x, adds=codec.tied, further=False)


class Stretch:
    """The parameters of one group side by side: values, gradients, moments, and rounded copies of some.

    `places` has those of each thread that takes a share of the rows; `gather` adds up their gradients.

    Parameters
    ----------
    group : Group
    moments : dict of Parameter to Moments
        They become views of those here.
    biases : dict of int to Parameter
        The bias that stands beside a matrix, by the matrix's id.
    rounded : set of int
        Ids of the matrices whose products are in bfloat16.
    outer : set of int
        Ids of the matrices of whose input no gradient is wanted.
    algebra : Algebra
    shares : int
    """

    def __init__(
        self, group: Group, moments: dict[Any, Moments], biases: dict[int, nn.Parameter], rounded: set[int],
        outer: set[int], algebra: Algebra, shares: int,
    ) -> None:  # fmt: skip
        self.group = group
        beside = {id(bias) for bias in biases.values()}
        own = sorted((p for p in group.parameters if id(p) not in beside), key=lambda p: id(p) not in rounded)
        shapes = [_block(p, rounded=id(p) in rounded) if id(p) in biases else p.shape for p in own]
        ends = [0, *accumulate(math.prod(shape) for shape in shapes)]
        like = own[0].detach()
        self.value, self.gradient = (like.new_zeros(ends[-1]) for _ in range(2))
        self.moments = Moments.of(self.value)
        self.kinds = [[kind] for kind in self.moments]
        step = self.moments.step
        self.count: Any = step.numpy() if algebra.numpy else step
        end = ends[sum(id(p) in rounded for p in own)]
        self.high, self.high_gradient = self.value[:end], self.gradient[:end]
        self.low, self.low_gradient = (torch.zeros(end, dtype=torch.bfloat16, device=like.device) for _ in range(2))
        self.others = [torch.zeros_like(self.gradient) for _ in range(shares - 1)]
        self.places: list[dict[int, Place]] = [{} for _ in range(shares)]
        for p, shape, start, stop in zip(own, shapes, ends, ends[1:], strict=False):
            dtype = torch.bfloat16 if id(p) in rounded else p.dtype
            lie = partial(_placed, shape=shape, by_columns=algebra.turned(shape, dtype, outer=id(p) in outer))
            blocks = [lie(kind[start:stop]) for kind in (self.value, self.gradient, *self.moments[:2])]
            if id(p) in biases:
                n_in = p.shape[1]
                self._settle(biases[id(p)], [block[:, n_in] for block in blocks], moments)
                self._settle(p, [block[:, :n_in] for block in blocks], moments)
            else:
                self._settle(p, blocks, moments)
            value, gradient = (self.low, self.low_gradient) if id(p) in rounded else (self.value, self.gradient)
            for places, its in zip(self.places, (gradient, *self.others), strict=True):
                places[id(p)] = Place(lie(value[start:stop]), lie(its[start:stop]))
        self.round()

    def _settle(self, p: nn.Parameter, views: list[Tensor], moments: dict[Any, Moments]) -> None:
        value, gradient, mean, square = views
        value.copy_(p.detach())
        p.data, p.grad = value, gradient
        moments[p] = Moments(mean, square, self.moments.step)

    def gather(self) -> None:
        """Gradients that were written in bfloat16, in float32, and those of other threads' rows added."""
        self.high_gradient.copy_(self.low_gradient)
        for other in self.others:
            self.gradient.add_(other)

    def round(self) -> None:
        """Copies of the values as the products read them."""
        self.low.copy_(self.high)

    def step(self, rate: float, betas: tuple[float, float], scale: Tensor | None) -> None:
        self.count[()] += 1  # of an array without axes, a number: an array's sum takes longer
        adamw([self.value], [self.gradient], self.kinds, rate, betas, self.group, scale)


def _holed(x: Any) -> bool:
    """Whether cells of the rows may be unseen."""
    return bool(x.isnan().any()) if isinstance(x, Tensor) else x.holed


def _block(p: Tensor, *, rounded: bool) -> tuple[int, int]:
    """The shape of a matrix with its bias beside it."""
    return len(p), breadth(p.shape[1], torch.bfloat16 if rounded else p.dtype)


def _placed(memory: Tensor, shape: tuple[int, ...], *, by_columns: bool) -> Tensor:
    """A parameter of this shape in its stretch of memory."""
    return memory.view(shape) if len(shape) != 2 else lying(memory, *shape, by_columns=by_columns)


def _through_unit(by_code: Tensor, p: Pass) -> Tensor:
    """The gradient by h, of that by h / unit, where the unit is 1 or the code's root mean square."""
    if isinstance(p.unit, float):
        return by_code
    by_code = by_code / p.unit
    return by_code - p.h * (by_code * p.h).sum(0) / (p.h.shape[0] * p.unit.square())
