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

from retell.activations import Identity, ReLU, Sigmoid, Tanh
from retell.codec import Codec
from retell.constraints import Free, NonNegative, UnitNorm, UnitRMS
from retell.corruptions import Nothing
from retell.descend import EPSILON, MOMENTS, Descent, Recipe
from retell.losses import MSE
from retell.objective import Objective, at, mean, total_weight, value_of
from retell.parts import Pass
from retell.penalties import KL, Contractive
from retell.solvers.passes import SQUASHES, Call, Passes, Place, breadth, with_ones
from retell.spread import threads

__all__ = ["Dense", "why_not"]

mse_backward = torch.ops.aten.mse_loss_backward.grad_input
LARGE = 2**15  # weights of a layer from which bfloat16 gains more by products than it loses by casts
SMALL = 2**21  # multiplications in a product up to which a second thread costs more than it saves


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
        state, groups = self.optimizer.state, self.optimizer.param_groups
        self.stretches = [Stretch(group, state, biases, some) for group in groups]
        self.works: dict[int, Work] = {}
        widest = max(layer.weight.numel() for layer in codec.affines())
        self.threads = 1 if widest * recipe.batch_size <= SMALL else torch.get_num_threads()
        self.squash = codec.code_activation
        # the mean squared error of whole rows alone: the common case, and small nets have no time for Python
        alone = recipe.objective == Objective(((1.0, MSE()),)) and isinstance(recipe.corruption, Nothing)
        self.one = torch.ones_like(codec.centre[0])
        self.alone = alone and isinstance(self.squash, Identity | ReLU | Sigmoid | Tanh)
        dictionary = codec.dictionary()
        self.held = None if dictionary is None else (dictionary.detach(), codec.dictionary_gradient())
        self.holed = True

    def one_epoch(self, x: Tensor, *, constant_rate: bool = False) -> dict[str, float]:
        holed = bool(x.isnan().any()) if isinstance(x, Tensor) else x.holed
        if holed != self.holed:  # memory for the one way is none for the other
            self.holed, self.works = holed, {}
        with threads(self.threads):
            return super().one_epoch(x, constant_rate=constant_rate)

    def load_state(self, state: dict[str, Tensor]) -> None:
        super().load_state(state)
        for stretch in self.stretches:
            stretch.round()

    def restore_best(self) -> None:
        for value in self.parameters.values():
            value.data, value.grad = value.data.clone(), None
        super().restore_best()

    def one_step(self, x: Tensor, noise: Generator, rate: float) -> list[Tensor]:
        recipe = self.recipe
        values = self._any(x, noise) if self.holed or not self.alone else [self._squares(x)]
        if self.held is not None:
            recipe.constraint.tangent(*self.held)
        for stretch in self.stretches:
            stretch.step(rate)
        if self.held is not None:
            recipe.constraint.project(self.held[0])
        for stretch in self.stretches:
            stretch.round()
        self.step += 1
        return values

    def _squares(self, x: Tensor) -> Tensor:
        """Write the gradient of the mean squared error of whole rows; the error."""
        work = self.works.get(x.shape[0]) or self._work(x.shape[0])
        work.lands.copy_(x)
        for call in work.ahead:
            call()
        mse_backward(self.one, work.decoder.y, x, 1, grad_input=work.decoder.d)
        for call in work.back:
            call()
        self._gather()
        return work.square * work.scale

    @torch.no_grad()
    def _any(self, x: Tensor, noise: Generator) -> list[Tensor]:
        """Write the gradient of every parameter; the terms' values."""
        work = self._work(x.shape[0])
        read, rows = self.codec.reads(x, self.recipe.corruption(x, noise))
        work.x.copy_(read)
        a = work.encoder.forward()
        h = work.h.copy_(self.squash(a))
        p = Pass(self.codec, *rows, a, h, work.decoder.forward(), noise, self.recipe.constraint.unit(h))
        n, values = p.x.shape[0], []
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
        work.encoder.d.copy_(sum(by_a, self.squash.pull(d, p.a, p.h)))
        work.encoder.backward()
        self._gather()
        for c, matrices, slopes in later:
            for matrix, slope in zip(matrices, slopes, strict=True):
                matrix.grad.add_(slope, alpha=c)
        self.squash.observe(p)
        return values

    def _gather(self) -> None:
        for stretch in self.stretches:
            stretch.gather()

    def _work(self, n: int) -> Work:
        if n not in self.works:
            places = {key: place for stretch in self.stretches for key, place in stretch.places.items()}
            self.works[n] = Work(self.codec, places, n, alone=self.alone and not self.holed)
        return self.works[n]


