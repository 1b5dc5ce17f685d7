"""From settings and rows to everything a fit needs, every "auto" resolved."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from retell import auto
from retell.batches import how_many
from retell.codec import Codec
from retell.constraints import NonNegative
from retell.descend import Recipe
from retell.dials import Aim, aimed, at_first, check, many, settle
from retell.factors import Factors
from retell.known import FORGETFUL, Known
from retell.networks import mirror, mlp
from retell.objective import Objective
from retell.rows.blocks import CHUNK, pooled, spaced
from retell.scaled import Rows
from retell.scaling import Scaling
from retell.seeds import SPLIT, START, generator, permutation
from retell.settings import Settings
from retell.solvers import dense, sparse
from retell.solvers.codes import check_map
from retell.solvers.exact import Problem, why_not
from retell.spread import quiet
from retell.start import counts, fill_random, fill_start, observe
from retell.survey import Survey, asked, enough, survey
from retell.turning import AS_THEY_ARE, Turning

__all__ = ["Parts", "Plan", "build_codec", "make_plan", "plan_on"]

Array = npt.NDArray[Any]
Widths = tuple[tuple[int, ...], tuple[int, ...]]

MOST_AXES = 32  # onto which columns are turned: more bring little
RUN = CHUNK // 16  # bytes of rows that are held out together, where a file is read in chunks


@dataclass(frozen=True)
class Parts:
    """The letters of the equation, as objects; `constraint` may still be "auto"."""

    objective: Objective
    corruption: Any
    code_activation: Any
    constraint: Any


@dataclass
class Plan:
    """A fit, before its first step."""

    settings: Settings
    parts: Parts
    seed: int
    survey: Survey
    """The rows, and what a look at them has found."""
    train: Array
    held_out: Array
    """Row numbers; `held_out` is empty without early stopping."""
    widths: Widths
    """Hidden widths of encoder and decoder."""
    codec: Codec
    solver: str
    reason: str
    """Why this solver."""
    recipe: Recipe
    rounded: bool
    """Whether the products of nonlinear layers are in bfloat16."""

    @property
    def problem(self) -> Problem:
        return _problem(self.parts, self.settings, self.widths, self.survey.holes)

    def go_on_with(self, rows: Array) -> None:
        """Other rows (N, D), none of them held out; what the first ones have settled stays."""
        self.train, self.survey = np.arange(len(rows)), replace(self.survey, rows=rows)

    def judge_by(self, rows: Array, *, anew: bool) -> None:
        """Let rows (M, D) speak for all that have come; `anew`, PCA is of them too."""
        seen, judged = self.survey, np.arange(len(rows))
        if anew:
            settled = seen.scaling, seen.factors
            self.survey = survey(rows, self.settings, self.parts, judged, self.seed, settled=settled)
        else:
            self.survey = replace(seen, rows=rows, judged=judged, kept=rows, holes=bool(np.isnan(rows).any()))

    def pca_score(self) -> float:
        """R² of PCA at the same K, fitted to all rows, on the rows that judge."""
        return self.survey.pca_score(self.codec.n_units)

    def rows(self, numbers: Array | None = None) -> Any:
        """Rows by number, all by default: scaled when they are taken, or on the codec's device."""
        seen = self.survey
        rows = Rows(seen.rows, seen.scaling, self.codec.centre, numbers, holed=seen.holes, turning=seen.turning)
        return rows if rows.device.type == "cpu" or rows.pooled else rows[:]

    def turn(self, known: Known = FORGETFUL) -> None:
        """Turn the columns onto the rows' first axes until `turn_back`, for a large dictionary that is the same there.

        Parameters
        ----------
        known : Known, optional
            What other plans for these very rows have found out.
        """
        seen, n = self.survey, len(self.survey.rows)
        is_large = auto.shared_out(self.codec, self.parts.objective, self.settings.start, n)
        written = not sparse.why_not(self.codec, self.recipe, holes=seen.holes)  # by terms of lengths and codes alone
        if is_large and written and not isinstance(self.parts.constraint, NonNegative):
            axes = seen.spectrum.axes[:, :MOST_AXES]
            turned = lambda: replace(seen, turning=Turning.onto(axes))  # noqa: E731
            self.survey = known.once(("turned", id(seen)), turned)
            self._turn(self.survey.turning)

    def turn_back(self) -> None:
        """Let codec and survey be of the columns as they are."""
        turning, self.survey = self.survey.turning, replace(self.survey, turning=AS_THEY_ARE)
        self._turn(turning.back)

    @torch.no_grad()
    def _turn(self, turning: Turning) -> None:
        encoder, decoder = self.codec.encoder.last, self.codec.decoder.last
        if turning:
            for value in (encoder.weight, decoder.weight.T, decoder.bias[None], self.codec.centre[None]):  # type: ignore[index]
                turning.turn_(value)


