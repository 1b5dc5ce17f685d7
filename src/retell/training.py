"""A plan carried out: the solver's epochs, the record of them, checkpoints and the clock."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Generator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from retell.descend import Descent, Epoch
from retell.plan import Plan
from retell.solvers.exact import solve
from retell.store import CheckpointError, read_checkpoint, write_checkpoint

__all__ = ["Training", "seed_in"]

Array = npt.NDArray[Any]

EVERY = 5.0  # seconds between checkpoints


class Training:
    """The fit of a plan.

    Parameters
    ----------
    plan : Plan
    checkpoint : path, optional
        Folder for the state of the fit; an older state of the same fit is taken up.

    Attributes
    ----------
    history : list of Epoch
    stopped_by : {"", "max_time"}
    """

    def __init__(self, plan: Plan, checkpoint: str | os.PathLike[str] | None = None) -> None:
        self.plan = plan
        self.checkpoint = checkpoint
        self.descent = Descent(plan.codec, plan.recipe, plan.seed)
        self.history: list[Epoch] = []
        self.stopped_by = ""

    def epochs(self) -> Generator[Epoch, None, None]:
        """Run to the end; the codec then holds the best epoch."""
        if self.plan.solver == "exact":
            yield self._exact()
            return
        plan, start = self.plan, time.monotonic()
        x, held_out = plan.tensor(plan.x[plan.train]), plan.tensor(plan.x[plan.held_out])
        identity = self._resume()
        state, written = None, time.monotonic()
        try:
            for epoch in self.descent.epochs(x, held_out if len(held_out) else None):
                self.history.append(epoch)
                if self.checkpoint is not None:
                    state = self.descent.state()
                    if time.monotonic() - written >= EVERY:
                        self._write(identity, state)
                        state, written = None, time.monotonic()
                yield epoch
                if plan.settings.max_time is not None and time.monotonic() - start >= plan.settings.max_time:
                    self.stopped_by = "max_time"
                    break
        except BaseException:  # an interrupt too: what has been learned is kept
            if state is not None:
                self._write(identity, state)
            raise
        self.descent.restore_best()

    def more(self, x: Array) -> None:
        """One epoch on scaled rows at the largest learning rate."""
        terms = self.descent.one_epoch(self.plan.tensor(x), constant_rate=True)
        loss = sum(terms.values())
        self.history.append(Epoch(self.descent.epoch, terms, {}, None, loss, True, False))
        self.descent.best_loss = min(loss, self.descent.best_loss)

    def _exact(self) -> Epoch:
        plan, codec = self.plan, self.plan.codec
        W, V = solve(plan.spectrum, codec.n_units, plan.problem)
        with torch.no_grad():
            for net, matrix in ((codec.encoder, W), (codec.decoder, V)):
                net.last.weight.copy_(torch.from_numpy(np.ascontiguousarray(matrix)))
                net.last.bias.zero_()  # type: ignore[union-attr]  # the last map has one
        rows = plan.tensor(plan.x)
        terms = self.descent.evaluate(rows).terms
        judged = self.descent.evaluate(rows[plan.held_out]) if len(plan.held_out) else None
        held_out, score = ({}, None) if judged is None else (judged.terms, judged.score)
        self.descent.best_loss = sum((held_out or terms).values())
        epoch = Epoch(1, terms, held_out, score, self.descent.best_loss, True, True)
        self.history.append(epoch)
        return epoch

    def _resume(self) -> dict[str, Any]:
        """The identity of this fit; the state in its checkpoint, if there is one, is taken up."""
        if self.checkpoint is None:
            return {}
        plan = self.plan
        identity = {
            "rows": hashlib.sha256(np.ascontiguousarray(plan.x).tobytes()).hexdigest(),
            "settings": repr(replace(plan.settings, max_time=None, verbose=0)),
            "seed": plan.seed,
        }
        found = read_checkpoint(self.checkpoint)
        if found is not None:
            config, state = found
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


def seed_in(checkpoint: str | os.PathLike[str] | None) -> int | None:
    """The seed of the fit whose state lies in a folder, or None."""
    found = None if checkpoint is None else read_checkpoint(checkpoint)
    return None if found is None else int(found[0]["seed"])
