"""A finished training as the model it has made."""

from __future__ import annotations

import numpy as np
import torch

from retell.completion import filler
from retell.constraints import UnitRMS
from retell.density import Density
from retell.metrics import explained_variance
from retell.model_file import Fitted, Model
from retell.reader import Reader
from retell.seeds import HIDE, generator
from retell.training import Training

__all__ = ["record"]


def record(training: Training, columns: list[str] | None) -> Model:
    """Settle everything that a fitted model knows about itself.

    Parameters
    ----------
    training : Training
        Run to its end.
    columns : list of str or None
        The columns' names.
    """
    plan, epochs = training.plan, training.history
    reader = Reader(plan.codec, plan.parts.objective, plan.parts.constraint)
    plan.codec.rms.copy_(torch.as_tensor(UnitRMS().unit(torch.from_numpy(reader.encode(plan.x)))))
    reader = Reader(plan.codec, plan.parts.objective, plan.parts.constraint)
    how = plan.settings.inference
    h = reader.encode(plan.x, how)
    x_hat = reader.decode(h)
    judged = plan.held_out if len(plan.held_out) else np.arange(len(plan.x))
    centre = plan.scaling.centre
    fill = filler(
        plan.x[judged] - centre, plan.factors, lambda rows: reader.reconstruct(rows + centre, how) - centre,
        generator(plan.seed, HIDE),
    )  # fmt: skip
    history = {name: [e.terms[name] for e in epochs] for name in plan.parts.objective.names}
    history |= {f"held-out {name}": [e.held_out[name] for e in epochs] for name in history if epochs[0].held_out}
    fitted = Fitted(
        n_features=plan.x.shape[1],
        columns=columns,
        n_components=plan.codec.n_units,
        encoder=plan.widths[0],
        decoder=plan.widths[1],
        constraint=repr(plan.parts.constraint),
        solver=plan.solver,
        dtype=str(plan.codec.centre.dtype).removeprefix("torch."),
        seed=plan.seed,
        n_iter=len(epochs),
        stopped_by=training.stopped_by,
        filler=fill,
        n_factors=plan.factors.loadings.shape[1],
        best_loss=training.descent.best_loss,
        score=explained_variance(plan.x[judged], x_hat[judged]),
        train_score=explained_variance(plan.x[plan.train], x_hat[plan.train]),
        pca_score=plan.pca_score(judged),
        loss_curve=[sum(e.terms.values()) for e in epochs],
        validation_scores=[e.score for e in epochs if e.score is not None],
        history=history,
    )
    density = Density.fit(plan.x[judged] - x_hat[judged], h)
    return Model(plan.settings, fitted, plan.parts, plan.codec, plan.scaling, density, plan.factors)
