"""The face that data sees: scikit-learn's contract over the equation."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from copy import copy
from dataclasses import asdict, replace
from functools import partial
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
from msgspec.structs import replace as replace_struct
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import assert_all_finite, check_array, check_is_fitted, validate_data

from retell import auto, model_file
from retell.arrays import as_numpy
from retell.csr import as_csr
from retell.density import Density
from retell.descend import Epoch
from retell.features import Features, features_of
from retell.grammar import read_parts
from retell.known import FORGETFUL, Known
from retell.likeness import warn_unlike
from retell.metrics import Explained
from retell.model_file import Model
from retell.parts import Part
from retell.plan import Parts, Plan, make_plan, plan_on
from retell.reader import Check, Reader
from retell.record import record
from retell.rows.arrays import check_finite, check_kinds, check_order, check_support, column_words
from retell.rows.blocks import POOL, blocks, release
from retell.rows.codes import read_codes
from retell.rows.files import read_rows
from retell.rows.massive import Limit
from retell.rows.shards import Shards
from retell.rows.stream import arrays, beginning, named
from retell.seeds import seed_of
from retell.settings import Settings, as_settings
from retell.spread import calm
from retell.store import read_checkpoint
from retell.streaming import Streaming
from retell.surprise import Surprise, surprise_of
from retell.training import Training

__all__ = ["Autoencoder", "LogJoint", "first_rows", "load"]

Array = npt.NDArray[Any]

SHAPING = ("n_components", "hidden_layer_sizes", "decoder_hidden_layer_sizes", "activation", "code_activation",
           "linear_path", "tied", "scale", "precision")  # fmt: skip  # that stay as they are while a model goes on


class LogJoint(NamedTuple):
    """log p(x, h) per row and its parts, in nats.

    Parameters
    ----------
    x_given_h, h : ndarray of shape (N,)
        log p(x | h) and log p(h).
    """

    x_given_h: Array
    h: Array

    @property
    def total(self) -> Array:
        """log p(x, h) (N,)."""
        return self.x_given_h + self.h


class Autoencoder(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Minimise E[L(x, g(f(C(x))))] + Σ λᵢ Ωᵢ over the weights of encoder f and decoder g.

    NaN is an unseen cell everywhere: the loss counts seen cells only, and no method returns NaN. The
    objective and all its coefficients, noise, constraints, `score` and every reported loss live in the
    scaled space; `transform` takes and `inverse_transform`, `reconstruct`, `mean_` and `components_` give
    the rows' own units. Where 32 rows or more given to `transform`, `reconstruct` or `score` are mostly far outside of
    what was fitted, as when they come in other units, a warning says so.

    Parameters
    ----------
    n_components : int, float, "auto" or None, default="auto"
        Code units K: a number; a share in (0, 1) of the variance that PCA would keep; "auto" is
        max(1, min(32, D // 2)); None is D.
    hidden_layer_sizes : tuple of int or "auto", default="auto"
        Widths between input and code. () is the linear model. "auto" is () where K >= D, the code is sparse or has
        a target, or `solver` is "exact", else (H, H // 2) with H = 4 D, at most 256 and a sixteenth of the rows, at
        least 16.
    decoder_hidden_layer_sizes : tuple of int or "mirror", default="mirror"
        Widths between code and output.
    activation : {"relu", "gelu", "silu", "tanh", "sigmoid", "identity"}, default="gelu"
        Activation of the hidden layers.
    code_activation : str or Part, default="Identity()"
        σ, as in ``"TopK(8)"``. In a large sparse dictionary (see `batch_size`) BatchTopK, and JumpReLU with
        `target_l0`, learn with D / 8 units a row at first, at most K / 16, which fall to their own number in the first
        nine tenths of the steps, as do with `target_l0` those of ReLU with L1, from D / 2, at most K / 2, until 250
        steps are left at least. BatchTopK is judged after each epoch by the units that it has in the end; epochs of
        JumpReLU can't be compared, and the last counts as the best.
    target_l0 : float or None, default=None
        Active units of a row, on average, for a linear encoder and decoder. BatchTopK takes it for its k, rounded, TopK
        the whole number from there on. With JumpReLU and ReLU the coefficients of L0 and L1 are turned after every
        batch; L1's begins, with an MSE, where it cuts codes off as the first biases do, else as given. JumpReLU's
        thresholds take one factor before every batch; they start where they leave so many units active, as ReLU's
        biases do, and learn how to differ in the last tenth of the steps, so that the coefficient hardly matters. At
        the end the thresholds or biases are set so that rows that were held out have the target: `validation_fraction`
        of them, but without early stopping no more than some 2,000. TopK is given a level in their place, as in
        ``TopK(3, least=0.5)``, where k is more than the target. ReLU's codes, which L1 makes too short, take one factor
        by least squares, unless the loss is another than MSE or the matrix is `tied`. What was found is in `objective_`
        and `dialled_`; the saved model has it in place of what was given. While something is turned, the last epoch is
        the best.
    target_fvu : float or None, default=None
        The fraction of variance unexplained, in (0, 1): k, or the coefficient, is found for it. k starts as given.
        What batches say of it is corrected after each epoch by rows that are held out.
    linear_path : bool, default=True
        f(x) = W x + mlp(x) and the same for g where there are hidden layers; False is the plain net.
    tied : bool, default=False
        The decoder's matrices are the encoder's, transposed.
    objective : str, Term or Objective, default="MSE()"
        A sum with one loss, as in ``"MSE() + 0.001 * L1()"``.
    corruption : str or Part, default="Nothing()"
        C, applied while training, as in ``"Mask(0.3)"``.
    constraint : str, Part or "auto", default="auto"
        Π. "auto": with L1, StudentT, Contractive, a prior on the code or a sparse code, UnitNorm on a linear
        decoder and UnitRMS with a deep one, unless weights are tied; else Free.
    scale : {"auto", "standard"} or None, default="auto"
        None centres columns; "standard" also divides each by its standard deviation; "auto" divides all by
        one factor where spreads are alike, each by its own elsewhere. Losses on a bounded support leave the
        rows as they are.
    max_norm : float or None, default=None
        Rows that are further from the medians of the columns than so many times the median of these distances, in the
        rows' own units, are not fitted to: they count for no scaling, start, step, judgement or density. Above 1; 10
        leaves out the massive activations of language models' first tokens, 10 to 100 times as long as others, which
        outweigh them in squares. `n_left_out_` says how many they were. All other methods take them as any row.
    solver : {"auto", "exact", "sparse", "dense", "descend"}, default="auto"
        "exact" is the closed form, "descend" the reference loop with autograd's gradients, "dense" the same loop
        with gradients that are written out, several times faster on small nets, "sparse" the same by the active
        pairs of row and unit alone, at the cost of about one product of a wide linear encoder: for TopK, BatchTopK,
        JumpReLU and ReLU codes. "auto" is the first of exact, sparse (where the rows of a batch times K times D are
        2**26 or more, and k at most K / 16), dense and descend that can be had.
    batch_size : int or "auto", default="auto"
        Rows a step. "auto": where nothing but reconstruction is asked of nonlinear paths beside linear ones, which
        start at PCA's, the way is short: about 4 √N rows, or N / 48 if that is more, at most N / 4 and 4,096; else
        N / 16, at most 64, or 4,096 where a large sparse dictionary (N K D of 2**33 or more, shallow nets) is shared
        out among many rows.
    learning_rate_init : float or "auto", default="auto"
        The largest learning rate of the schedule. "auto" falls with the columns where the way is short and they are
        more than 384; for large sparse dictionaries it falls with √K and grows with the square root of the batch; their
        biases are raised while units are idle for 8,500 rows.
    weight_decay : float or "auto", default="auto"
        Decoupled decay (AdamW) of the nonlinear paths beside linear ones, per unit of learning rate: it pulls
        the fit back to the linear model, so that corrections must earn their place. "auto" is 0.4. Nets
        without a linear path are not decayed: that is what L2 is for.
    max_iter : int or "auto", default="auto"
        Most epochs. "auto": enough for 1,500 steps, or 120 on a short way, from 10 to 60; enough for 4,000, from 30
        to 400, where the start is far off (a random one, a sparse code, K > D); enough for 500, from 10 to 400, for
        large sparse dictionaries. More give lower errors, slowly.
    max_time : float or None, default=None
        Most seconds, looked at after each step, of which there is one at least: the epoch then ends there. The only
        setting that reads a clock; the model records it.
    early_stopping : bool, default=True
        Hold out `validation_fraction` of the rows; when the objective on them has not improved, by `tol`
        relative, for `n_iter_no_change` epochs, anneal the learning rate and stop; keep the best epoch if the
        improvement over the start, row by row, is more than three standard errors, else keep the start,
        which is PCA of all rows. A fit is thus not made worse than its start by chance. False trains on every
        row for all of `max_iter` epochs. Either way an epoch after which less than half of what was explained at best
        is left, of held-out rows or of a few others, is taken back, and the learning rate halved.
    validation_fraction : float, default=0.1
        At least 40 rows are held out, or a quarter of the rows if there are fewer than 160; none where that is one row.
    n_iter_no_change : int, default=10
    tol : float, default=1e-4
    device : str, default="auto"
        A torch device; "auto" is a GPU where there is one.
    precision : {"auto", "bfloat16", "float32", "float64"}, default="auto"
        "auto" is float64 for closed forms and float32 otherwise; where the net is large enough and the processor
        has them, the dense solver's products of nonlinear layers are then in bfloat16, while weights, moments,
        sums and the linear path stay float32. "bfloat16" asks for such products wherever they are possible. The
        covariance of many float32 rows in memory is summed in float64 from float32 products if its leading
        eigenvalues then have six digits, else, and always with "float64" or from a file, from float64 products.
    random_state : int, RandomState or None, default=None
        The same int gives the same bits, on one machine with one version and number of threads: other numbers of
        threads add up in another order, and training makes more of the last digit. No global generator is touched.
    verbose : int, default=0
        1 tells on standard error which solver and why, and every epoch.
    start : {"auto", "random"}, default="auto"
        The first weights: from the data (PCA), or random.
    inference : {"encoder", "map"}, default="encoder"
        Whose codes `transform` and all that builds on it give: the encoder's, or for each row the code that
        minimises the objective, the decoder fixed (the posterior mode, where the objective is a density). The
        fit itself is the same. A missing cell of a row then counts as no evidence: the penalty weighs more. May be
        changed on a fitted model, whose `density_` stays that of the fit.

    Attributes
    ----------
    codec_ : Codec
        The trained network, in the scaled space.
    objective_ : Objective
    components_ : ndarray of shape (K, D)
        The dictionary: rows of a linear decoder, or of the linear path, in the rows' own units. Absent for a
        plain deep decoder.
    mean_ : ndarray of shape (D,)
        Columns' means over seen cells.
    n_components_, n_features_in_, n_iter_ : int
    feature_names_in_ : ndarray of str, only for frames
    loss_curve_ : list of float
        The training objective, each epoch.
    validation_scores_ : list of float
        R² of the held-out rows, each epoch; empty without early stopping.
    best_loss_ : float
        The least objective, on held-out rows with early stopping.
    best_iter_ : int
        The epoch whose parameters were kept, counted from 1; 0 where none was better than the start.
    history_ : dict of str to list of float
        Each term by name, each epoch.
    pca_score_ : float
        R² of PCA at the same K on the same held-out rows (the training rows without early stopping), PCA
        fitted to all rows given: the yardstick. After `partial_fit`, of a sample of the rows given to it.
    solver_ : str
        The solver that was used.
    n_left_out_ : int
        Rows that `max_norm` has left out of the fit.
    dialled_ : str
        What `target_l0` or `target_fvu` has found; empty without.

    Raises
    ------
    ValueError
        For rows that are not finite numbers (NaN apart), parameters out of range, or settings that can't be
        combined; the message says what was given and what to do.

    References
    ----------
    Baldi & Hornik 1989; Hinton & Salakhutdinov 2006; Vincent et al. 2008; Rifai et al. 2011. Each part names its own.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from retell import Autoencoder
    >>> X = load_digits().data
    >>> model = Autoencoder(8, hidden_layer_sizes=()).fit(X)
    >>> model.transform(X).shape, round(model.score(X), 3)
    ((1797, 8), 0.674)
    """

    def __init__(
        self,
        n_components: Any = "auto",
        *,
        hidden_layer_sizes: Any = "auto",
        decoder_hidden_layer_sizes: Any = "mirror",
        activation: str = "gelu",
        code_activation: Any = "Identity()",
        target_l0: float | None = None,
        target_fvu: float | None = None,
        linear_path: bool = True,
        tied: bool = False,
        objective: Any = "MSE()",
        corruption: Any = "Nothing()",
        constraint: Any = "auto",
        scale: str | None = "auto",
        max_norm: float | None = None,
        solver: str = "auto",
        batch_size: Any = "auto",
        learning_rate_init: Any = "auto",
        weight_decay: Any = "auto",
        max_iter: Any = "auto",
        max_time: float | None = None,
        early_stopping: bool = True,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 10,
        tol: float = 1e-4,
        device: str = "auto",
        precision: str = "auto",
        random_state: Any = None,
        verbose: int = 0,
        start: str = "auto",
        inference: str = "encoder",
    ) -> None:
        self.n_components = n_components
        self.hidden_layer_sizes = hidden_layer_sizes
        self.decoder_hidden_layer_sizes = decoder_hidden_layer_sizes
        self.activation = activation
        self.code_activation = code_activation
        self.target_l0 = target_l0
        self.target_fvu = target_fvu
        self.linear_path = linear_path
        self.tied = tied
        self.objective = objective
        self.corruption = corruption
        self.constraint = constraint
        self.scale = scale
        self.max_norm = max_norm
        self.solver = solver
        self.batch_size = batch_size
        self.learning_rate_init = learning_rate_init
        self.weight_decay = weight_decay
        self.max_iter = max_iter
        self.max_time = max_time
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.tol = tol
        self.device = device
        self.precision = precision
        self.random_state = random_state
        self.verbose = verbose
        self.start = start
        self.inference = inference

    _training: Training  # between calls of partial_fit

    def fit(self, X: Any, y: Any = None, *, checkpoint: str | os.PathLike[str] | None = None) -> Self:
        """Learn the code of rows X (N, D); y is ignored.

        Parameters
        ----------
        X : array, tensor or frame of shape (N, D), or path
            Numbers; NaN is an unseen cell. float16, float32 and float64 are kept as they are; rows of another type
            or not in C order are converted as a whole. A path is that of a file (.npy, .npz, .safetensors, .csv,
            .parquet), or of a folder of .npy, .npz and .safetensors files, which hold some rows each, float16 or
            bfloat16 too. Such rows, and memory-mapped arrays, are not copied but read in blocks, by closed forms
            once. Where they are more than 128 MB, gradient steps do not take them one by one: chunks of 4 MB, in
            random order, go through a pool of 128 MB, and rows are drawn from that; and runs of rows are held out.
        y : ignored
        checkpoint : path, optional
            A folder where the state of the fit is kept, every few seconds. If it holds the state of the same
            fit (same rows, same settings), the fit goes on from there and ends in the same bits.

        Returns
        -------
        Autoencoder
        """
        for epoch in self.fit_epochs(X, checkpoint=checkpoint):
            if self.verbose:
                print(epoch, file=sys.stderr)
        return self

    def fit_epochs(self, X: Any, *, checkpoint: str | os.PathLike[str] | None = None) -> Iterator[Epoch]:
        """`fit`, one epoch at a time: a callback is the body of the caller's loop.

        The model is fitted when the loop has ended.

        Examples
        --------
        >>> from sklearn.datasets import load_wine
        >>> from retell import Autoencoder
        >>> model = Autoencoder(2, max_iter=3, random_state=0)
        >>> [epoch.number for epoch in model.fit_epochs(load_wine().data)]
        [1, 2, 3]
        """
        settings, parts = self._settings()
        # what is left out is looked at here, and never again
        rows, names = self._named_rows(X, reset=True, parts=None if settings.max_norm is None else parts)
        training = self._begin(settings, parts, rows, checkpoint, names)
        yield from training.epochs()
        if self.verbose and training.dialled:
            print(training.dialled, file=sys.stderr)
        self._take(training, names)
        self.__dict__.pop("_training", None)  # partial_fit goes on from here

    def partial_fit(self, X: Any, y: Any = None) -> Self:
        """One epoch on these rows, going on from the state so far.

        The first call settles scaling, widths and the first weights, unless a fit has done so; nothing is held out,
        and the learning rate stays at its largest. What `score_samples` knows of residuals and codes is then of a
        sample of all rows given to these calls, some 2,000, as the model is now; where a fit went before, that
        counts with the number of its rows. `n_iter_` and the curves go on. If the epoch makes the model explain less
        than half of what it explained of these rows, it is taken back, with a warning, and steps are half as long
        from then on.

        The optimiser's moments and the sample are kept between calls, and by pickle; a model folder has neither: after
        `retell.load` they begin anew, as they do after a fit, and where a parameter has changed since the last call.
        Steps are those of the solver "descend", whatever `solver` says: `fit_stream` is quicker.

        Parameters
        ----------
        X : array or frame of shape (N, D)
        y : ignored

        Raises
        ------
        ValueError
            With a target; where a parameter that shapes the model, such as `code_activation`, is not the one that the
            model has; if there is no row within `max_norm`.
        """
        settings, parts = self._settings()
        if settings.target_l0 is not None or settings.target_fvu is not None:
            raise ValueError(
                "partial_fit has no end at which a target is reached: leave target_l0 and target_fvu out. A model that"
                " has reached one goes on after set_params(target_l0=None, target_fvu=None, objective=model.objective_)"
            )
        first = "_training" not in self.__dict__ or self._training.asked != settings
        asked, fitted = settings, hasattr(self, "codec_")
        if first and fitted:
            settings, parts = self._as_fitted(settings, parts)
        rows, names = self._named_rows(X, reset=not fitted, parts=parts)
        limit = self._limit(settings, rows) if first else self._training.limit
        rows, left_out = self._within(limit, rows)
        if first:
            self._training = Training(self._on(settings, parts, rows), limit=limit)
            self._training.asked, self._training.before = asked, self.__dict__.get("_model")
        self._training.left_out += left_out
        self._training.more(rows)
        self._take(self._training, names)
        return self

    def fit_stream(self, batches: Iterable[Any], *, n_rows: int | None = None) -> Self:
        """Learn the code of rows that come batch by batch, once, such as a network's activations.

        The first 128 MB of rows settle scaling, widths and the first weights, as all rows do in `fit`. They are also
        the pool that all later rows go through: each that comes takes the place of one drawn at random, which is
        trained on, in steps of `batch_size` rows. Nothing else is held, however long the stream is. With
        `early_stopping` a share of the first rows is held out; they judge the result, but do not end it. Rows after
        which less than half is explained of what was before have taught nothing: a warning says so, and steps are
        half as long from then on.

        Parameters
        ----------
        batches : iterable of arrays, tensors or frames of shape (n, D)
            All of one width and type, and of the same columns if these have names, on any device; n may vary. NaN is an
            unseen cell.
        n_rows : int, optional
            How many rows to take; the learning rate goes up over the first tenth of them, then down to zero. Without
            it all are taken; the learning rate goes up for 100 steps and stays there until the stream has ended,
            then falls to zero over the rows that are left in the pool: better say how many there will be.

        Returns
        -------
        Autoencoder
            As after `fit`; `loss_curve_` has an entry for every 32 MB of rows, `validation_scores_` has none.

        Raises
        ------
        ValueError
            If a batch is not one of rows or unlike the first; for `solver="exact"`, which needs all rows.

        Examples
        --------
        >>> import numpy as np
        >>> from retell import Autoencoder
        >>> rng = np.random.default_rng(0)
        >>> mix = rng.normal(size=(4, 20))
        >>> batches = (rng.normal(size=(50, 4)) @ mix for _ in range(100))
        >>> model = Autoencoder(4, hidden_layer_sizes=(), random_state=0).fit_stream(batches)
        >>> round(model.score(rng.normal(size=(500, 4)) @ mix), 3)
        1.0
        """
        settings, parts = self._settings()
        rows, names, coming, n_rows = first_rows(batches, n_rows, parts.objective.loss)
        training = self._begin(settings, parts, rows, None, names, whole=False)
        stream = Streaming(training, n_rows)
        del rows
        for epoch in stream.epochs(coming):
            if self.verbose:
                print(epoch, file=sys.stderr)
        if self.verbose and training.limit is not None:
            print(f"max_norm={training.limit.multiple:g}: {training.left_out:,} rows are left out", file=sys.stderr)
        self._take(training, names)
        self.__dict__.pop("_training", None)
        return self

    def transform(self, X: Any, *, out: Any = None, sparse_output: bool = False) -> Any:
        """The codes (N, K) of rows X (N, D). A row's code does not depend on the other rows, to the bit.

        Parameters
        ----------
        X : array or frame of shape (N, D), or path
            As in `fit`. A memory-mapped array of floats in C order, and files, are read once, in blocks, in
            constant memory.
        out : ndarray of shape (N, K), optional
            Where the codes are written, as in a `numpy.memmap` when they are larger than memory.
        sparse_output : bool, default=False
            Give what is not zero: for sparse codes of many units, whose zeros are then never held.

        Returns
        -------
        ndarray of shape (N, K), or scipy.sparse.csr_array
            `out`, or an array of the dtype of X; float32 for float16 and bfloat16, float64 for other types.

        Examples
        --------
        >>> from sklearn.datasets import load_digits
        >>> from retell import Autoencoder
        >>> X = load_digits().data
        >>> model = Autoencoder(128, code_activation="TopK(8)", max_iter=1, random_state=0).fit(X)
        >>> H = model.transform(X, sparse_output=True)
        >>> H.shape, int((H != 0).sum(axis=1).max())
        ((1797, 128), 8)
        >>> model.inverse_transform(H).shape
        (1797, 64)
        """
        self._check_fitted()
        rows, check = self._checked(X)
        if sparse_output and out is not None:
            raise ValueError("transform writes dense codes to `out`: leave out=... or sparse_output=True out")
        warn_unlike(rows, self.scaling_, self._model.fitted.norms)
        if sparse_output:
            return self._reader.transform_sparse(rows, self.inference, check)
        return self._reader.transform(rows, self.inference, _room(out, (len(rows), self.n_components_), rows), check)

    def inverse_transform(self, H: Any, *, out: Any = None) -> Any:
        """The rows (N, D), in their own units, that codes H (N, K) stand for.

        Parameters
        ----------
        H : array or frame of shape (N, K), or any of scipy.sparse, or path
            Of a file as in `fit`, or one of compressed rows that `scipy.sparse.save_npz` has written. Columns that have
            the units' names (`get_feature_names_out`) must be in their order.
        out : ndarray of shape (N, D), optional
            As in `transform`.
        """
        self._check_fitted()
        H = read_codes(H) if isinstance(H, str | os.PathLike) else H
        few = as_csr(H, self.n_components_)
        if few is not None:
            assert_all_finite(few.data, input_name="H")
            return self._reader.inverse_sparse(few, _room(out, (few.shape[0], self.n_features_in_), few.data))
        check_kinds(H)
        check_order(H, self.get_feature_names_out(), "codes")
        if not isinstance(H, Shards):
            H = check_array(H, dtype=(np.float64, np.float32), order="C", ensure_all_finite=False, input_name="H")
        if H.shape[1] != self.n_components_:
            raise ValueError(f"H has {H.shape[1]} columns, this model's codes have {self.n_components_}")

        def check(some: Array, first: int) -> None:
            check_finite(some, called="H", first=first)
            assert_all_finite(some, input_name="H")  # a code has no holes

        return self._reader.inverse(_aligned(H), _room(out, (len(H), self.n_features_in_), H), check)

    def reconstruct(self, X: Any, *, keep_seen: bool = False, out: Any = None) -> Any:
        """What the model makes of rows X (N, D), in their own units; never NaN.

        Parameters
        ----------
        X : array or frame of shape (N, D)
        keep_seen : bool, default=False
            Complete the rows: keep every seen cell and fill only the holes, with the network's answer or with
            a factor model's E[x | seen cells], whichever did better on cells hidden from held-out rows (a
            network trained with Mask may; one that never missed a cell does not).
        out : ndarray of shape (N, D), optional
            As in `transform`.
        """
        self._check_fitted()
        rows, check = self._checked(X)
        room = _room(out, rows.shape, rows)
        warn_unlike(rows, self.scaling_, self._model.fitted.norms)

        def made(i: int, j: int, _x: Array, _h: Array, x_hat: Array) -> None:
            room[i:j] = self.scaling_.back(x_hat)
            release(room[i:j])

        def completed(i: int, j: int, x: Array) -> None:
            room[i:j] = np.where(np.isnan(x), self.scaling_.back(self._complete(x)), rows[i:j])
            release(room[i:j])

        if keep_seen:
            self._reader.scaled(completed, rows, check)
        else:
            self._reader.each(made, rows, self.inference, check)
        return room

    def score(self, X: Any, y: Any = None) -> float:
        """R² of the reconstruction of X, weighted by variance, scaled space, seen cells only.

        Scores of models that differ in `scale` are of different spaces: a search over it needs a scoring of its own.
        """
        self._check_fitted()
        rows, check = self._checked(X)
        explained = Explained(self.scaling_.centre)
        warn_unlike(rows, self.scaling_, self._model.fitted.norms)

        def take(_i: int, _j: int, x: Array, _h: Array, x_hat: Array) -> None:
            explained.add(x, x_hat)

        self._reader.each(take, rows, self.inference, check, alone=True)
        return explained.score

    def score_samples(self, X: Any) -> Array:
        """log p(x, h) per row (N,), in nats, with respect to the rows' own units; higher is more normal.

        Normal noise around the reconstruction, with each column's variance as the held-out residuals have
        it, times a Normal fitted to the training rows' codes. Unseen cells say nothing.

        Raises
        ------
        ValueError
            If the weights come from elsewhere and have seen no rows (`retell.convert`).
        """
        density = self._known_density()
        return self._log_densities(density, *self._checked(X))

    def surprise(self, X: Any) -> Surprise:
        """Which cells make rows X (N, D) odd, and what the other cells of the row would have them be.

        Of each cell in turn, by how much log p(x, h) of the row (`score_samples`) rises when it is replaced by what the
        others say that it is, as `reconstruct(X, keep_seen=True)` completes rows. Each cell costs what
        completing and scoring a row does: give it the rows that are in question.

        Parameters
        ----------
        X : array or frame of shape (N, D)

        Returns
        -------
        Surprise
            Arrays with a place for each cell; printed, the oddest rows with their oddest cells.

        Raises
        ------
        ValueError
            As `score_samples`.

        Examples
        --------
        >>> from sklearn.datasets import load_wine
        >>> from retell import Autoencoder
        >>> X = load_wine(as_frame=True).data
        >>> model = Autoencoder(4, random_state=0).fit(X)
        >>> odd = X.head(10).copy()
        >>> odd.loc[3, "flavanoids"] = 0.5
        >>> found = model.surprise(odd)
        >>> int(found.oddest[0]), found.columns[found.nats[3].argmax()]
        (3, 'flavanoids')
        """
        density = self._known_density()
        rows, check = self._checked(X)
        nats, expected = np.empty(rows.shape), np.empty(rows.shape)

        def log_rows(x: Array) -> Array:  # scaled space: a gain is the same in all units
            h = self._encode(x)
            return density.log_rows(x - self._reader.decode(h), h)

        def take(i: int, j: int, x: Array) -> None:
            nats[i:j], made = surprise_of(x, log_rows, self._complete)
            expected[i:j] = self.scaling_.back(made)

        self._reader.scaled(take, rows, check)
        names = column_words(self._model.fitted.columns, rows.shape[1])
        return Surprise(nats, expected, rows[:], self._log_densities(density, rows, check), names)

    def log_joint(self, X: Any) -> LogJoint:
        """log p(x, h) = log p(x | h) + log p(h) per row, of the objective's own densities.

        Parameters
        ----------
        X : array or frame of shape (N, D)

        Returns
        -------
        LogJoint
            Arrays (N,), in nats, with respect to the rows' own units; unseen cells say nothing.

        Raises
        ------
        ValueError
            If the objective is not one `Likelihood` plus one `Prior` on the code, with coefficients of 1 (priors
            on weights apart).

        Examples
        --------
        >>> from sklearn.datasets import load_wine
        >>> from retell import Autoencoder, Likelihood, Normal, Prior
        >>> objective = Likelihood(Normal(scale=0.5)) + Prior(Normal(scale=1.0))
        >>> model = Autoencoder(2, hidden_layer_sizes=(), objective=objective, random_state=0).fit(load_wine().data)
        >>> model.log_joint(load_wine().data).total.shape
        (178,)
        """
        self._check_fitted()
        rows, check = self._checked(X)
        log_p = LogJoint(np.empty(len(rows)), np.empty(len(rows)))

        def take(i: int, j: int, x: Array, h: Array, _x_hat: Array) -> None:
            likelihood, prior = self._reader.log_joint(x, h)
            log_p.x_given_h[i:j], log_p.h[i:j] = likelihood + self._volume(x), prior

        self._reader.each(take, rows, self.inference, check)
        return log_p

    def amortization_gap(self, X: Any) -> Array:
        """By how much the code of least objective beats the encoder's, per row (N,), in units of the objective.

        Never negative, and 0 where the encoder is as good as optimisation.

        Raises
        ------
        ValueError
            If the objective of a row is not a function of its code alone.
        """
        self._check_fitted()
        rows, check = self._checked(X)
        gap = np.empty(len(rows))

        def take(i: int, j: int, x: Array) -> None:
            gap[i:j] = self._reader.optimise(x)[1]

        self._reader.scaled(take, rows, check)
        return gap

    def features(self, X: Any, labels: Any = None, *, top: int = 10, neighbours: int = 5) -> Features:
        """What each unit of the code stands for, as rows X (N, D) show it; printed, a table of the clearest.

        Parameters
        ----------
        X : array or frame of shape (N, D)
            Read once, in blocks.
        labels : sequence of shape (N,), optional
            What the rows are called in the table.
        top : int, default=10
            Rows to name for each unit.
        neighbours : int, default=5
            Of each unit, nearest by the cosine of their columns of the dictionary. It takes K² D multiplications;
            0 leaves them out.

        Returns
        -------
        Features
            Arrays with a place for each unit; `retell.features` says how clear is told.

        Raises
        ------
        ValueError
            Without a linear decoder or linear path.

        Examples
        --------
        >>> from sklearn.datasets import load_digits
        >>> from retell import Autoencoder
        >>> X, y = load_digits(return_X_y=True)
        >>> model = Autoencoder(128, code_activation="TopK(8)", max_iter=10, random_state=0).fit(X)
        >>> found = model.features(X, labels=y, top=4)
        >>> found.rows.shape, bool((found.rate[found.clearest[:10]] < 0.25).all())
        ((128, 4), True)
        >>> print(found.table(1).splitlines()[0])
           unit clarity   active     mean      max         nearest  top rows
        """
        self._check_fitted()
        rows, check = self._checked(X)
        return features_of(self._reader, rows, self.inference, check, labels, top, neighbours)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model folder `path`, all or nothing; `retell.load` reads it. Nothing of the optimiser is in it."""
        check_is_fitted(self)
        now = as_settings({**asdict(self._model.settings), "inference": self.inference})
        model_file.write(path, replace_struct(self._model, settings=now))

    def get_feature_names_out(self, input_features: Any = None) -> Array:
        """autoencoder0, autoencoder1, ..."""
        names: Array = super().get_feature_names_out(input_features)
        return names

    @property
    def components_(self) -> Array:
        """The dictionary (K, D) in the rows' own units."""
        check_is_fitted(self)
        dictionary = self.codec_.dictionary()
        if dictionary is None:
            raise AttributeError("a deep decoder without linear path has no components_")
        result: Array = dictionary.detach().cpu().double().numpy().T * self.scaling_.factor
        return result

    @property
    def mean_(self) -> Array:
        """The columns' means (D,) in the rows' own units."""
        check_is_fitted(self)
        return self.scaling_.back(self.scaling_.centre)

    @property
    def _n_features_out(self) -> int:
        return int(self.n_components_)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    def _as_fitted(self, settings: Settings, parts: Parts) -> tuple[Settings, Parts]:
        """What goes on with a fitted model: its own code activation, where a target has found that one."""
        was, known = self._model.settings, self._model.parts.code_activation
        if self._model.fitted.dialled and type(parts.code_activation) is type(known):
            settings = replace(settings, code_activation=was.code_activation)
        for name in SHAPING:
            given, has = getattr(settings, name), getattr(was, name)
            if given != has:
                raise ValueError(
                    f"{name}={given!r} is not what this model has, {has!r}, and partial_fit goes on with the model as"
                    f" it is: fit makes another one, set_params({name}={has!r}) goes on with this one"
                )
        return settings, replace(parts, code_activation=known)

    def _on(self, settings: Settings, parts: Parts, rows: Array) -> Plan:
        """What a first partial_fit does: on from the fit, if there was one."""
        settled, seed = replace(settings, early_stopping=False, solver="descend"), seed_of(self.random_state)
        if hasattr(self, "codec_"):  # what is "auto" was settled by the rows of the fit
            was = self._model.fitted
            settled = replace(settled, n_components=was.n_components, precision=was.dtype)  # type: ignore[arg-type]
            widths = (was.encoder, was.decoder)
            plan = plan_on(settled, parts, rows, seed, self.codec_, self.scaling_, self._factors, widths)
        else:
            plan = make_plan(settled, parts, rows, seed)
        plan.settings = settings
        auto.warn_identity(plan.codec, plan.parts.objective, plan.parts.corruption)
        return plan

    def _begin(
        self, settings: Settings, parts: Parts, rows: Array, checkpoint: str | os.PathLike[str] | None,
        names: Any = None, *, whole: bool = True, known: Known = FORGETFUL,
    ) -> Training:  # fmt: skip
        """A fit before its first epoch; `known` is what others on these very rows have found out."""
        limit = known.once(("limit", settings.max_norm, id(rows)), partial(self._limit, settings, rows))
        rows, left_out = known.once(("within", settings.max_norm, id(rows)), partial(self._within, limit, rows))
        found = None if checkpoint is None else read_checkpoint(checkpoint)
        seed = seed_of(self.random_state) if found is None else int(found[0]["seed"])
        with calm(rows.shape[1]):
            plan = make_plan(settings, parts, rows, seed, names, whole=whole, known=known)
            plan.turn(known)
        auto.warn_identity(plan.codec, plan.parts.objective, plan.parts.corruption)
        if self.verbose:
            print(f"solver {plan.solver}: {plan.reason}", file=sys.stderr)
        return Training(plan, checkpoint, found, limit=limit, left_out=left_out)

    def _limit(self, settings: Settings, rows: Array) -> Limit | None:
        """What `max_norm` means for these rows."""
        return None if settings.max_norm is None else Limit.of(rows, settings.max_norm)

    def _within(self, limit: Limit | None, rows: Any) -> tuple[Any, int]:
        """The rows within a limit, and how many are not."""
        if limit is None:
            return rows, 0
        out = limit.beyond(rows)
        if self.verbose:
            print(f"max_norm={limit.multiple:g}: {len(out):,} of {len(rows):,} rows are left out", file=sys.stderr)
        if len(out) == len(rows):
            raise ValueError(f"all of the {len(rows)} rows are beyond max_norm={limit.multiple:g}: raise it")
        return (rows if isinstance(rows, Shards) else Shards.of(rows)).without(out) if len(out) else rows, len(out)

    def _settings(self) -> tuple[Settings, Parts]:
        """The parameters, checked; parts as objects."""
        values = self.get_params(deep=False)
        parts = read_parts(values)
        letters = {name: repr(getattr(parts, name)) for name in ("objective", "corruption", "code_activation")}
        constraint = values["constraint"] if values["constraint"] == "auto" else repr(parts.constraint)
        plain = {name: value.item() if isinstance(value, np.generic) else value for name, value in values.items()}
        seed = plain["random_state"]
        plain["random_state"] = seed if seed is None or isinstance(seed, int) else None
        return as_settings({**plain, **letters, "constraint": constraint}), parts

    def _check_fitted(self) -> None:
        if "codec_" not in self.__dict__:  # scikit-learn's own check takes longer than a row
            check_is_fitted(self)

    def _known_density(self) -> Density:
        self._check_fitted()
        if self.density_ is None:
            raise ValueError(
                f"this model was read from {self._model.fitted.origin} and has seen no rows, so it knows no density of"
                " them: partial_fit(X) goes on from its weights for an epoch and settles one"
            )
        return self.density_

    def _log_densities(self, density: Density, rows: Array, check: Check) -> Array:
        """log p(x, h) (N,) of rows in their own units."""
        log_p = np.empty(len(rows))

        def take(i: int, j: int, x: Array, h: Array, x_hat: Array) -> None:
            log_p[i:j] = density.log_rows(x - x_hat, h) + self._volume(x)

        self._reader.each(take, rows, self.inference, check)
        return log_p

    def _checked(self, X: Any) -> tuple[Array, Check]:
        """X as an array of floats in C order, and what refuses its infinities, given a block and its first row."""
        plain = type(X) in (np.ndarray, np.memmap) and X.dtype in (np.float32, np.float64) and X.flags.c_contiguous
        if plain and "feature_names_in_" not in self.__dict__ and X.shape[1:] == (self.n_features_in_,) and len(X):
            return _aligned(X), lambda some, first: check_finite(some, first=first)
        rows, names = self._named_rows(X)
        return _aligned(rows), lambda some, first: check_finite(some, names, first=first)

    def _named_rows(self, X: Any, *, reset: bool = False, parts: Parts | None = None) -> tuple[Array, Any]:
        """X as an array of floats, and its columns' names or None; values are read only for `parts`."""
        if isinstance(X, list | tuple) and X and isinstance(X[0], str | os.PathLike):
            raise ValueError(f"one path was expected, of a file or a folder of files, got {len(X)}, {X[0]!r} first")
        if X is None or hasattr(X, "__next__"):
            once = "" if X is None else ", which can be read once only: give batches that come one by one to fit_stream"
            raise TypeError(f"rows (N, D) were expected, got {type(X).__name__}{once}")
        X = as_numpy(read_rows(X) if isinstance(X, str | os.PathLike) else X)
        check_kinds(X)
        least = 2 if reset else 1
        reader = copy(self) if reset else self  # a fit that fails leaves the old model as it was
        rows: Any = validate_data(
            reader,
            X,
            reset=reset,
            dtype=(np.float64, np.float32, np.float16),
            order="C",  # sums depend on the order in memory, to the bit
            ensure_all_finite=False,
            ensure_min_samples=least,
            skip_check_array=isinstance(X, Shards),
        )
        if len(rows) < least:  # of shards
            raise ValueError(f"{least} rows or more were expected, got {len(rows)}")
        rows = Shards.of(rows) if rows.dtype == np.float16 else rows
        names = getattr(reader, "feature_names_in_", None)
        if parts is not None:
            loss = parts.objective.loss
            for first, block in blocks(rows):
                check_finite(block, names, first=first)
                check_support(block, loss.support, loss, names, first=first)
        return rows, names

    def _encode(self, x: Array) -> Array:
        """Scaled rows to their codes."""
        return self._reader.encode(x, self.inference)

    def _reconstruct(self, x: Array) -> Array:
        """Scaled rows to their reconstructions, scaled space."""
        return self._reader.reconstruct(x, self.inference)

    def _complete(self, x: Array) -> Array:
        """Scaled rows with answers in their unseen cells; in seen ones it may answer otherwise."""
        if self._model.fitted.filler == "network":
            return self._reconstruct(x)
        made = self._factors.complete(x - self.scaling_.centre) + self.scaling_.centre
        completed: Array = np.clip(made, *self.objective_.loss.support)
        return completed

    def _volume(self, x: Array) -> Array:
        """What log densities (N,) of scaled rows lack to be those of the rows in their own units."""
        volume: Array = np.where(np.isnan(x), 0.0, self.scaling_.log_density).sum(1)
        return volume

    def _take(self, training: Training, names: Any) -> None:
        """Settle the fitted attributes."""
        with calm(training.plan.survey.rows.shape[1]):
            self._become(record(training, None if names is None else [str(name) for name in names]))

    def _become(self, model: Model) -> None:
        """Set the attributes that make this a fitted estimator."""
        self._model = model
        parts = model.parts
        self._reader = Reader(model.codec, parts.objective, parts.constraint, model.scaling, model.fitted.norms)
        self.codec_, self.scaling_, self.density_ = model.codec, model.scaling, model.density
        self._factors, self.objective_ = model.factors, model.parts.objective
        self.n_features_in_ = model.fitted.n_features
        self.__dict__.pop("feature_names_in_", None)
        if model.fitted.columns is not None:
            self.feature_names_in_ = np.array(model.fitted.columns, dtype=object)
        for name in ("n_components", "n_iter", "best_iter", "best_loss", "pca_score", "loss_curve", "validation_scores",
                     "history", "solver", "n_left_out", "dialled"):  # fmt: skip
            setattr(self, f"{name}_", getattr(model.fitted, name))


