"""What a model knows of rows that come a few at a time."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

import retell
from retell import Autoencoder, auto
from retell.density import Density
from retell.rows.sample import Sample
from retell.seeds import SAMPLE, generator

RNG = np.random.RandomState(0)
MIX = RNG.randn(3, 12)
ROWS = RNG.randn(600, 3) @ MIX + 0.1 * RNG.randn(600, 12)
STRANGE = RNG.randn(60, 3) @ MIX + 0.5 * RNG.randn(60, 12)


def make(setting="hidden", **given):
    hidden = {"hidden": (16,), "linear": ()}[setting]
    return Autoencoder(3, **{"hidden_layer_sizes": hidden, "max_iter": 5, "random_state": 0, **given})


def tells(model):
    """How well the strange rows are told from others that were fitted to."""
    both = np.concatenate([ROWS, STRANGE])
    return roc_auc_score(np.arange(len(both)) >= len(ROWS), -model.score_samples(both))


@pytest.mark.parametrize("setting", ["hidden", "linear"])
@pytest.mark.parametrize("n", [1, 2, 5, 20])
def test_a_few_rows_do_not_undo_what_a_fit_knows_of_all(setting, n):
    model = make(setting).fit(ROWS)
    before = tells(model)
    for i in range(3):
        model.partial_fit(ROWS[i * n : (i + 1) * n])
    assert before > 0.99
    assert tells(model) > 0.95


def test_the_density_of_many_calls_is_that_of_all_their_rows():
    model = make()
    for some in np.split(ROWS, 60):
        model.partial_fit(some)
    last = Density.fit(*residuals_and_codes(model, ROWS[-10:]))
    whole = Density.fit(*residuals_and_codes(model, ROWS))
    mine = model.density_
    for ours, right, wrong in (
        (mine.noise, whole.noise, last.noise),
        (mine.covariance, whole.covariance, last.covariance),
    ):
        np.testing.assert_allclose(ours, right, rtol=1e-6)
        assert not np.allclose(wrong, right, rtol=0.2)


def residuals_and_codes(model, rows):
    x = model.scaling_.to(rows)
    h = model.transform(rows)
    return x - model.scaling_.to(model.reconstruct(rows)), h


def test_a_fit_counts_with_the_number_of_its_rows():
    model = make("linear").fit(ROWS)
    before, added = model.density_, 100 * ROWS[:300]
    now = Density.fit(*residuals_and_codes(model.partial_fit(added), added))
    share = 300 / 900
    np.testing.assert_allclose(model.density_.noise, (1 - share) * before.noise + share * now.noise, rtol=1e-6)
    np.testing.assert_allclose(model.density_.code_mean, (1 - share) * before.code_mean + share * now.code_mean)


@pytest.mark.parametrize("n_units", [4, 1030])
def test_joined_densities_are_that_of_both_rows(n_units):
    h, residuals = RNG.randn(300, n_units) + np.arange(300)[:, None] // 200, RNG.randn(300, 2)
    one, other = (Density.fit(residuals[some], h[some]) for some in (np.s_[:200], np.s_[200:]))
    both, joined = Density.fit(residuals, h), one.joined(other, 1 / 3)
    for name in ("noise", "code_mean", "covariance"):
        np.testing.assert_allclose(getattr(joined, name), getattr(both, name), rtol=1e-8, atol=1e-8)


def test_curves_and_counts_go_on_from_a_fit(tmp_path):
    model = make(objective="MSE() + 0.01 * L1()").fit(ROWS)
    n, curve, scores, history = model.n_iter_, model.loss_curve_, model.validation_scores_, model.history_
    model.partial_fit(ROWS).partial_fit(ROWS)
    assert model.n_iter_ == n + 2
    assert model.loss_curve_[:n] == curve
    assert len(model.loss_curve_) == n + 2
    assert model.validation_scores_ == scores
    assert model.history_["L1"][:n] == history["L1"]
    assert np.isfinite(model.history_["L1"]).all()
    held_out = model.history_["held-out L1"]
    assert held_out[:n] == history["held-out L1"]
    assert np.isnan(held_out[n:]).all()
    model.save(tmp_path / "model")
    loaded = retell.load(tmp_path / "model").partial_fit(ROWS)
    assert loaded.n_iter_ == n + 3


def test_the_yardstick_is_pca_of_what_came():
    model = make("linear")
    for some in np.split(ROWS, 20):
        model.partial_fit(some)
    x = model.scaling_.to(ROWS)
    squares = np.linalg.svd(x - x.mean(0), compute_uv=False) ** 2
    assert model.pca_score_ == pytest.approx(squares[:3].sum() / squares.sum(), abs=2e-3)


def test_holes_may_come_later():
    model, holed = make().partial_fit(ROWS[:100]), ROWS[100:200].copy()
    holed[::3, 2] = np.nan
    model.partial_fit(holed)
    assert np.isfinite([model.pca_score_, *model.score_samples(holed)]).all()


def test_a_sample_is_even():
    counts = np.zeros(40)
    for seed in range(400):
        sample = Sample(10, generator(seed, SAMPLE))
        for some in np.split(np.arange(40.0)[:, None], [1, 7, 25]):
            sample.add(some)
        assert sample.count == 40
        assert len(sample.rows) == 10
        assert (np.diff(sample.rows[:, 0]) > 0).all()
        counts[sample.rows[:, 0].astype(int)] += 1
    assert abs(counts - 100).max() < 4 * np.sqrt(400 * 0.25 * 0.75)


def active(model, X):
    return (model.transform(X) != 0).sum(1).mean()


@pytest.mark.parametrize(("code", "objective"), [
    ("TopK(6)", "MSE()"), ("BatchTopK(6)", "MSE()"),
    ("ReLU()", "MSE() + 0.01 * L1()"), ("JumpReLU()", "MSE() + 0.01 * L0()"),
])  # fmt: skip
def test_what_a_target_has_found_goes_on_and_is_saved(code, objective, tmp_path):
    X = np.random.default_rng(0).normal(size=(600, 8)) @ np.random.default_rng(1).normal(size=(8, 16))
    model = Autoencoder(32, code_activation=code, objective=objective, target_l0=3, max_iter=10, random_state=0).fit(X)
    model.set_params(target_l0=None, objective=model.objective_)
    for _ in range(2):
        model.partial_fit(X)
        assert active(model, X) == pytest.approx(3, rel=0.35)
        model.save(tmp_path / "model")
        again = retell.load(tmp_path / "model")
        np.testing.assert_array_equal(again.transform(X), model.transform(X))
        again.partial_fit(X)
        np.testing.assert_allclose(active(again, X), active(model, X), rtol=0.35)


@pytest.mark.parametrize("changed", [
    {"n_components": 4}, {"code_activation": "TopK(2)"}, {"code_activation": "ReLU()"}, {"tied": True},
    {"linear_path": False}, {"hidden_layer_sizes": (5,)}, {"scale": None}, {"precision": "float64"},
])  # fmt: skip
def test_a_model_keeps_its_shape(changed):
    first = {"code_activation": "TopK(3)", "hidden_layer_sizes": (), "random_state": 0, "max_iter": 1}
    for model in (make(**first).fit(ROWS), make(**first).partial_fit(ROWS)):
        (name,), before = changed, model.transform(ROWS)
        was = model.get_params()[name]
        with pytest.raises(ValueError, match=f"^{name}=.*is not what this model has.*goes on with this one"):
            model.set_params(**changed).partial_fit(ROWS)
        np.testing.assert_array_equal(model.transform(ROWS), before)
        model.set_params(**{name: was}).partial_fit(ROWS)


def test_a_changed_rate_counts_from_the_next_call_on():
    models = [make(random_state=0).partial_fit(ROWS).set_params(learning_rate_init=rate) for rate in (1e-6, 3e-2)]
    before = models[0].reconstruct(ROWS)
    moved = [np.abs(model.partial_fit(ROWS).reconstruct(ROWS) - before).max() for model in models]
    assert moved[0] < 0.01 * moved[1]
    assert [(model.n_iter_, len(model.loss_curve_)) for model in models] == [(2, 2), (2, 2)]


@pytest.mark.parametrize("large", [False, True])
def test_a_call_that_diverges_leaves_the_model_as_it_was(large, monkeypatch):
    monkeypatch.setattr(auto, "LARGE", 1 if large else auto.LARGE)
    X = np.random.default_rng(0).normal(size=(2000, 16)).astype(np.float32)
    model = Autoencoder(256, code_activation="TopK(4)", learning_rate_init=1e30, random_state=0)
    with pytest.warns(UserWarning, match="diverged|taught nothing"):
        model.partial_fit(X)
    assert np.isfinite(model.transform(X)).all()
    assert model.score(X) > -1
