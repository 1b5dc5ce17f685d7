"""The reference solver: the equation, autograd and Adam, one epoch a turn.

for epoch in Descent(codec, recipe, seed).epochs(x, held_out):
    ...                                   # a callback is the body of this loop
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from retell.adam import Group, Moments, adamw, clip, further_by, up_and_down
from retell.batches import CELLS, Batches, InStep, how_many
from retell.codec import Codec
from retell.corruptions import Nothing
from retell.dials import NO_AIM, Aim, Dial, over
from retell.guard import Guard, Judgement
from retell.metrics import Explained
from retell.notice import warn
from retell.objective import Objective
from retell.seeds import HELD_OUT, NOISE, generator

__all__ = ["Descent", "Epoch", "Number", "Recipe", "Turns"]


@dataclass(frozen=True)
class Recipe:
    """What to minimise and how, every "auto" resolved."""

    objective: Objective
    corruption: Any
    constraint: Any
    batch_size: int
    learning_rate: float
    max_iter: int
    decay: float
    n_iter_no_change: int
    tol: float
    sure: float
    """Standard errors by which the best epoch must be better than the start."""
    clip: float = math.inf
    """Norm to which a larger gradient is scaled back."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Of Adam."""
    late: float = 0.9
    """What the first of them falls to, with the learning rate."""
    warmup: float = 0.1
    """Share of the steps in which the learning rate rises."""
    bias_rate: float = 1.0
    """How far the encoder's bias moves in a step, in moves of Adam at the learning rate."""
    revive: float = 0.0
    """By how much, in its own largest rates, a step raises that bias of each unit that has long been idle."""
    first: float = 0.0
    """Units a row with which the code begins; it falls to its own number before the end."""
    aim: Aim = NO_AIM
    """The sparsity or the error to reach; the objective's coefficients are then those in force."""


class Epoch(NamedTuple):
    """One pass over the rows."""

    number: int
    """Counted from 1."""
    terms: dict[str, float]
    """Mean of each summand over the epoch's batches, coefficient included."""
    held_out: dict[str, float]
    """The same summands on the held-out rows after the epoch, schedules at their end; empty without such rows."""
    score: float | None
    """R² of the held-out rows, uncorrupted; None without such rows."""
    loss: float
    """What decides which epoch is best: the sum of `held_out`, or of `terms` without held-out rows."""
    improved: bool
    """Whether it is the best epoch so far."""
    finished: bool
    """Whether the stopping rule says that this was the last."""


Number = Tensor | float
T = TypeVar("T")
Turns = Generator[None, None, T]
"""What is done a turn at a time, so that others may do theirs in between; and its outcome."""

TAIL = 3  # epochs over which the learning rate falls to zero when held-out rows have stopped improving
ROWS = 2048  # judged at a time, at most
IDLE = 8_500  # rows without activity after which a unit is helped
NOTHING = 1e-30  # what a first moment is taken for zero below


def outcome(turns: Turns[T]) -> T:
    """Of one turn after another."""
    while True:
        try:
            next(turns)
        except StopIteration as end:
            value: T = end.value
            return value