def make_plan(
    settings: Settings, parts: Parts, rows: Array, seed: int, names: Any = None, *, whole: bool = True,
    known: Known = FORGETFUL,
) -> Plan:  # fmt: skip
    """Look at the rows, resolve every "auto", build the codec and fill its first θ.

    Parameters
    ----------
    settings : Settings
    parts : Parts
    rows : ndarray of shape (N, D)
        NaN where unseen.
    seed : int
    names : sequence of str, optional
        The columns' names, for messages.
    whole : bool, default=True
        Whether these are all rows: more can't come to a closed form.
    known : Known, optional
        What other plans for these very rows have found out.

    Raises
    ------
    ValueError
        If rows are infinite or outside the loss's support, or the settings can't be combined.
    """
    train, held_out, seen = _look(settings, parts, rows, seed, names, known)
    given, (n, D) = settings.n_components, rows.shape
    K = auto.n_components(given, seen.spectrum.values if isinstance(given, float) else np.zeros(D))
    widths = _widths(settings, parts, n, D, K)
    parts = replace(_settled(parts, settings, widths), code_activation=aimed(parts.code_activation, _aim(settings), K))
    why = why_not(_problem(parts, settings, widths, seen.holes)) or ("" if whole else "more rows are to come")
    solver = "exact" if not why and settings.start != "random" else "dense"
    if settings.solver == "exact" and why:
        raise ValueError(f"solver='exact' has no closed form here: {why}; use solver='auto' or 'dense'")
    solver = solver if settings.solver == "auto" else settings.solver
    codec = build_codec(settings, parts, D, K, widths, auto.dtype(settings.precision, solver))
    if _aim(settings):
        check(_aim(settings), codec, parts.objective, settings.inference)
    if settings.inference == "map":
        check_map(parts.objective, codec.code_activation)
    codec.centre = torch.from_numpy(seen.scaling.centre).to(codec.centre.dtype)
    if solver != "exact":  # which writes every weight itself
        with quiet(enough(D) * max(layer.weight.numel() for layer in codec.affines())):
            _fill(codec, settings, parts, seen, seed)
    codec.n_rows.fill_(len(train))
    return _plan(settings, parts, seed, seen, (train, held_out), widths, codec, solver, why)


def _look(
    settings: Settings, parts: Parts, rows: Array, seed: int, names: Any, known: Known
) -> tuple[Array, Array, Survey]:
    """Which rows are trained on, which are held out, and what they say."""
    aim, these = bool(_aim(settings)), (id(rows), seed)
    how = settings.early_stopping, settings.validation_fraction
    train, held_out = known.once(("split", these, aim, how), lambda: _split(settings, rows, seed))
    seen = known.once(
        ("survey", these, aim, how, asked(settings, parts, rows)),
        lambda: survey(rows, settings, parts, _judges(held_out, rows), seed, names, known=known),
    )
    return train, held_out, seen


def plan_on(settings: Settings, parts: Parts, rows: Array, seed: int, codec: Codec, scaling: Scaling,
            factors: Factors, widths: Widths) -> Plan:  # fmt: skip
    """Go on with what an earlier fit has settled, on new rows (N, D), none of them held out."""
    parts = _settled(parts, settings, widths)
    parts.objective.check(codec, parts.corruption)
    train = np.arange(len(rows))
    seen = survey(rows, settings, parts, _judges(train[:0], rows), seed, settled=(scaling, factors))
    return _plan(settings, parts, seed, seen, (train, train[:0]), widths, codec, settings.solver, "")