def first_rows(
    batches: Iterable[Any], n_rows: int | None, loss: Any
) -> tuple[Any, list[str] | None, Iterator[Array], int | None]:
    """The first rows of a stream, which settle what all do elsewhere, their columns' names or None, the rows that come
    later, and how many in all.

    Raises
    ------
    ValueError
        If there are fewer than two, or `n_rows` says so.
    """
    if n_rows is not None and not (isinstance(n_rows, int | np.integer) and n_rows >= 2):
        raise ValueError(f"n_rows={n_rows!r} is not possible: an int from 2 on or None was expected")
    if getattr(batches, "ndim", 0) == 2:
        raise ValueError(
            f"batches of rows were expected, got one {type(batches).__name__} of shape {tuple(batches.shape)}: "  # type: ignore[attr-defined]
            "give it to fit, or as [X]"
        )
    names, batches = named(batches)
    first, coming, ended = beginning(arrays(batches, n_rows, loss, names), POOL)
    return Shards.of(first) if first.dtype == np.float16 else first, names, coming, len(first) if ended else n_rows


def _aligned(rows: Array) -> Array:
    """The rows, a copy only where their numbers lie across machine words, and no subclass."""
    return rows if isinstance(rows, Shards) else np.require(np.asarray(rows), requirements=["A"])


def _room(out: Any, shape: tuple[int, ...], like: Array) -> Array:
    """Where results of this shape are written."""
    if out is None:
        return np.empty(shape, like.dtype)
    floats = isinstance(out, np.ndarray) and out.dtype in (np.float32, np.float64) and out.flags.writeable
    if not (floats and out.shape == shape):
        given = f"{out.dtype} of shape {out.shape}" if isinstance(out, np.ndarray) else type(out).__name__
        raise ValueError(f"out must be a writeable array of float32 or float64 of shape {shape}, got {given}")
    room: Array = out
    return room


def load(path: str | os.PathLike[str], parts: Iterable[type[Part]] = ()) -> Autoencoder:
    """The fitted `Autoencoder` that `save` wrote. No code from the folder is run.

    Parameters
    ----------
    path : path
        A model folder.
    parts : iterable of classes, optional
        Your own parts that the model names.

    Raises
    ------
    ModelFileError
        If the folder is missing, damaged, edited, or of a newer format.
    """
    model = model_file.read(path, parts)
    estimator = Autoencoder(**asdict(model.settings))
    estimator._become(model)
    return estimator