class Descent:
    """Gradient steps on a codec, with all the state needed to stop and go on.

    Parameters
    ----------
    codec : Codec
        Filled; trained in place.
    recipe : Recipe
    seed : int
        The order of rows and all noise are functions of (seed, epoch).
    """

    def __init__(self, codec: Codec, recipe: Recipe, seed: int) -> None:
        self.codec, self.recipe, self.seed = codec, recipe, seed
        dictionary = codec.dictionary()
        if dictionary is not None:
            with torch.no_grad():
                recipe.constraint.project(dictionary)
        self.dial = Dial(codec, recipe.objective, recipe.aim, recipe.first)
        self.recipe = replace(recipe, objective=self.dial.objective)
        self.parameters = dict(codec.named_parameters())
        self.groups = self._groups()
        self.moments = {p: Moments.of(p.detach()) for p in self.parameters.values()}
        self.epoch = self.step = self.stale = 0
        self.anneal_from = self.end = math.inf  # steps; finite once the held-out rows have stopped improving
        self.best_loss = math.inf
        # the best parameters, once there is something to go back to, and of which epoch they are; 0 is the start
        self.best, self.kept = dict[str, Tensor](), 0
        self.stopped = False
        self.guard = Guard(self.dial, watches=not recipe.revive)
        self.first: dict[str, Tensor] | None = None  # the start, where a better epoch must be so beyond doubt
        self.first_rows = self.best_rows = torch.zeros(0)
        self.batches: Batches | InStep = Batches()
        self.threads = torch.get_num_threads()  # that share a product
        self.schedule: Callable[[float], float] | None = None  # by step, where epochs are not alike
        self.judges: Any = None  # the held-out rows, and how much there is to explain in them

    def epochs(self, x: Tensor, held_out: Tensor | None = None) -> Iterator[Epoch]:
        """Train until the stopping rule or `max_iter` says so; yields after each epoch.

        Parameters
        ----------
        x : Tensor of shape (N, D)
            Scaled rows, NaN where unseen.
        held_out : Tensor of shape (M, D), optional
            Rows that judge; None lets the training objective judge, and a few of the rows say if steps are too long.
        """
        return filter(None, self.course(x, held_out))

    def course(self, x: Tensor, held_out: Tensor | None = None) -> Iterator[Epoch | None]:
        """`epochs` for fits that take turns: yields None too, after each batch that it has taken."""
        self.end = min(self.end, self.recipe.max_iter * self._steps(x))
        if not self.best:
            self.keep()
        watched = self.guard.some(x) if held_out is None else held_out
        if self.epoch == 0 and watched is not None:
            start = yield from self.judging(watched)
            self.guard.note(start)
            if held_out is not None:
                self.best_loss, self.first_rows, self.best_rows = start.loss, start.rows, start.rows
                self.first = self.best if self.recipe.sure else None
        while self.step < self.end:
            terms = yield from self.stepping(x)
            now = None if watched is None else (yield from self.judging(watched))
            astray = self.guard.is_astray(now)
            epoch = self._judge(terms, None if held_out is None else now, astray=astray)
            if self.kept == self.epoch:
                self.guard.note(now)
            elif astray:
                self._go_back()
            stalled = held_out is not None and self.dial.comparable and self.stale >= self.recipe.n_iter_no_change
            if stalled and self.end - self.step > TAIL * self._steps(x):
                self.anneal_from, self.end = self.step, self.step + TAIL * self._steps(x)
            yield epoch._replace(finished=self.step >= self.end)

    def guarded(self, x: Tensor, *, constant_rate: bool = False) -> tuple[dict[str, float], bool]:
        """`one_epoch` on rows that come once, and whether it had to be taken back.

        Warns
        -----
        UserWarning
            If it was.
        """
        watched = self.guard.some(x)
        self.keep()
        if watched is not None:
            self.guard.note(self.evaluate(watched))
        terms = self.one_epoch(x, constant_rate=constant_rate)
        astray = not math.isfinite(sum(terms.values()))  # what judges the epoch says so
        if watched is not None and not astray:
            now = self.evaluate(watched)
            astray = self.guard.is_astray(now)
            if astray:
                warn(
                    f"these {len(x):,} rows have taught nothing: after an epoch on them R² was {now.score:.3g} where it"
                    f" had been {self.guard.reached:.3g}, as its steps were too long; it was taken back, and steps are"
                    f" half as long from now on; lower learning_rate_init, which was {self.recipe.learning_rate:g}",
                )
        if astray:
            self._go_back()
        return terms, astray

    def _go_back(self) -> None:
        """To the best parameters so far, from where the steps have led astray; they are half as long from now on."""
        with torch.no_grad():
            self.codec.load_state_dict(self.best)
        for moments in self.moments.values():
            for moment in moments:
                moment.zero_()
        self.guard.eased, self.stale = self.guard.eased / 2, 0
        self.reread()

    def reread(self) -> None:
        """Parameters have been written from outside: copies of them are made anew."""

    def stop(self) -> None:
        """End with the step that is being taken: its epoch is one of the rows so far."""
        self.stopped, self.end = True, self.step

    def one_epoch(self, x: Tensor, *, constant_rate: bool = False) -> dict[str, float]:
        """One step per batch, batches of equal size, in the order of (seed, epoch)."""
        return outcome(self.stepping(x, constant_rate=constant_rate))

    def stepping(self, x: Tensor, *, constant_rate: bool = False) -> Turns[dict[str, float]]:
        """`one_epoch` for fits that take turns: yields after each step."""
        noise, steps = generator(self.seed, NOISE, self.epoch, device=x.device), self._steps(x)
        # who asks a device for its numbers waits for it
        read: Callable[[Any], Any] = float if x.device.type == "cpu" else Tensor.double
        seen, sums = 0, [0.0 for _ in self.recipe.objective.names]
        self.codec.train()
        try:
            asked = self.recipe.batch_size, self.seed, self.epoch, self.threads
            for rows in self.batches.shuffled(x, *asked, late=self.takes(x)):
                if self.dial.turns:
                    self.dial.begin(self.step, self.end)
                rate = self.recipe.learning_rate * (self.guard.eased if constant_rate else self.share(steps))
                n = rows.shape[0]
                seen += n
                values = self.one_step(rows, noise, rate)
                sums = [total + n * read(value) for total, value in zip(sums, values, strict=True)]
                yield
                if self.stopped:
                    break
        finally:  # an interrupt too leaves a codec that reads each row alone
            self.codec.train(False)
            self.dial.rest()
        for moments in self.moments.values():  # those of a dead unit decay to numbers that are slow, and stay
            torch.hardshrink(moments.mean, NOTHING, out=moments.mean)
        self.epoch += 1
        means = (float(total) / seen for total in sums)
        return dict(zip(self.recipe.objective.names, means, strict=True))

    def takes(self, x: Tensor) -> bool:  # noqa: ARG002
        """Whether a step takes its rows itself, so that batches may be given as `Due`."""
        return False

    def one_step(self, x: Tensor, noise: torch.Generator, rate: float) -> list[Number]:
        """Forward, backward, step, back onto the constraint; the terms' values before it."""
        recipe, dictionary = self.recipe, self.codec.dictionary()
        p = self.codec(x, recipe.corruption(x, noise), noise)
        terms = recipe.objective(p._replace(unit=recipe.constraint.unit(p.h)), self.step)
        self.codec.zero_grad()
        torch.stack(list(terms.values())).sum().backward()  # type: ignore[no-untyped-call]
        self.hold()
        if dictionary is not None:
            with torch.no_grad():
                recipe.constraint.tangent(dictionary, self.codec.dictionary_gradient())
        clip([p.grad for p in self.parameters.values() if p.grad is not None], recipe.clip)
        torch._foreach_add_([self.moments[p].step for p in self.parameters.values() if p.grad is not None], 1)
        with self.far_bias():
            for group in self.groups:
                some = [p for p in group.parameters if p.grad is not None]
                moments = [list(kind) for kind in zip(*(self.moments[p] for p in some), strict=True)]
                adamw([p.detach() for p in some], [p.grad for p in some], moments, rate, self.betas(rate), group)
        if dictionary is not None:
            with torch.no_grad():
                recipe.constraint.project(dictionary)
        self.codec.observe(p, idle=self.counts_idle)
        self.revive()
        if self.dial:
            loss = recipe.objective.loss
            self.answer(torch.where(p.seen, loss.mean(p.x_hat) - p.x, 0.0), p.x, rate)
        self.step += 1
        return [value.detach() for value in terms.values()]

    @torch.no_grad()
    def answer(self, off: Tensor, x: Tensor, rate: float) -> None:
        """Let the dial answer to what is off (N, D) in a batch x (N, D)."""
        fvu = off.square().sum() / (x - self.codec.centre).square().sum()
        self.dial.answer(float(fvu), (rate, self.recipe.learning_rate))
        self.recipe = replace(self.recipe, objective=self.dial.objective)

    def hold(self) -> None:
        """Thresholds that wait are set, not learned: take back their gradient."""
        threshold = getattr(self.codec.code_activation, "threshold", None)
        if threshold is not None and threshold.grad is not None and self.dial.waits:
            threshold.grad.zero_()

    @property
    def done(self) -> float:
        """Share of the steps that is over; 1 where they have no end."""
        return over(self.step, self.end)

    def betas(self, rate: float) -> tuple[float, float]:
        """Adam's at a learning rate: from the largest on, the first falls with it, as weights that hardly move need
        no inertia and lag behind by it."""
        (first, second), late = self.recipe.betas, self.recipe.late
        part = 1.0 if self.done < self.recipe.warmup else rate / self.recipe.learning_rate
        return late + (first - late) * part, second

    @property
    def counts_idle(self) -> bool:
        """Whether something asks for rows since each unit was active."""
        return self.recipe.objective.counts_idle or self.recipe.revive > 0

    def far_bias(self) -> AbstractContextManager[None]:
        """Let the encoder's bias move `bias_rate` times as far as the steps inside move it.

        What it is added to moves with every column of a row, and it alone decides how often a unit is active.
        """
        further = self.recipe.bias_rate - 1
        return further_by(further, self.codec.encoder.bias.detach()) if further else nullcontext()

    @torch.no_grad()
    def revive(self) -> None:
        """Raise the biases of units that have not been active for `IDLE` rows, until they are.

        As fast at the end as at any time, for codes that are thinned out silence units to the end; and never much
        faster than Adam lowers what was raised in vain, or units of no use would crowd out the others.
        """
        recipe = self.recipe
        if recipe.revive:
            further = recipe.revive * recipe.bias_rate * recipe.learning_rate
            self.codec.encoder.bias.add_(self.codec.idle >= IDLE, alpha=further)

    def share(self, steps: int) -> float:
        """What part of the largest learning rate to use now: up for a share of the way, then down to zero.

        Once the held-out rows have stopped improving, it falls from where it is to zero in `TAIL` epochs.
        """
        at = min(self.step, self.anneal_from)
        recipe = self.recipe
        share = up_and_down(at, recipe.max_iter * steps, recipe.warmup) if self.schedule is None else self.schedule(at)
        share *= self.guard.eased
        if self.step > self.anneal_from:
            share *= (self.end - self.step) / (self.end - self.anneal_from)
        return share

    def evaluate(self, x: Tensor) -> Judgement:
        """Rows that are not trained on: same corruption each time, schedules at their end."""
        return outcome(self.judging(x))

    @torch.no_grad()
    def judging(self, x: Tensor) -> Turns[Judgement]:
        """`evaluate` for fits that take turns: yields after each block of rows."""
        recipe = self.recipe
        noise = generator(self.seed, HELD_OUT, device=x.device)
        clean = isinstance(recipe.corruption, Nothing) and not hasattr(self.codec.code_activation, "sample")
        size = min(ROWS, max(64, CELLS // self.codec.n_units))
        new = x is not self.judges
        if new:
            self.judges, self.explained = x, Explained(self.codec.centre.double().cpu().numpy())
        rows: dict[str, list[Tensor]] = {name: [] for name in recipe.objective.names}
        error = torch.zeros((), dtype=torch.float64, device=x.device)
        for some in torch.split(x, size) if isinstance(x, Tensor) else self.batches.in_order(x, size, self.epoch):
            if new:
                self.explained.see(some.double().cpu().numpy())
            p = self.codec(some, recipe.corruption(some, noise), noise)
            p = p._replace(unit=recipe.constraint.unit(p.h))
            for name, values in recipe.objective.each_by_row(p).items():
                rows[name].append(values.double().cpu())
            mean = recipe.objective.loss.mean(p.x_hat if clean else self.codec(some).x_hat)
            error += torch.where(p.seen, mean - p.x, 0.0).square().sum(dtype=torch.float64)
            yield
        self.explained.error = float(error)
        each = {name: torch.cat(values) for name, values in rows.items()}
        terms = {name: float(values.mean()) for name, values in each.items()}
        return Judgement(terms, torch.stack(list(each.values())).sum(0), self.explained.score)

    def restore_best(self) -> None:
        """Put the best parameters back: those of the best epoch if it is better than the start beyond doubt."""
        gain = self.first_rows - self.best_rows
        doubt = self.recipe.sure * float(gain.std()) / math.sqrt(len(gain)) if len(gain) > 1 else 0.0
        accepted = bool(self.dial) or not len(gain) or float(gain.mean()) > doubt
        if not accepted:
            self.best_loss, self.kept = float(self.first_rows.mean()), 0
        with torch.no_grad():
            self.codec.load_state_dict(self.best if accepted or self.first is None else self.first)

    def state(self) -> dict[str, Tensor]:
        """Everything needed to go on after this epoch and end in the same bits.

        Order and noise are functions of (seed, epoch), so no generator has a state of its own to keep.
        """
        moments = {
            f"{moment}/{name}": value.clone()
            for name, p in self.parameters.items()
            for moment, value in self.moments[p]._asdict().items()
        }
        counts = [self.epoch, self.kept, self.step, self.stale]
        numbers = [*counts, self.anneal_from, self.end, self.best_loss, *self.guard.state(), *self.dial.state()]
        weights = {
            f"{kind}/{name}": value.clone()  # best may be first, and a file holds each on its own
            for kind, values in (("codec", self.codec.state_dict()), ("best", self.best), ("first", self.first or {}))
            for name, value in values.items()
        }
        rows = {"first_rows": self.first_rows.clone(), "best_rows": self.best_rows.clone()}
        kept = torch.tensor(numbers, dtype=torch.float64)
        return {**weights, **moments, **rows, "numbers": kept}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take up a state that `state` gave."""
        own = self.codec.state_dict()
        codec, self.best, first = (
            {name: state[key].to(value.device) for name, value in own.items() if (key := f"{kind}/{name}") in state}
            for kind in ("codec", "best", "first")
        )
        self.first = first or None
        self.codec.load_state_dict(codec)
        for name, p in self.parameters.items():
            for moment, value in self.moments[p]._asdict().items():
                value.copy_(state[f"{moment}/{name}"])
        self.first_rows, self.best_rows = state["first_rows"], state["best_rows"]
        epoch, kept, step, stale, *numbers = state["numbers"].tolist()
        self.anneal_from, self.end, self.best_loss, *numbers = numbers
        self.dial.load(self.guard.load(numbers))
        self.recipe = replace(self.recipe, objective=self.dial.objective)
        self.epoch, self.kept, self.step, self.stale = int(epoch), int(kept), int(step), int(stale)
        self.reread()

    def _judge(self, terms: dict[str, float], judged: Judgement | None, *, astray: bool = False) -> Epoch:
        held_out, score = ({}, None) if judged is None else (judged.terms, judged.score)
        loss = sum((held_out or terms).values())
        improved, comparable = loss < self.best_loss, self.dial.comparable
        better = loss < self.best_loss - self.recipe.tol * abs(self.best_loss)
        self.stale = 0 if better or not comparable else self.stale + 1
        if not math.isfinite(loss):
            rate, kept = self.recipe.learning_rate, "what was best before" if held_out else "the epoch before"
            decays = rate < 1 < self.recipe.decay * rate  # of a weight in a step
            warn(
                f"training diverged in epoch {self.epoch} (the objective is {loss}): it stopped there and kept"
                f" {kept}; lower {'weight_decay' if decays else f'learning_rate_init, which was {rate:g}'}",
            )
            self.end = self.step
        elif (improved or judged is None or not comparable) and not astray:
            self.best_loss = min(loss, self.best_loss) if comparable else loss
            self.keep()
            self.best_rows = self.best_rows if judged is None else judged.rows
        return Epoch(self.epoch, terms, held_out, score, loss, improved and not astray, False)

    def _steps(self, x: Tensor) -> int:
        """Steps an epoch."""
        return how_many(len(x), self.recipe.batch_size)

    def _groups(self) -> list[Group]:
        """Nonlinear paths beside linear ones decay; those linear ones learn at 0.3 of the rate."""
        nets = [net for net in (self.codec.encoder, self.codec.decoder) if net.linear is not None]
        beside = {id(p) for net in nets for p in net.layers.parameters()}
        linear = {id(p) for net in nets if net.linear is not None for p in net.linear.parameters()}
        groups: dict[tuple[float, float], list[Any]] = {}
        for parameter in self.parameters.values():
            decay = self.recipe.decay if id(parameter) in beside else 0.0
            groups.setdefault((0.3 if id(parameter) in linear else 1.0, decay), []).append(parameter)
        return [Group(some, share, decay) for (share, decay), some in groups.items()]

    def keep(self) -> None:
        """These parameters are the best so far."""
        self.kept, now = self.epoch, self.codec.state_dict()
        if not self.best or self.best is self.first:
            self.best = {name: value.clone() for name, value in now.items()}
        else:
            for name, value in now.items():
                self.best[name].copy_(value)