def _plan(
    settings: Settings, parts: Parts, seed: int, seen: Survey, split: tuple[Array, Array], widths: Widths,
    codec: Codec, solver: str, why: str,
) -> Plan:  # fmt: skip
    """The plan of a codec that is filled."""
    codec = codec.to(auto.device(settings.device))
    recipe = _recipe(settings, parts, len(split[0]), codec)
    solver, why = _written(settings, codec, recipe, solver, why, holes=seen.holes)
    return Plan(
        settings=settings,
        parts=parts,
        seed=seed,
        survey=seen,
        train=split[0],
        held_out=split[1],
        widths=widths,
        codec=codec,
        solver=solver,
        reason=why or "there is a closed form",
        recipe=recipe,
        rounded=_rounded(settings, codec, recipe, solver),
    )


def _written(
    settings: Settings, codec: Codec, recipe: Recipe, solver: str, why: str, *, holes: bool
) -> tuple[str, str]:
    """The solver, one whose gradient is written out if there is one for this problem, and why."""
    if solver == "exact" or settings.solver == "descend":
        return solver, why
    lacks = {"sparse": sparse.why_not(codec, recipe, holes=holes), "dense": dense.why_not(codec, recipe)}
    if settings.solver in lacks and (unwritten := lacks[settings.solver]):
        raise ValueError(f"solver={settings.solver!r} can't be used here: {unwritten}; use solver='auto' or 'descend'")
    if settings.solver in lacks:
        return settings.solver, why
    if not lacks["sparse"] and auto.few_active(codec, recipe.batch_size):
        return "sparse", f"few of the {codec.n_units} units of a row are active"
    return ("descend", lacks["dense"]) if lacks["dense"] else ("dense", why)


def _fill(codec: Codec, settings: Settings, parts: Parts, seen: Survey, seed: int) -> None:
    """The first θ."""
    from_rows = auto.shared_out(codec, parts.objective, settings.start, len(seen.rows))
    loss = parts.objective.loss
    sample = torch.from_numpy(seen.sample(2 * codec.n_units if from_rows else 0)).to(codec.centre)
    if settings.start == "random":
        fill_random(codec, loss, generator(seed, START))
    else:
        n_axes = 0 if auto.far(codec, settings.start, parts.constraint) else codec.n_units
        axes = torch.from_numpy(seen.spectrum.axes[:, :n_axes].copy())
        fill_start(codec, sample, axes, loss, generator(seed, START), from_rows=from_rows)
    if counts(codec):
        observe(codec, sample)
    if _aim(settings) and not hasattr(parts.code_activation, "k"):
        first = float(many(codec)) if from_rows and parts.code_activation.sparse else 0.0
        settle(codec, sample, Aim(max(first, at_first(codec, _aim(settings)))), loss)


def _judges(held_out: Array, rows: Array) -> Array:
    """Numbers of the rows that judge: held out, or of all where none are."""
    return spaced(held_out if len(held_out) else range(len(rows)), enough(rows.shape[1]))


def _settled(parts: Parts, settings: Settings, widths: Widths) -> Parts:
    """The parts with their constraint."""
    constraint = parts.constraint
    if constraint == "auto":
        deep = len(widths[1]) > 0
        constraint = auto.constraint(parts.objective, parts.code_activation, deep=deep, tied=settings.tied)
    return Parts(parts.objective, parts.corruption, parts.code_activation, constraint)


def build_codec(settings: Settings, parts: Parts, D: int, K: int, widths: Widths, dtype: torch.dtype) -> Codec:
    """The network of D columns and K units, its weights still empty, its centre zero.

    Raises
    ------
    ValueError
        If the parts can't work with each other.
    """
    _ = parts.objective.loss  # there is one, or a sentence
    inner, outer = widths
    outputs = getattr(parts.code_activation, "outputs", 1)
    if settings.tied and outputs > 1:
        raise ValueError(
            f"tied=True shares the encoder's matrix with the decoder, but {parts.code_activation!r} takes {outputs}"
            " numbers for each unit: use tied=False"
        )
    encoder = mlp([D, *inner, outputs * K], settings.activation, linear_path=settings.linear_path)
    if settings.tied:
        decoder = mirror(encoder, tied=True)
    else:
        decoder = mlp([K, *outer, D], settings.activation, linear_path=settings.linear_path)
    learns_scale = any(getattr(term, "learned", False) for term in parts.objective.terms)
    squash = parts.code_activation.bind(K)
    codec = Codec(encoder, squash, decoder, torch.zeros(D), learns_scale=learns_scale).to(dtype).train(False)
    parts.objective.check(codec, parts.corruption)
    if codec.dictionary() is None and getattr(parts.constraint, "on_dictionary", True):
        raise ValueError(
            f"constraint={parts.constraint!r} acts on the matrix of a linear decoder or of the linear path, and this"
            " decoder has neither: use linear_path=True or decoder_hidden_layer_sizes=()"
        )
    return codec


