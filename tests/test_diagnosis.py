"""`diagnose`: every finding has a planted case that it finds, and a healthy one that it leaves alone."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse import issparse
from sklearn.datasets import load_digits, load_wine
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from retell import Autoencoder, auto, diagnose, evidence
from retell.diagnosis import Diagnosis, Finding, examine
from retell.evidence import gather
from retell.grammar import parse

DIGITS = load_digits().data
FIT, NEW = DIGITS[:1000], DIGITS[1000:]
WINE = load_wine().data[np.random.default_rng(0).permutation(178)]
IDENTITY = "nothing holds it back"


def linear(K: Any = 8, X: Any = FIT, **settings: Any) -> Autoencoder:
    return Autoencoder(K, **{"hidden_layer_sizes": (), "random_state": 0} | settings).fit(X)


def altered(model: Autoencoder, change: Callable[[Any], None]) -> Autoencoder:
    """The model after a change of its codec."""
    with torch.no_grad():
        change(model.codec_)
    model._become(model._model)
    return model


def figures(model: Autoencoder, X: Any, name: str) -> dict[str, float]:
    """What was measured for the finding of this name, which must be there."""
    (finding,) = [finding for finding in diagnose(model, X) if finding.name == name]
    return finding.figures


# ------------------------------------------------------------------ the record


def test_healthy_is_one_line_and_false() -> None:
    found = diagnose(linear(), NEW)
    assert str(found) == "healthy: nothing found"
    assert not found
    assert len(found) == 0
    assert found.names == []


def test_findings_are_words_of_80_columns() -> None:
    found = diagnose(linear(4, WINE, scale=None), 1e3 * WINE)
    assert found
    assert found.names == [finding.name for finding in found] == ["unscaled columns", "unlike rows"]
    assert len(found) == 2
    assert max(map(len, str(found).splitlines())) <= 80
    for finding in found:
        assert finding.name in str(found)
        assert all(np.isfinite(list(finding.figures.values())))
        words = " ".join(str(finding).split())
        assert finding.words in words
        assert finding.remedy in words


def test_a_diagnosis_is_a_value() -> None:
    finding = Finding("cold", {"degrees": 35.0}, "it is cold", "a coat")
    assert Diagnosis((finding,)) == Diagnosis((finding,))
    with pytest.raises(AttributeError):
        Diagnosis(()).findings = (finding,)  # type: ignore[misc]


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 20 rows, got 19"):
        diagnose(linear(), NEW[:19])


def test_scaled_rows_are_diagnosed_alike() -> None:
    model = linear(4, WINE, scale=None)
    assert examine(model, model.scaling_.to(WINE)) == diagnose(model, WINE)


def test_holes_and_bounded_rows_can_be_diagnosed() -> None:
    holed = np.where(np.random.default_rng(0).uniform(size=WINE.shape) < 0.2, np.nan, WINE)
    assert not diagnose(linear(4, holed), holed)
    pixels = FIT[:300] / 16
    found = diagnose(linear(8, pixels, objective="BCE()", max_iter=10), pixels)
    assert set(found.names) <= {"worse than PCA"}  # PCA minimises squared error, BCE does not


# ------------------------------------------------------------------ identity


@pytest.mark.parametrize("K", [64, 70])
def test_a_net_as_wide_as_the_rows_copies(K: int) -> None:
    with pytest.warns(UserWarning, match=IDENTITY):
        model = linear(K, solver="exact")
    assert 1 - model.score(NEW) < 1e-12
    assert np.abs(model.reconstruct(NEW) - NEW).max() < 1e-6
    copied = figures(model, NEW, "identity")
    assert min(copied["rows"], copied["noise"], copied["shuffled"]) > 1 - 1e-12


@pytest.mark.parametrize("settings", [{"corruption": "Mask(0.5)"}, {"objective": "MSE() + 0.1 * L2()"}])
def test_held_back_it_does_not_copy(settings: dict[str, Any]) -> None:
    assert "identity" not in diagnose(linear(64, **settings), NEW).names


def test_a_penalty_too_weak_to_matter_is_the_identity_still() -> None:
    assert "identity" in diagnose(linear(64, objective="MSE() + 1e-9 * L2()"), NEW).names


# ------------------------------------------------------------------ worse than PCA


def test_an_unfinished_fit_is_worse_than_pca() -> None:
    model = linear(start="random", solver="descend", max_iter=2)
    measured = figures(model, NEW, "worse than PCA")
    assert measured["score"] < measured["pca_score"] - 0.01
    assert "price" not in str(diagnose(model, NEW))


def test_a_penalty_has_its_price() -> None:
    found = diagnose(linear(objective="MSE() + 0.02 * L2()"), NEW)
    assert "worse than PCA" in found.names
    assert "the price of L2()" in " ".join(str(found).split())


@pytest.mark.parametrize("settings", [{"objective": "MSE() + 1e-6 * L2()"}, {"solver": "descend", "max_iter": 3}])
def test_a_fit_like_pca_is_not_worse(settings: dict[str, Any]) -> None:
    assert "worse than PCA" not in diagnose(linear(**settings), NEW).names


# ------------------------------------------------------------------ small, not sparse

SMALL = {
    "L1": ("MSE() + 0.01 * L1()", "Identity()", "ReLU()"),
    "StudentT": ("MSE() + 0.01 * StudentT()", "Identity()", "TopK(8)"),
    "Laplace": ("Likelihood(Normal(0.5)) + Prior(Laplace(0.1))", "Identity()", "inference='map'"),
    "Exponential": ("Likelihood(Normal(0.5)) + Prior(Exponential(0.1))", "Softplus()", "ReLU()"),
    "too little": ("MSE() + 1e-9 * L1()", "Softplus()", "ReLU()"),
}


@pytest.mark.parametrize("case", SMALL)
def test_small_is_not_sparse(case: str) -> None:
    objective, squash, remedy = SMALL[case]
    model = linear(6, WINE, objective=objective, code_activation=squash, max_iter=2)
    assert figures(model, WINE, "small codes")["zeros"] < 0.01
    assert remedy in str(diagnose(model, WINE))


@pytest.mark.parametrize(
    "settings",
    [
        {"objective": "MSE() + 0.02 * L1()", "inference": "map"},
        {"objective": "MSE() + 0.01 * L1()", "code_activation": "ReLU()"},
        {"objective": "MSE() + 0.01 * L1()", "code_activation": "TopK(3)"},
        {"objective": "MSE() + 0 * L1()"},
        {"objective": "MSE() + 0.001 * L2()"},
        {"objective": "Likelihood(Normal(0.5)) + Prior(Normal(1.0))"},
    ],
    ids=["map", "ReLU", "TopK", "no weight", "L2", "Normal"],
)
def test_zeros_or_no_wish_for_them_are_left_alone(settings: dict[str, Any]) -> None:
    assert "small codes" not in diagnose(linear(6, WINE, max_iter=5, **settings), WINE).names


def test_inference_is_what_the_model_is_set_to() -> None:
    model = linear(6, WINE, objective="MSE() + 0.02 * L1()", max_iter=5)
    assert "small codes" in diagnose(model, WINE).names
    model.inference = "map"
    assert "small codes" not in diagnose(model, WINE).names


# ------------------------------------------------------------------ units


def flat(rank: int, n: int = 300) -> Any:
    """Rows of 10 columns that lie in a subspace."""
    draw = np.random.default_rng(0)
    return draw.normal(size=(n, rank)) @ draw.normal(size=(rank, 10))


def test_units_beyond_the_rank_are_dead() -> None:
    assert figures(linear(6, flat(3)), flat(3), "dead units")["share"] == 0.5
    assert "dead units" not in diagnose(linear(6, flat(6)), flat(6)).names


def test_units_that_are_never_active_are_dead() -> None:
    def kill(codec: Any) -> None:
        codec.encoder.last.bias[:3] = -100.0

    model = linear(12, WINE, code_activation="ReLU()", max_iter=2)
    assert "dead units" not in diagnose(model, WINE).names
    assert figures(altered(model, kill), WINE, "dead units")["share"] == 0.25


def test_a_column_of_the_decoder_twice_is_a_duplicate() -> None:
    def copy(codec: Any) -> None:
        codec.decoder.last.weight[:, 1] = -2 * codec.decoder.last.weight[:, 0]

    model = linear()
    assert "duplicate units" not in diagnose(model, NEW).names
    assert figures(altered(model, copy), NEW, "duplicate units")["share"] == 0.25


def test_a_code_twice_is_a_duplicate_under_a_deep_decoder() -> None:
    def copy(codec: Any) -> None:
        codec.encoder.last.weight[3] = -codec.encoder.last.weight[0]

    model = linear(4, hidden_layer_sizes=(16,), linear_path=False, max_iter=2)
    assert "duplicate units" not in diagnose(model, NEW).names
    assert figures(altered(model, copy), NEW, "duplicate units")["share"] == 0.5


def test_opposite_features_of_a_positive_code_are_two() -> None:
    def mirror(codec: Any) -> None:
        for matrix in (codec.encoder.last.weight.T, codec.decoder.last.weight):
            matrix[:, 4:] = -matrix[:, :4]

    model = linear(code_activation="ReLU()", max_iter=2)
    assert "duplicate units" not in diagnose(altered(model, mirror), NEW).names


def test_dead_units_are_no_twins() -> None:
    def kill(codec: Any) -> None:
        codec.encoder.last.bias[:2] = -100.0
        codec.decoder.last.weight[:, 1] = codec.decoder.last.weight[:, 0]

    found = diagnose(altered(linear(code_activation="ReLU()", max_iter=2), kill), NEW)
    assert "dead units" in found.names
    assert "duplicate units" not in found.names


def test_units_that_are_nearly_always_on_are_dense() -> None:
    def always(codec: Any) -> None:
        codec.encoder.last.bias[:2] = 100.0

    model = linear(128, code_activation="TopK(4)", max_iter=5)
    assert "dense units" not in diagnose(model, NEW).names
    found = figures(altered(model, always), NEW, "dense units")
    assert found["units"] == 2
    assert found["part"] == pytest.approx(0.5)


def test_codes_of_which_much_is_on_have_no_dense_units() -> None:
    def always(codec: Any) -> None:
        codec.encoder.last.bias[:] = 100.0

    for settings in ({"code_activation": "ReLU()"}, {"code_activation": "ReLU()", "objective": "MSE() + 1e-4 * L1()"}):
        assert "dense units" not in diagnose(altered(linear(20, max_iter=2, **settings), always), NEW).names


def test_wide_codes_are_diagnosed_as_narrow_ones(monkeypatch: Any) -> None:
    def harm(codec: Any) -> None:
        codec.encoder.last.bias[:20] = -100.0
        codec.encoder.last.weight[20:40] = codec.encoder.last.weight[40:60]
        codec.encoder.last.bias[20:40] = codec.encoder.last.bias[40:60]

    model = altered(linear(128, code_activation="TopK(12)", max_iter=3), harm)
    narrow = diagnose(model, NEW)
    assert {"dead units", "duplicate units"} <= set(narrow.names)
    monkeypatch.setattr(evidence, "WIDE", 100)
    monkeypatch.setattr(evidence, "rows_a_block", lambda width: 33)
    wide = gather(model, model.scaling_.to(NEW))
    assert issparse(wide.h)
    for mine, theirs in zip(diagnose(model, NEW), narrow, strict=True):
        assert mine.name == theirs.name
        assert mine.figures == pytest.approx(theirs.figures, rel=1e-9)


def test_wide_codes_that_say_nothing() -> None:
    def kill(codec: Any) -> None:
        codec.encoder.last.bias[:] = -1e4

    model = altered(linear(1030, FIT[:100], code_activation="TopK(4)", max_iter=1), kill)
    assert figures(model, NEW[:50], "dead units")["share"] == 1.0


@pytest.mark.parametrize("squash", ["Sigmoid()", "Tanh()"])
def test_units_at_a_bound_are_saturated(squash: str) -> None:
    def shift(codec: Any) -> None:
        codec.encoder.last.bias[0] = 50.0

    model = linear(4, WINE, code_activation=squash, max_iter=2)
    assert "saturated units" not in diagnose(model, WINE).names
    assert figures(altered(model, shift), WINE, "saturated units")["share"] == 0.25


def test_raw_rows_saturate() -> None:
    model = linear(4, WINE, code_activation="Tanh()", start="random", scale=None, max_iter=1)
    assert figures(model, WINE, "saturated units")["share"] == 1.0


def test_units_that_should_be_off_are_not_saturated() -> None:
    def shift(codec: Any) -> None:
        codec.encoder.last.bias[0] = -50.0

    model = linear(4, WINE, code_activation="Sigmoid()", objective="MSE() + 0.01 * KL(0.01)", max_iter=2)
    assert "saturated units" not in diagnose(altered(model, shift), WINE).names


VAE = {
    "code_activation": "Sample()",
    "max_iter": 60,
    "early_stopping": False,
    "learning_rate_init": 0.03,
    "batch_size": 32,
}


def test_units_without_a_message_have_collapsed() -> None:
    rows = flat(2) + 0.1 * np.random.default_rng(1).normal(size=(300, 10))
    objective = "Likelihood(Normal(0.3)) + ToNormal()"
    assert figures(linear(5, rows, objective=objective, **VAE), rows, "collapsed units")["share"] == 0.6
    assert "collapsed units" not in diagnose(linear(2, rows, objective=objective, **VAE), rows).names


# ------------------------------------------------------------------ rows


def test_columns_in_different_units_are_unscaled() -> None:
    spread = WINE.std(0)
    model = linear(4, WINE, scale=None)
    assert figures(model, WINE, "unscaled columns")["ratio"] == pytest.approx(spread.max() / spread.min())
    assert "unscaled columns" not in diagnose(linear(4, WINE), WINE).names
    assert "unscaled columns" not in diagnose(linear(4, WINE / spread, scale=None), WINE / spread).names


def test_pixels_at_the_border_are_not_unscaled() -> None:
    spread = DIGITS.std(0)
    assert spread.max() > 100 * spread[spread > 0].min()
    assert "unscaled columns" not in diagnose(linear(scale=None), NEW).names


CENTRE, SPREAD = WINE.mean(0), WINE.std(0)
UNLIKE = {
    "standardised": (WINE - CENTRE) / SPREAD,
    "a thousandfold": 1e3 * WINE,
    "one column off": WINE + 5 * SPREAD * (np.arange(13) == 3),
    "wider": CENTRE + 10 * (WINE - CENTRE),
    "narrower": CENTRE + (WINE - CENTRE) / 10,
}


@pytest.mark.parametrize("case", UNLIKE)
def test_rows_of_another_kind_are_unlike(case: str) -> None:
    found = diagnose(linear(4, WINE), UNLIKE[case])
    assert "unlike rows" in found.names
    assert "too much capacity" not in found.names  # such rows tell nothing of it


def test_new_rows_of_the_same_kind_are_alike() -> None:
    assert "unlike rows" not in diagnose(linear(4, WINE[:100]), WINE[100:]).names
    assert "unlike rows" not in diagnose(linear(), NEW).names


def test_constant_rows_and_unseen_columns_are_alike() -> None:
    same = np.ones((30, 3))
    assert diagnose(linear(2, same), same).names == ["dead units"]
    pixels = FIT[:300] / 16
    unseen = np.where(np.arange(64) == 20, np.nan, pixels)
    model = linear(8, pixels, objective="BCE()", max_iter=2)
    assert "unlike rows" not in diagnose(model, unseen).names


# ------------------------------------------------------------------ capacity


def test_default_fits_have_not_too_much_capacity() -> None:
    model = Autoencoder(8, random_state=0, max_iter=8).fit(FIT)
    assert 1 - model.score(NEW) > 1 - model._model.fitted.train_score
    assert not diagnose(model, NEW)


def test_pca_of_too_few_rows_has_too_much_capacity() -> None:
    found = figures(linear(20, FIT[:40]), NEW, "too much capacity")
    assert found["error"] > 2 * found["training error"]
    assert "too much capacity" not in diagnose(linear(20, FIT), NEW).names


def test_capacity_is_told_by_rows_that_were_not_trained_on() -> None:
    model = linear(20, FIT[:40])
    assert "too much capacity" not in diagnose(model, FIT[:40]).names


NETS = {"16": (16,), "32": (32,), "64, 64": (64, 64), "128 four times": (128,) * 4}


def test_capacity_learns_rows_by_heart() -> None:
    """500 digits, 16 units, nets that grow: the training error falls, and from some net on all else gets worse."""
    probes = []
    for seed in (0, 1):
        trained, unseen, probed, told = _growing_nets(seed)
        assert (np.diff(trained) < 0).all()
        assert unseen[-1] > 1.2 * min(unseen)
        assert told[:2] == [False, False]
        assert told[-1]
        probes.append(probed)
    probed = np.mean(probes, 0)  # a probe's accuracy on one split of the rows has a standard error of about 0.01
    assert probed[-1] < max(probed) - 0.02


def _growing_nets(seed: int) -> tuple[list[float], list[float], list[float], list[bool]]:
    """Unexplained variance of training and of other rows, a probe's accuracy, and whether `diagnose` tells."""
    X, y = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(X))
    old, new = order[:500], order[500:]
    trained, unseen, probed, told = [], [], [], []
    for widths in NETS.values():
        net = {"hidden_layer_sizes": widths, "linear_path": False, "start": "random", "solver": "descend"}
        long = {"early_stopping": False, "max_iter": 80, "learning_rate_init": 5e-3, "random_state": seed}
        model = Autoencoder(16, **net, **long).fit(X[old])
        trained.append(1 - model.score(X[old]))
        unseen.append(1 - model.score(X[new]))
        probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
        probed.append(probe.fit(model.transform(X[old]), y[old]).score(model.transform(X[new]), y[new]))
        told.append("too much capacity" in diagnose(model, X[new]).names)
    print(f"unexplained: training {np.round(trained, 4)}, held out {np.round(unseen, 4)}; probe {np.round(probed, 4)}")
    return trained, unseen, probed, told


