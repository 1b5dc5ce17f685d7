"""The reference solver: the equation, autograd and Adam, one epoch a turn.

for epoch in Descent(codec, recipe, seed).epochs(x, held_out):
    ...                                   # a callback is the body of this loop
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from retell.codec import Codec
from retell.metrics import explained_variance
from retell.objective import Objective
from retell.seeds import HELD_OUT, NOISE, generator, row_order

__all__ = ["Descent", "Epoch", "Judgement", "Recipe"]


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


class Judgement(NamedTuple):
    """What held-out rows say."""

    terms: dict[str, float]
    rows: Tensor
    """The objective on each row (M,)."""
    score: float
    """R² of the rows, uncorrupted."""


TAIL = 5  # epochs over which the learning rate falls to zero when held-out rows have stopped improving


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
        self.parameters = dict(codec.named_parameters())
        self.optimizer = torch.optim.AdamW(self._groups(), lr=recipe.learning_rate, eps=1e-12, fused=True)
        self.epoch = self.step = self.stale = 0
        self.anneal_from = self.end = math.inf  # steps; finite once the held-out rows have stopped improving
        self.best_loss = math.inf
        self.best = self._copy()
        self.first = self.best  # with the objective on each held-out row, what a better epoch has to beat
        self.first_rows = self.best_rows = torch.zeros(0)

    def epochs(self, x: Tensor, held_out: Tensor | None = None) -> Iterator[Epoch]:
        """Train until the stopping rule or `max_iter` says so; yields after each epoch.

        Parameters
        ----------
        x : Tensor of shape (N, D)
            Scaled rows, NaN where unseen.
        held_out : Tensor of shape (M, D), optional
            Rows that judge; None lets the training objective judge.
        """
        self.end = min(self.end, self.recipe.max_iter * self._steps(x))
        if held_out is not None and self.epoch == 0:
            start = self.evaluate(held_out)
            self.best_loss, self.first_rows, self.best_rows = sum(start.terms.values()), start.rows, start.rows
        while self.step < self.end:
            terms = self.one_epoch(x)
            epoch = self._judge(terms, None if held_out is None else self.evaluate(held_out))
            stalled = held_out is not None and self.stale >= self.recipe.n_iter_no_change
            if stalled and self.end - self.step > TAIL * self._steps(x):
                self.anneal_from, self.end = self.step, self.step + TAIL * self._steps(x)
            yield epoch._replace(finished=self.step >= self.end)

    def one_epoch(self, x: Tensor, *, constant_rate: bool = False) -> dict[str, float]:
        """One step per batch, batches of equal size, in the order of (seed, epoch)."""
        order = row_order(self.seed, self.epoch, len(x)).to(x.device)
        noise = generator(self.seed, NOISE, self.epoch, device=x.device)
        sums = dict.fromkeys(self.recipe.objective.names, torch.zeros((), dtype=x.dtype, device=x.device))
        self.codec.train()
        try:
            for rows in torch.tensor_split(order, self._steps(x)):
                rate = self.recipe.learning_rate * (1.0 if constant_rate else self.share(self._steps(x)))
                terms = self.one_step(x[rows], noise, rate)
                sums = {name: sums[name] + len(rows) * value for name, value in terms.items()}
        finally:  # an interrupt too leaves a codec that reads each row alone
            self.codec.train(False)
        self.epoch += 1
        return {name: float(value) / len(x) for name, value in sums.items()}

    def one_step(self, x: Tensor, noise: torch.Generator, rate: float) -> dict[str, Tensor]:
        """Forward, backward, step, back onto the constraint."""
        recipe, dictionary = self.recipe, self.codec.dictionary()
        p = self.codec(x, recipe.corruption(x, noise), noise)
        terms = recipe.objective(p._replace(unit=recipe.constraint.unit(p.h)), self.step)
        self.optimizer.zero_grad()
        torch.stack(list(terms.values())).sum().backward()  # type: ignore[no-untyped-call]
        if dictionary is not None:
            with torch.no_grad():
                recipe.constraint.tangent(dictionary, self.codec.dictionary_gradient())
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["share"]
        self.optimizer.step()
        if dictionary is not None:
            with torch.no_grad():
                recipe.constraint.project(dictionary)
        self.codec.observe(p)
        self.step += 1
        return {name: value.detach() for name, value in terms.items()}

    def share(self, steps: int) -> float:
        """What part of the largest learning rate to use now: up a tenth of the way, then down to zero.

        Once the held-out rows have stopped improving, it falls from where it is to zero in `TAIL` epochs.
        """
        total = self.recipe.max_iter * steps
        at = min(self.step, self.anneal_from)
        share = min((at + 1) / max(1.0, 0.1 * total), (total - at) / (0.9 * total))
        if self.step > self.anneal_from:
            share *= (self.end - self.step) / (self.end - self.anneal_from)
        return share

    @torch.no_grad()
    def evaluate(self, x: Tensor) -> Judgement:
        """Rows that are not trained on: same corruption each time, schedules at their end."""
        recipe = self.recipe
        noise = generator(self.seed, HELD_OUT, device=x.device)
        p = self.codec(x, recipe.corruption(x, noise), noise)
        p = p._replace(unit=recipe.constraint.unit(p.h))
        terms = {name: float(value) for name, value in recipe.objective(p).items()}
        mean = recipe.objective.loss.mean(self.codec(x).x_hat)
        score = explained_variance(x.double().cpu().numpy(), mean.double().cpu().numpy())
        return Judgement(terms, recipe.objective.by_row(p).double().cpu(), score)

    def restore_best(self) -> None:
        """Put the best parameters back: those of the best epoch if it is better than the start beyond doubt."""
        gain = self.first_rows - self.best_rows
        doubt = self.recipe.sure * float(gain.std()) / math.sqrt(len(gain)) if len(gain) > 1 else 0.0
        accepted = not len(gain) or float(gain.mean()) > doubt
        if not accepted:
            self.best_loss = float(self.first_rows.mean())
        with torch.no_grad():
            self.codec.load_state_dict(self.best if accepted else self.first)

    def state(self) -> dict[str, Tensor]:
        """Everything needed to go on after this epoch and end in the same bits.

        Order and noise are functions of (seed, epoch), so no generator has a state of its own to keep.
        """
        moments = {
            f"{moment}/{name}": self.optimizer.state[value][moment].clone()
            for name, value in self.parameters.items()
            for moment in ("exp_avg", "exp_avg_sq", "step")
        }
        numbers = [self.epoch, self.step, self.stale, self.anneal_from, self.end, self.best_loss]
        weights = {
            f"{kind}/{name}": value.clone()  # best may be first, and a file holds each on its own
            for kind, values in (("codec", self._copy()), ("best", self.best), ("first", self.first))
            for name, value in values.items()
        }
        rows = {"first_rows": self.first_rows.clone(), "best_rows": self.best_rows.clone()}
        return {**weights, **moments, **rows, "numbers": torch.tensor(numbers, dtype=torch.float64)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take up a state that `state` gave."""
        codec, self.best, self.first = (
            {name: state[f"{kind}/{name}"].to(value.device) for name, value in self.codec.state_dict().items()}
            for kind in ("codec", "best", "first")
        )
        self.codec.load_state_dict(codec)
        for name, value in self.parameters.items():
            self.optimizer.state[value] = {
                moment: state[f"{moment}/{name}"].to(value.device) for moment in ("exp_avg", "exp_avg_sq", "step")
            }
        self.first_rows, self.best_rows = state["first_rows"], state["best_rows"]
        epoch, step, stale, self.anneal_from, self.end, self.best_loss = state["numbers"].tolist()
        self.epoch, self.step, self.stale = int(epoch), int(step), int(stale)

    def _judge(self, terms: dict[str, float], judged: Judgement | None) -> Epoch:
        held_out, score = ({}, None) if judged is None else (judged.terms, judged.score)
        loss = sum((held_out or terms).values())
        improved = loss < self.best_loss
        self.stale = 0 if loss < self.best_loss - self.recipe.tol * abs(self.best_loss) else self.stale + 1
        if not math.isfinite(loss):
            warnings.warn(
                f"training diverged in epoch {self.epoch} (the objective is {loss}): it stopped there and kept what"
                " was best before; lower learning_rate_init",
                stacklevel=2,
            )
            self.end = self.step
        elif improved or judged is None:
            self.best_loss, self.best = min(loss, self.best_loss), self._copy()
            self.best_rows = self.best_rows if judged is None else judged.rows
        return Epoch(self.epoch, terms, held_out, score, loss, improved, False)

    def _steps(self, x: Tensor) -> int:
        """Steps an epoch."""
        return math.ceil(len(x) / self.recipe.batch_size)

    def _groups(self) -> list[dict[str, Any]]:
        """Nonlinear paths beside linear ones decay; those linear ones learn at 0.3 of the rate."""
        nets = [net for net in (self.codec.encoder, self.codec.decoder) if net.linear is not None]
        beside = {id(p) for net in nets for p in net.layers.parameters()}
        linear = {id(p) for net in nets if net.linear is not None for p in net.linear.parameters()}
        groups: dict[tuple[float, float], list[Any]] = {}
        for parameter in self.parameters.values():
            decay = self.recipe.decay if id(parameter) in beside else 0.0
            groups.setdefault((0.3 if id(parameter) in linear else 1.0, decay), []).append(parameter)
        return [{"params": some, "share": share, "weight_decay": decay} for (share, decay), some in groups.items()]

    def _copy(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self.codec.state_dict().items()}
