"""The reference solver: the equation, autograd and Adam, one epoch a turn.

for epoch in Descent(codec, recipe, seed).epochs(x, held_out):
    ...                                   # a callback is the body of this loop
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from retell.codec import Codec
from retell.metrics import explained_variance
from retell.objective import Objective
from retell.seeds import HELD_OUT, NOISE, generator, row_order

__all__ = ["Descent", "Epoch", "Recipe"]


@dataclass(frozen=True)
class Recipe:
    """What to minimise and how, every "auto" resolved."""

    objective: Objective
    corruption: Any
    constraint: Any
    batch_size: int
    learning_rate: float
    max_iter: int
    n_iter_no_change: int
    tol: float


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
        self.parameters = dict(codec.named_parameters())
        self.optimizer = torch.optim.Adam(self.parameters.values(), lr=recipe.learning_rate, fused=True)
        self.epoch = self.step = self.stale = self.rescues = 0
        self.best_loss = math.inf
        self.best = self._copy()
        dictionary = codec.dictionary()
        if dictionary is not None:
            with torch.no_grad():
                recipe.constraint.project(dictionary)

    def epochs(self, x: Tensor, held_out: Tensor | None = None) -> Iterator[Epoch]:
        """Train until the stopping rule or `max_iter` says so; yields after each epoch.

        Parameters
        ----------
        x : Tensor of shape (N, D)
            Scaled rows, NaN where unseen.
        held_out : Tensor of shape (M, D), optional
            Rows that judge; None lets the training objective judge.
        """
        if held_out is not None and self.epoch == 0:
            self.best_loss = sum(self.evaluate(held_out)[0].values())
        finished = self.epoch >= self.recipe.max_iter
        while not finished:
            terms = self.one_epoch(x)
            judged, score = ({}, None) if held_out is None else self.evaluate(held_out)
            epoch = self._judge(terms, judged, score)
            finished = epoch.finished
            yield epoch

    def one_epoch(self, x: Tensor, *, constant_rate: bool = False) -> dict[str, float]:
        """One step per batch, in the order of (seed, epoch); the last batch may be short."""
        size = self.recipe.batch_size
        total = self.recipe.max_iter * math.ceil(len(x) / size)
        order = row_order(self.seed, self.epoch, len(x)).to(x.device)
        noise = generator(self.seed, NOISE, self.epoch)
        sums = dict.fromkeys(self.recipe.objective.names, torch.zeros((), dtype=x.dtype, device=x.device))
        for i in range(0, len(x), size):
            batch = x[order[i : i + size]]
            terms = self.one_step(batch, noise, self.recipe.learning_rate if constant_rate else self.rate(total))
            sums = {name: sums[name] + len(batch) * value for name, value in terms.items()}
        self.epoch += 1
        return {name: float(value) / len(x) for name, value in sums.items()}

    def one_step(self, x: Tensor, noise: torch.Generator, rate: float) -> dict[str, Tensor]:
        """Forward, backward, step, back onto the constraint."""
        recipe, dictionary = self.recipe, self.codec.dictionary()
        p = self.codec(x, recipe.corruption(x, noise), noise)
        terms = recipe.objective(p._replace(unit=recipe.constraint.unit(p.h)), self.step)
        self.optimizer.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        if dictionary is not None:
            with torch.no_grad():
                recipe.constraint.tangent(dictionary, self.codec.dictionary_gradient())
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        if dictionary is not None:
            with torch.no_grad():
                recipe.constraint.project(dictionary)
        self.codec.code_activation.observe(p)
        self.step += 1
        return {name: value.detach() for name, value in terms.items()}

    def rate(self, total: int) -> float:
        """One cycle: up over the first tenth, down along a cosine to zero."""
        share = (self.step + 1) / total
        if share < 0.1:
            return self.recipe.learning_rate * share / 0.1
        return self.recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, (share - 0.1) / 0.9)))

    @torch.no_grad()
    def evaluate(self, x: Tensor) -> tuple[dict[str, float], float]:
        """The objective on given rows, same corruption each time, schedules at their end; and R² of clean rows."""
        recipe = self.recipe
        noise = generator(self.seed, HELD_OUT)
        p = self.codec(x, recipe.corruption(x, noise), noise)
        terms = recipe.objective(p._replace(unit=recipe.constraint.unit(p.h)))
        clean = self.codec(x)
        mean = recipe.objective.loss.mean(clean.x_hat)
        score = explained_variance(x.double().cpu().numpy(), mean.double().cpu().numpy())
        return {name: float(value) for name, value in terms.items()}, score

    def restore_best(self) -> None:
        """Put the best parameters back."""
        with torch.no_grad():
            for name, value in self.best.items():
                self.parameters[name].copy_(value)

    def state(self) -> dict[str, Tensor]:
        """Everything needed to go on after this epoch and end in the same bits.

        Order and noise are functions of (seed, epoch), so no generator has a state of its own to keep.
        """
        moments = {
            f"{moment}/{name}": self.optimizer.state[value][moment].clone()
            for name, value in self.parameters.items()
            for moment in ("exp_avg", "exp_avg_sq", "step")
        }
        numbers = torch.tensor([self.epoch, self.step, self.stale, self.best_loss], dtype=torch.float64)
        weights = {f"codec/{name}": value for name, value in self._copy().items()}
        return {
            **weights,
            **{f"best/{name}": value for name, value in self.best.items()},
            **moments,
            "numbers": numbers,
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take up a state that `state` gave."""
        with torch.no_grad():
            for name, value in self.parameters.items():
                value.copy_(state[f"codec/{name}"])
                self.best[name].copy_(state[f"best/{name}"])
                self.optimizer.state[value] = {
                    moment: state[f"{moment}/{name}"].to(value.device) for moment in ("exp_avg", "exp_avg_sq", "step")
                }
        epoch, step, stale, self.best_loss = state["numbers"].tolist()
        self.epoch, self.step, self.stale = int(epoch), int(step), int(stale)

    def _judge(self, terms: dict[str, float], held_out: dict[str, float], score: float | None) -> Epoch:
        loss = sum((held_out or terms).values())
        improved = loss < self.best_loss
        self.stale = 0 if loss < self.best_loss - self.recipe.tol * abs(self.best_loss) else self.stale + 1
        if improved or not held_out:
            self.best_loss, self.best = min(loss, self.best_loss), self._copy()
        finished = self.stale >= self.recipe.n_iter_no_change or self.epoch >= self.recipe.max_iter
        return Epoch(self.epoch, terms, held_out, score, loss, improved, finished)

    def _copy(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.parameters.items()}