# ------------------------------------------------------------------ the warning before the fit

NOT_HELD = {
    "plain": {},
    "likelihood": {"objective": "Likelihood(Normal(0.5))"},
    "learned noise": {"objective": "Likelihood(Normal())"},
    "nested": {"objective": "Nested(MSE(), (2, 3))"},
    "two losses": {"objective": "MSE() + Huber()"},
    "a penalty of no weight": {"objective": "MSE() + 0.0 * L1()"},
    "drawn": {"code_activation": "Sample()"},
    "rectified": {"code_activation": "ReLU()"},
}
HELD = {
    "L1": {"objective": "MSE() + 0.01 * L1()"},
    "prior": {"objective": "Likelihood(Normal(0.5)) + Prior(Laplace(0.1))"},
    "variational": {"objective": "Likelihood(Normal(0.5)) + ToNormal()", "code_activation": "Sample()"},
    "grows": {"objective": "MSE() + Warmup(0.01, 10) * L1()"},
    "noise": {"corruption": "Gaussian(0.5)"},
    "masked": {"corruption": "Mask(0.3)"},
    "sparse": {"code_activation": "TopK(3)"},
}


@pytest.mark.parametrize("case", NOT_HELD)
@pytest.mark.parametrize("K", [13, 20])
def test_a_wide_code_that_nothing_holds_back_is_warned_of(case: str, K: int) -> None:
    with pytest.warns(UserWarning, match=IDENTITY):
        linear(K, WINE, max_iter=1, **NOT_HELD[case])


@pytest.mark.parametrize("case", HELD)
def test_a_wide_code_that_is_held_back_is_not(case: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        linear(20, WINE, max_iter=1, **HELD[case])


@pytest.mark.parametrize("case", NOT_HELD)
def test_a_narrow_code_is_not(case: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        linear(12, WINE, max_iter=1, **NOT_HELD[case])


def test_penalties_are_the_terms_that_count() -> None:
    objective = parse("MSE() + 0.1 * L1() + 0 * L2() + Warmup(0.1, 10) * StudentT()")
    assert [repr(term) for term in auto.penalties(objective)] == ["L1()", "StudentT()"]