def _widths(settings: Settings, parts: Parts, n: int, D: int, K: int) -> Widths:
    inner = settings.hidden_layer_sizes
    if inner == "auto":
        linear = K >= D or parts.code_activation.sparse or settings.solver == "exact" or bool(_aim(settings))
        inner = () if linear else auto.hidden_layer_sizes(n, D)
    assert isinstance(inner, tuple)
    outer = settings.decoder_hidden_layer_sizes
    outer = inner[::-1] if isinstance(outer, str) else outer
    if settings.tied and outer != inner[::-1]:
        raise ValueError(
            f"tied=True needs a decoder that mirrors the encoder {inner}, got decoder_hidden_layer_sizes={outer}"
        )
    return inner, outer


def _problem(parts: Parts, settings: Settings, widths: Any, holes: bool) -> Problem:
    return Problem(
        parts.objective,
        parts.corruption,
        parts.code_activation,
        parts.constraint,
        settings.tied,
        not any(widths),
        holes,
    )


def _split(settings: Settings, rows: Array, seed: int) -> tuple[Array, Array]:
    """Row numbers to train on and to hold out, each in the rows' own order.

    Single rows are held out; of a file that is read in chunks, runs of some, as a disk gives them.
    """
    n = len(rows)
    if not (settings.early_stopping or _aim(settings)):
        return np.arange(n), np.arange(0)
    run = max(1, RUN * n // rows.nbytes) if pooled(rows) else 1
    some = auto.held_out_rows(n, settings.validation_fraction)
    if not settings.early_stopping:  # a target is reached on rows that were not fitted to; those that judge will do
        some = min(some, enough(rows.shape[1]))
    out = -(-some // run)
    runs = permutation(-(-n // run), generator(seed, SPLIT)).numpy()[:out]
    held_out = np.zeros(n, bool)
    for i in range(run):
        held_out[np.minimum(runs * run + i, n - 1)] = True
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def _rounded(settings: Settings, codec: Codec, recipe: Recipe, solver: str) -> bool:
    """Whether products are in bfloat16."""
    written = solver in ("dense", "sparse")
    if settings.precision == "bfloat16" and not written:
        raise ValueError(
            f"precision='bfloat16' rounds the products of solver='dense' and 'sparse', and the solver here is"
            f" {solver!r}: use precision='auto'"
        )
    repays = settings.precision == "auto" and written and auto.rounded(codec, recipe.batch_size)
    return settings.precision == "bfloat16" or repays


def _aim(settings: Settings) -> Aim:
    return Aim(settings.target_l0, settings.target_fvu)


def _recipe(settings: Settings, parts: Parts, n: int, codec: Codec) -> Recipe:
    given = settings.batch_size if isinstance(settings.batch_size, int) else None
    known = settings.target_fvu is None and (settings.target_l0 is not None or hasattr(parts.code_activation, "k"))
    way = auto.way(codec, parts.objective, parts.corruption, parts.constraint, settings.start, n, given, known=known)
    rate, most, decay = settings.learning_rate_init, settings.max_iter, settings.weight_decay
    far = auto.far(codec, settings.start, parts.constraint)
    most = way.epochs(n, way.batch) if isinstance(most, str) else most
    return Recipe(
        objective=parts.objective,
        corruption=parts.corruption,
        constraint=parts.constraint,
        batch_size=way.batch,
        learning_rate=way.rate if isinstance(rate, str) else rate,
        max_iter=most,
        decay=auto.WEIGHT_DECAY if isinstance(decay, str) else decay,
        n_iter_no_change=settings.n_iter_no_change,
        tol=settings.tol,
        aim=_aim(settings),
        sure=0.0 if far or not parts.objective.loss_is_of_rows else auto.SURE,
        betas=way.betas,
        late=way.late,
        warmup=way.warmup,
        bias_rate=way.bias_rate(most * how_many(n, way.batch)),
        revive=way.revive,
        first=way.first,
    )