class Work:
    """Memory for n rows, and the calls that use it; `alone` for the mean squared error of whole rows."""

    def __init__(self, codec: Codec, places: dict[int, Place], n: int, *, alone: bool) -> None:
        like = codec.centre
        x, h = (with_ones(n, width, like, like.dtype) for width in (len(like), codec.n_units))
        self.x, self.h = x[:, : len(like)], h[:, : codec.n_units]
        self.decoder = Passes(codec.decoder, places, h, adds=False, further=True)
        squash = SQUASHES.get(type(codec.code_activation).__name__.lower()) if alone else None
        memory = {} if squash is None else {"y": self.h, "d": self.decoder.back}
        # tied, the decoder's gradients are written first
        self.encoder = Passes(codec.encoder, places, x, adds=codec.tied, further=False, **memory)
        self.ahead: list[Call] = []
        self.back: list[Call] = []
        if squash is not None:
            # what the first layer reads, where that is all that reads the rows
            direct = self.encoder.linear is None
            self.lands = self.encoder.reads[0][:, : len(like)] if direct else self.x
            first = self.encoder.calls[self.lands.dtype != self.x.dtype :]
            self.ahead = [*first, *squash.forward(self.h, self.h), *self.decoder.calls]
            cells, self.square = self.decoder.d.view(-1), like.new_zeros(())
            self.scale = like.new_tensor(len(cells) / 4)  # from the square of the gradient to that of the error
            self.back = [
                partial(torch.dot, cells, cells, out=self.square),
                *self.decoder.back_calls,
                *squash.backward(self.decoder.back, self.h, self.h),
                *self.encoder.back_calls,
            ]


class Stretch:
    """The parameters of one group side by side: values, gradients, moments, and rounded copies of some.

    Parameters
    ----------
    group : dict
        Of the optimizer.
    state : dict
        Of the optimizer; its moments become views.
    biases : dict of int to Parameter
        The bias that stands beside a matrix, by the matrix's id.
    rounded : set of int
        Ids of the matrices whose products are in bfloat16.
    """

    def __init__(
        self, group: dict[str, Any], state: dict[Any, Any], biases: dict[int, nn.Parameter], rounded: set[int]
    ) -> None:
        self.share, self.decay = group["share"], group["weight_decay"]
        beside = {id(bias) for bias in biases.values()}
        own = sorted((p for p in group["params"] if id(p) not in beside), key=lambda p: id(p) not in rounded)
        shapes = [_block(p, rounded=id(p) in rounded) if id(p) in biases else p.shape for p in own]
        ends = [0, *accumulate(math.prod(shape) for shape in shapes)]
        like = own[0].detach()
        self.value, self.gradient, self.first, self.second = (like.new_zeros(ends[-1]) for _ in range(4))
        self.count, self.one = torch.zeros((), device=like.device), torch.ones((), device=like.device)
        end = ends[sum(id(p) in rounded for p in own)]
        self.high, self.high_gradient = self.value[:end], self.gradient[:end]
        self.low, self.low_gradient = (torch.zeros(end, dtype=torch.bfloat16, device=like.device) for _ in range(2))
        self.places: dict[int, Place] = {}
        for p, shape, start, stop in zip(own, shapes, ends, ends[1:], strict=False):
            blocks = [kind[start:stop].view(shape) for kind in (self.value, self.gradient, self.first, self.second)]
            if id(p) in biases:
                n_in = p.shape[1]
                self._settle(biases[id(p)], [block[:, n_in] for block in blocks], state)
                self._settle(p, [block[:, :n_in] for block in blocks], state)
            else:
                self._settle(p, blocks, state)
            low = (self.low, self.low_gradient) if id(p) in rounded else (self.value, self.gradient)
            self.places[id(p)] = Place(*(kind[start:stop].view(shape) for kind in low))
        self.round()

    def _settle(self, p: nn.Parameter, views: list[Tensor], state: dict[Any, Any]) -> None:
        value, gradient, first, second = views
        value.copy_(p.detach())
        p.data, p.grad = value, gradient
        state[p] = dict(zip(MOMENTS, (first, second, self.count), strict=True))

    def gather(self) -> None:
        """Gradients that were written in bfloat16, in float32."""
        if len(self.low):
            self.high_gradient.copy_(self.low_gradient)

    def round(self) -> None:
        """Copies of the values as the products read them."""
        if len(self.low):
            self.low.copy_(self.high)

    def step(self, rate: float) -> None:
        """AdamW, as torch.optim does it."""
        self.count.add_(self.one)
        torch._fused_adamw_(
            [self.value], [self.gradient], [self.first], [self.second], [], [self.count], lr=rate * self.share,
            beta1=0.9, beta2=0.999, weight_decay=self.decay, eps=EPSILON, amsgrad=False, maximize=False,
        )  # fmt: skip


def _block(p: Tensor, *, rounded: bool) -> tuple[int, int]:
    """The shape of a matrix with its bias beside it."""
    return len(p), breadth(p.shape[1], torch.bfloat16 if rounded else p.dtype)


def _through_unit(by_code: Tensor, p: Pass) -> Tensor:
    """The gradient by h, of that by h / unit, where the unit is 1 or the code's root mean square."""
    if isinstance(p.unit, float):
        return by_code
    by_code = by_code / p.unit
    return by_code - p.h * (by_code * p.h).sum(0) / (p.h.shape[0] * p.unit.square())
