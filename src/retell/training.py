"""A plan carried out: the solver's epochs, the record of them, checkpoints and the clock."""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from retell.corruptions import Nothing
from retell.descend import Descent, Epoch
from retell.dials import rounded, settle, told
from retell.metrics import share
from retell.notice import warn
from retell.parts import part_of
from retell.plan import Plan
from retell.rows.blocks import blocks, spaced
from retell.rows.massive import Limit
from retell.rows.sample import Sample
from retell.seeds import SAMPLE, generator
from retell.solvers.dense import Dense
from retell.solvers.exact import column_errors, penalty, solve
from retell.solvers.sparse import Sparse
from retell.spread import Crowd
from retell.start import counts, observe
from retell.store import CheckpointError, write_checkpoint
from retell.survey import enough

if TYPE_CHECKING:
    from retell.model_file import Model

__all__ = ["Training"]

Array = npt.NDArray[Any]
Checkpoint = tuple[dict[str, Any], dict[str, Tensor]]

CROWDED = 0.2  # of the time, in which some thread waits for a core
EVERY = 5.0  # seconds between checkpoints
JUDGES = 2**12  # held-out rows that are enough to tell epochs apart


class Training:
    """The fit of a plan.

    Parameters
    ----------
    plan : Plan
    checkpoint : path, optional
        Folder for the state of the fit.
    found : (config, state), optional
        What `read_checkpoint` found there: the state of the same fit is taken up.
    limit : Limit, optional
        Beyond which rows are not fitted to.
    left_out : int
        How many there were.

    Attributes
    ----------
    n_rows : int
        That have come, those held out among them.
    history : list of Epoch
    stopped_by : {"", "max_time"}
    best_loss : float
        The least objective so far.
    best_iter : int
        The epoch whose parameters are kept, counted from 1; 0 for the start.
    """

    def __init__(
        self, plan: Plan, checkpoint: str | os.PathLike[str] | None = None, found: Checkpoint | None = None, *,
        limit: Limit | None = None, left_out: int = 0,
    ) -> None:  # fmt: skip
        self.plan = plan
        self.checkpoint = checkpoint
        self.found = found
        self.limit, self.left_out = limit, left_out
        self.before: Model | None = None  # what this goes on from
        self.asked = plan.settings  # as they were given
        self.sample = Sample(enough(plan.survey.rows.shape[1]), generator(plan.seed, SAMPLE))
        self.n_rows = self._looked = len(plan.survey.rows)
        self._errors: dict[tuple[str, bool], Array] = {}
        self.history: list[Epoch] = []
        self.stopped_by = ""
        self.dialled = ""

    @cached_property
    def descent(self) -> Descent:
        """The solver of gradient steps; a closed form has none."""
        plan = self.plan
        these = plan.codec, plan.recipe, plan.seed
        if plan.solver == "descend":
            found = Descent(*these)
        else:
            found = (Sparse if plan.solver == "sparse" else Dense)(*these, rounded=plan.rounded)
        if found.dial or (plan.recipe.first and len(plan.held_out)):
            found.dial.judges = self._judged
        return found

    @property
    def best_loss(self) -> float:
        return self.history[-1].loss if self.plan.solver == "exact" else self.descent.best_loss

    @property
    def best_iter(self) -> int:
        return 1 if self.plan.solver == "exact" else self.descent.kept

    def epochs(self) -> Generator[Epoch, None, None]:
        """Run to the end; the codec then holds the best epoch."""
        with closing(self.course()) as course:
            yield from filter(None, course)

    def sources(self) -> tuple[Any, Any]:
        """The rows to learn from, and those held out; for a step to take."""
        plan = self.plan
        return plan.rows(plan.train if len(plan.held_out) else None), plan.rows(spaced(plan.held_out, JUDGES))

    def course(self, sources: tuple[Any, Any] | None = None) -> Generator[Epoch | None, None, None]:
        """`epochs` for fits that take turns: yields None too, after each batch that it has taken.

        Parameters
        ----------
        sources : (Rows, Rows), optional
            What `sources` has given, or that of another training on the same rows.
        """
        if self.plan.solver == "exact":
            yield self._exact()
            return
        plan, start, crowd = self.plan, time.monotonic(), Crowd()
        x, held_out = sources or self.sources()
        judging = len(held_out) and plan.settings.early_stopping
        identity = self._resume()
        state, written = None, time.monotonic()
        most = math.inf if plan.settings.max_time is None else plan.settings.max_time
        try:
            for epoch in self.descent.course(x, held_out if judging else None):
                if epoch is not None:
                    self._warn_crowded(crowd.share())
                    self.history.append(epoch)
                    self._say(epoch)
                    if self.checkpoint is not None and not self.stopped_by:  # an epoch cut short is none to go on from
                        state = self.descent.state()
                        if time.monotonic() - written >= EVERY:
                            self._write(identity, state)
                            state, written = None, time.monotonic()
                yield epoch
                if not self.stopped_by and self.descent.step and time.monotonic() - start >= most:
                    self.stopped_by = "max_time"
                    if state is not None:
                        self._write(identity, state)
                        state = None
                    self.descent.stop()
        except BaseException:  # an interrupt too: what has been learned is kept
            if state is not None:
                self._write(identity, state)
            raise
        self.descent.restore_best()
        self.settle()

    def _warn_crowded(self, part: float) -> None:
        """That other processes slow the steps down, if in such a part of the time threads had to wait for a core."""
        if part > CROWDED and self.descent.threads > 1 and self.plan.solver != "sparse":
            warn(
                f"other processes want the cores of this fit: in {part:.0%} of its time so far some thread waited for"
                f" one. Its {self.descent.threads} threads wait for each other, several times as long as their"
                " products take: torch.set_num_threads(1), or the environment variable OMP_NUM_THREADS=1, makes it"
                " faster",
            )

    def settle(self) -> None:
        """After the last step: let the code count afresh what it counts, set it to its target, turn columns back."""
        plan = self.plan
        if counts(plan.codec):  # a mean over batches of a net that has changed since
            observe(plan.codec, torch.from_numpy(plan.survey.sample()))
        if plan.recipe.aim:
            self._settle()
        plan.turn_back()

    def _say(self, epoch: Epoch) -> None:
        """Tell the dial how rows held out are explained after an epoch."""
        if self.plan.recipe.aim.fvu is not None:
            score = self.descent.evaluate(self._judged).score if epoch.score is None else epoch.score
            self.descent.dial.hear(1 - score)

    @cached_property
    def _judged(self) -> Tensor:
        """The rows that judge (M, D)."""
        return torch.from_numpy(self.plan.survey.x_judged).to(self.plan.codec.centre)

    def _settle(self) -> None:
        """Set the code to the target on the rows that judge, which are not fitted to; keep what was found."""
        plan, aim = self.plan, self.plan.recipe.aim
        x = self._judged
        found = settle(plan.codec, x, aim, plan.recipe.objective.loss)
        part = part_of(plan.codec.code_activation)
        objective = rounded(self.descent.dial.objective)
        plan.parts = replace(plan.parts, objective=objective, code_activation=part)
        plan.settings = replace(plan.settings, objective=repr(objective), code_activation=repr(part))
        noise = math.sqrt(found[1] * float((x - plan.codec.centre).square().nanmean()))
        if aim.missed(*found):
            advice = "fit more epochs or more rows"
            if aim.fvu is not None:
                advice += f", or more units than {plan.codec.n_units}"
            if math.isnan(found[1]):
                advice = "they do not vary, so there is nothing to explain"
            elif found[1] >= 1:
                advice = f"lower learning_rate_init, which was {plan.recipe.learning_rate:g}"
            warn(f"{aim} was not reached: L0 is {found[0]:.4g}, FVU {found[1]:.3g} on rows held out; {advice}")
        self.dialled = told(aim, found, objective, part, x.shape[1], noise)

    def more(self, rows: Array) -> None:
        """One epoch on rows (N, D) at the largest learning rate; the record is of a sample of all that have come."""
        self.plan.go_on_with(rows)
        terms, astray = self.descent.guarded(self.plan.rows(), constant_rate=True)
        self.sample.add(rows)
        self.n_rows = self.sample.count
        if anew := self.n_rows >= 2 * self._looked:  # so that it costs little, however many calls there are
            self._looked = self.n_rows
        self.plan.judge_by(self.sample.rows, anew=anew)
        self.history.append(self.descent._judge(terms, None, astray=astray))

    def _exact(self) -> Epoch:
        plan, codec, seen = self.plan, self.plan.codec, self.plan.survey
        W, V = solve(seen.spectrum, codec.n_units, plan.problem)
        with torch.no_grad():
            for net, matrix in ((codec.encoder, W), (codec.decoder, V)):
                net.last.weight.copy_(torch.from_numpy(np.ascontiguousarray(matrix)))
                net.bias.zero_()
        terms, held_out, score = self._expected(W, V, held_out=False), {}, None
        if len(plan.held_out):
            held_out = self._expected(W, V, held_out=True)
            score = share(self.column_errors(Nothing(), held_out=True).sum(), seen.variation)
        epoch = Epoch(1, terms, held_out, score, sum((held_out or terms).values()), True, True)
        self.history.append(epoch)
        return epoch

    def column_errors(self, corruption: Any, *, held_out: bool) -> Array:
        """Of a closed form, squared errors expected of each column (D,), over all rows or the held-out ones."""
        key = (repr(corruption), held_out)
        if key not in self._errors:
            nets, seen = (self.plan.codec.encoder, self.plan.codec.decoder), self.plan.survey
            W, V = (net.last.weight.detach().double().cpu().numpy() for net in nets)
            self._errors[key] = column_errors(W, V, corruption, seen.spectrum, seen.x_judged if held_out else None)
        return self._errors[key]

    def _expected(self, W: Array, V: Array, *, held_out: bool) -> dict[str, float]:
        """The objective of a closed form, expected over rows and corruption."""
        parts, problem = self.plan.parts, self.plan.problem
        error = float(self.column_errors(parts.corruption, held_out=held_out).mean())
        named = zip(parts.objective.names, parts.objective.summands, strict=True)
        return {name: c * (error if term.letter == "L" else penalty(term, W, V, problem)) for name, (c, term) in named}

    def _resume(self) -> dict[str, Any]:
        """The identity of this fit; the state in its checkpoint, if there is one, is taken up."""
        if self.checkpoint is None:
            return {}
        plan = self.plan
        identity = {
            "rows": _digest(plan.survey.rows),
            "settings": repr(replace(plan.settings, max_time=None, verbose=0)),
            "seed": plan.seed,
        }
        if self.found is not None:
            config, state = self.found
            for what, mine in identity.items():
                if config.get(what) != mine:
                    raise CheckpointError(
                        f"the checkpoint in {self.checkpoint} belongs to other {what}: give the same {what}, or"
                        " another folder"
                    )
            self.history = [Epoch(**epoch) for epoch in config["history"]]
            self.descent.load_state(state)
        return identity

    def _write(self, identity: dict[str, Any], state: dict[str, Tensor]) -> None:
        assert self.checkpoint is not None
        history = [epoch._asdict() for epoch in self.history]
        write_checkpoint(self.checkpoint, {**identity, "history": history}, state)


def _digest(rows: Array) -> str:
    """SHA-256 of the rows as given, and of their type."""
    digest = hashlib.sha256(f"{rows.dtype.str} {rows.shape}".encode())
    for _, block in blocks(rows):
        digest.update(np.ascontiguousarray(block).data)
    return digest.hexdigest()
