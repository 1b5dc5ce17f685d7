"""A finished training as the model it has made."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from msgspec.structs import replace

from retell.completion import filler, rows_to_ask
from retell.corruptions import Mask, Nothing
from retell.density import WIDE, Density, Tally, noise
from retell.likeness import joined, norms_of
from retell.losses import Poisson
from retell.metrics import explained_variance, share
from retell.model_file import Fitted, Model
from retell.notice import warn
from retell.plan import Plan
from retell.reader import Reader
from retell.rows.blocks import blocks, rows_a_block, spaced
from retell.seeds import HIDE, generator
from retell.solvers.exact import times
from retell.survey import enough
from retell.training import Training

__all__ = ["record"]

Array = npt.NDArray[Any]


class _Account(NamedTuple):
    """What rows say of a finished codec."""

    density: Density
    score: float
    """R² on the rows that judge."""
    train_score: float
    """On the rows trained on."""
    reconstruct: Callable[[Array], Array]
    """Scaled rows with holes to reconstructions."""


def record(training: Training, columns: list[str] | None) -> Model:
    """Settle everything that a fitted model knows about itself.

    Parameters
    ----------
    training : Training
        Run to its end.
    columns : list of str or None
        The columns' names.
    """
    plan, epochs, seen = training.plan, training.history, training.plan.survey
    linear = plan.solver == "exact" and plan.settings.inference == "encoder"
    account = _of_covariance(training) if linear else _of_rows(plan)
    history = {name: [e.terms[name] for e in epochs] for name in plan.parts.objective.names}
    history |= {f"held-out {name}": [e.held_out[name] for e in epochs] for name in history if epochs[0].held_out}
    fitted = Fitted(
        n_features=seen.rows.shape[1],
        columns=columns,
        n_components=plan.codec.n_units,
        encoder=plan.widths[0],
        decoder=plan.widths[1],
        constraint=repr(plan.parts.constraint),
        solver=plan.solver,
        dtype=str(plan.codec.centre.dtype).removeprefix("torch."),
        seed=plan.seed,
        n_iter=len(epochs),
        best_iter=training.best_iter,
        n_rows=training.n_rows,
        stopped_by=training.stopped_by,
        filler=_filler(plan, account),
        independent=account.density.diagonal,
        norms=norms_of(seen.x_judged, seen.scaling.centre),
        n_factors=seen.factors.loadings.shape[1],
        n_held_out=len(plan.held_out),
        n_left_out=training.left_out,
        dialled=training.dialled,
        best_loss=training.best_loss,
        score=account.score,
        train_score=account.train_score,
        pca_score=plan.pca_score(),
        loss_curve=[sum(e.terms.values()) for e in epochs],
        validation_scores=[e.score for e in epochs if e.score is not None],
        history=history,
    )
    _warn_far(fitted, plan)
    model = Model(plan.settings, fitted, plan.parts, plan.codec, seen.scaling, account.density, seen.factors)
    return model if training.before is None else _after(training.before, model)


def _warn_far(fitted: Fitted, plan: Plan) -> None:
    """That reconstructions that grow exponentially have grown too far."""
    loss = plan.parts.objective.loss
    if fitted.score < min(0.0, fitted.pca_score) and getattr(loss, "support", None) == Poisson.support:
        warn(
            f"reconstructions are farther from the rows than the means of the columns: R² is {fitted.score:.3g}, that"
            f" of PCA {fitted.pca_score:.3g}. Rows far larger than most are too much for {loss!r}: fit MSE() to"
            " np.log1p of the rows, leave such rows out by max_norm, or fit longer, by max_iter",
        )


def _after(before: Model, model: Model) -> Model:
    """What went on from another model, as one that has come from the rows of both."""
    was, now = before.fitted, model.fitted
    share = now.n_rows / (was.n_rows + now.n_rows)
    history = {
        name: [it for one in (was, now) for it in one.history.get(name, [math.nan] * one.n_iter)]
        for name in was.history | now.history
    }
    fitted = replace(
        now,
        n_iter=was.n_iter + now.n_iter,
        best_iter=was.n_iter + now.n_iter,
        n_rows=was.n_rows + now.n_rows,
        n_left_out=was.n_left_out + now.n_left_out,
        norms=joined(was.norms, now.norms, share),
        loss_curve=was.loss_curve + now.loss_curve,
        validation_scores=was.validation_scores + now.validation_scores,
        history=history,
    )
    earlier, density = before.density, model.density
    if earlier is not None and density is not None:
        density = earlier.joined(density, share)
    return replace(model, fitted=fitted, density=density)


def _filler(plan: Plan, account: _Account) -> str:
    """Who completes rows. Linear maps that never missed a cell know no more than as many factors do."""
    seen, n_factors = plan.survey, plan.survey.factors.loadings.shape[1]
    if plan.solver == "exact" and not isinstance(plan.parts.corruption, Mask) and plan.codec.n_units <= n_factors:
        return "factors"
    x, centre = seen.scaling.to(seen.kept[: rows_to_ask(seen.kept.shape[1])]), seen.scaling.centre
    draw = generator(plan.seed, HIDE)
    return filler(x - centre, seen.factors, lambda rows: account.reconstruct(rows + centre) - centre, draw)


def _of_covariance(training: Training) -> _Account:
    """Where the codec is linear and centred: all rows are their covariance."""
    plan, codec, spectrum = training.plan, training.plan.codec, training.plan.survey.spectrum
    W, V = (net.last.weight.detach().double().cpu().numpy() for net in (codec.encoder, codec.decoder))
    covariance = times(W, spectrum.times(W.T, spanned=not isinstance(plan.parts.corruption, Mask)))
    codec.rms.copy_(torch.from_numpy(np.sqrt(np.maximum(np.diag(covariance), 0.0))))
    errors = training.column_errors(Nothing(), held_out=False)
    score = train_score = share(errors.sum(), spectrum.variances.sum())
    if len(plan.held_out):
        errors = training.column_errors(Nothing(), held_out=True)
        score = share(errors.sum(), plan.survey.variation)
    density = Density.of(errors, np.zeros(len(W)), covariance)
    return _Account(density, score, train_score, lambda rows: times(times(np.nan_to_num(rows), W.T), V.T))


def _of_rows(plan: Plan) -> _Account:
    """The rows that judge, and evenly spaced ones, through the codec."""
    codec, seen, how = plan.codec, plan.survey, plan.settings.inference
    some = np.union1d(spaced(range(len(seen.rows)), enough(seen.rows.shape[1])), seen.judged)
    x = seen.some(some)
    reader = Reader(codec, plan.parts.objective, plan.parts.constraint)
    x_hat, codes = _through(reader, x, "encoder")
    codec.rms.copy_(torch.from_numpy(np.sqrt(codes.mean_square + torch.finfo(codec.rms.dtype).eps)))
    if how != "encoder":  # such codes depend on what counts as one
        reader = Reader(codec, plan.parts.objective, plan.parts.constraint)
        x_hat, codes = _through(reader, x, how)
    judged, held_out = (np.isin(some, those, assume_unique=True) for those in (seen.judged, plan.held_out))
    return _Account(
        Density.of(noise(x[judged] - x_hat[judged]), codes.mean, codes.covariance),
        explained_variance(x[judged], x_hat[judged]),
        explained_variance(x[~held_out], x_hat[~held_out]),
        lambda rows: reader.reconstruct(rows, how),
    )


def _through(reader: Reader, x: Array, how: str) -> tuple[Array, Tally]:
    """Reconstructions of scaled rows, and what is to be known of their codes; wide ones a few at a time."""
    K = reader.codec.n_units
    x_hat, codes = np.empty(x.shape), Tally(K)
    for i, some in blocks(x, len(x) if K <= WIDE else rows_a_block(K)):
        h = reader.encode(some, how)
        codes.add(h)
        x_hat[i : i + len(some)] = reader.decode(h)
    return x_hat, codes
