"""A default fit starts as PCA and only moves where held-out rows say that it gets better."""

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.decomposition import PCA

import retell.guard
from retell import Autoencoder, auto
from retell.descend import Descent
from retell.report.summary import facts


def halves(load, seed=0):
    X = load().data
    order = np.random.default_rng(seed).permutation(len(X))
    cut = round(0.7 * len(X))
    train, test = X[order[:cut]], X[order[cut:]]
    spread = np.where(train.std(0) > 0, train.std(0), 1)
    return (train - train.mean(0)) / spread, (test - train.mean(0)) / spread


def error(test, made):
    return ((test - made) ** 2).sum(1).mean()


@pytest.mark.parametrize("load", [load_wine, load_breast_cancer, load_digits])
def test_never_worse_than_pca_on_held_out_rows(load):
    train, test = halves(load)
    for K in {2, train.shape[1] // 4}:
        pca = PCA(K).fit(train)
        linear = error(test, pca.inverse_transform(pca.transform(test)))
        model = Autoencoder(K, random_state=0).fit(train)
        assert error(test, model.reconstruct(test)) <= (1.03 if len(train) < 210 else 1.01) * linear


def test_better_than_pca_where_rows_are_many():
    train, test = halves(load_digits)
    pca = PCA(4).fit(train)
    linear = error(test, pca.inverse_transform(pca.transform(test)))
    model = Autoencoder(4, random_state=0).fit(train)
    assert error(test, model.reconstruct(test)) < 0.7 * linear
    assert model.validation_scores_[-1] > model.pca_score_
    assert (
        model.history_["held-out MSE"][model.best_iter_ - 1] == model.best_loss_ == min(model.history_["held-out MSE"])
    )


def test_noise_without_structure_is_left_to_pca():
    X = np.random.default_rng(0).normal(size=(400, 10))
    model = Autoencoder(3, random_state=0).fit(X)
    pca = PCA(3).fit(X)
    fresh = np.random.default_rng(1).normal(size=(400, 10))
    linear = error(fresh, pca.inverse_transform(pca.transform(fresh)))
    assert error(fresh, model.reconstruct(fresh)) == pytest.approx(linear, rel=1e-5)
    assert model.best_iter_ == 0
    assert facts(model)["trained"] == f"{model.n_iter_} epochs, none better than the start, which was kept"


def test_far_outside_the_training_rows_the_net_goes_on_as_its_linear_path():
    train, _ = halves(load_digits)
    model = Autoencoder(4, random_state=0).fit(train)
    far = 1e4 * train[:1]
    further = model.reconstruct(np.r_[far, 2 * far, 3 * far])
    # beyond the clip everything is linear: equal steps make equal differences
    np.testing.assert_allclose(further[1] - further[0], further[2] - further[1], rtol=1e-2, atol=1.0)


@pytest.mark.parametrize("rate", [0.3, 0.5, 1.0])
def test_steps_that_are_too_long_become_shorter(rate):
    """An epoch that loses half of what was explained is taken back: rates thirty times too large still learn."""
    train, _ = halves(load_digits)
    model = Autoencoder(8, learning_rate_init=rate, max_iter=20, random_state=0).fit(train)
    scores = np.array(model.validation_scores_)
    best = np.maximum.accumulate(np.r_[model.pca_score_, scores])[:-1]
    astray = np.flatnonzero(scores < best / 2)
    assert len(astray), "no step was too long"
    assert scores[-1] == scores.max() > model.pca_score_ + 0.05


@pytest.mark.parametrize("rate", [0.3, 0.5, 1.0])
def test_steps_that_are_too_long_become_shorter_where_no_rows_are_held_out(rate):
    train, _ = halves(load_digits)
    model = Autoencoder(8, learning_rate_init=rate, max_iter=20, early_stopping=False, random_state=0).fit(train)
    assert model.score(train) > model.pca_score_ + 0.02
    assert model.best_iter_ == model.n_iter_, "the last epoch was the one to keep"


def each_epoch_on_all(model, X):
    for _ in range(20):
        model.partial_fit(X)


def a_few_rows_a_call(model, X):
    for i in range(20 * len(X) // 100):
        model.partial_fit(X[np.arange(100 * i, 100 * (i + 1)) % len(X)])


def a_stream_of_sections(model, X):
    model.fit_stream(X for _ in range(20))


@pytest.mark.parametrize("rate", [0.3, 1.0, 1e9])
@pytest.mark.parametrize("learn", [each_epoch_on_all, a_few_rows_a_call, a_stream_of_sections])
def test_rows_that_lead_astray_have_taught_nothing_and_are_told(learn, rate, monkeypatch):
    """Where rows come once: what the fit knew before them is kept, whatever their steps would have made of it."""
    train, _ = halves(load_digits)
    monkeypatch.setattr(retell.streaming, "SECTION", 4 * 64 * 900)  # an epoch or so, in float32
    model = Autoencoder(8, learning_rate_init=rate, random_state=0)
    with pytest.warns(UserWarning, match=f"lower learning_rate_init, which was {rate:g}".replace("+", ".")):
        learn(model, train.astype(np.float32))
    assert model.score(train) > model.pca_score_ - 0.1 * (learn is a_few_rows_a_call) - 0.01


def test_patience_begins_anew_with_shorter_steps():
    """From a rate far too large it takes more epochs to come to a good one than a fit has patience."""
    train, _ = halves(load_digits)
    model = Autoencoder(8, learning_rate_init=3.0, n_iter_no_change=2, max_iter=25, random_state=0).fit(train)
    assert max(model.validation_scores_[:3]) < 0
    assert max(model.validation_scores_) > model.pca_score_ + 0.1


@pytest.mark.parametrize(
    ("given", "solvers"),
    # from PCA a net starts where gradients are nothing but rounding, of which Adam makes steps
    [({"learning_rate_init": 1.0, "start": "random"}, ["dense"]),
     ({"learning_rate_init": 0.4, "early_stopping": False, "hidden_layer_sizes": (), "code_activation": "ReLU()"},
      ["dense"]),
     ({"learning_rate_init": 0.4, "code_activation": "TopK(3)", "hidden_layer_sizes": ()}, ["dense", "sparse"])],
    ids=str,
)  # fmt: skip
def test_every_solver_goes_back_alike(given, solvers, monkeypatch):
    times, go_back = [], Descent._go_back
    monkeypatch.setattr(retell.guard, "ASTRAY", -1.0)  # whenever an epoch is not the best
    monkeypatch.setattr(Descent, "_go_back", lambda self: (times.append(self.epoch), go_back(self)))
    X, few = load_wine().data, {"max_iter": 8, "random_state": 0, "precision": "float64"}
    slow = Autoencoder(8, solver="descend", **few, **given).fit(X)
    first = times.copy()
    assert first
    for solver in solvers:
        other = Autoencoder(8, solver=solver, **few, **given).fit(X)
        np.testing.assert_allclose(other.loss_curve_, slow.loss_curve_, rtol=1e-10)
    assert times == first * (1 + len(solvers))


def test_diverging_training_warns_and_keeps_what_was_good():
    train, test = halves(load_breast_cancer)
    model = Autoencoder(4, random_state=0, learning_rate_init=1e18)
    with pytest.warns(UserWarning, match="diverged"):
        model.fit(train)
    pca = PCA(4).fit(train)
    linear = error(test, pca.inverse_transform(pca.transform(test)))
    assert error(test, model.reconstruct(test)) <= 1.01 * linear


def test_counts_of_which_few_are_huge_are_told_to_suit_another_loss():
    rng = np.random.default_rng(0)
    X = rng.poisson(rng.gamma(2.0, size=(300, 1)) * rng.gamma(2.0, size=(300, 20)))
    X[::17] *= 50
    with pytest.warns(UserWarning, match=r"farther from the rows than .*: R² is -.* that of PCA 0\..*np\.log1p"):
        Autoencoder(3, objective="Poisson()", max_iter=3, random_state=0).fit(X)


def test_max_time_stops_the_fit_and_is_recorded(tmp_path):
    model = Autoencoder(4, random_state=0, max_time=1e-6).fit(load_digits().data)
    assert model.n_iter_ == len(model.loss_curve_) == len(model.validation_scores_) == 1
    assert facts(model)["trained"].startswith("1 epoch, ended by max_time = 1e-06 s")
    model.save(tmp_path / "m")
    assert 'stopped_by = "max_time"' in (tmp_path / "m" / "model.toml").read_text()


def test_biases_hurry_where_steps_are_few():
    way = auto.Way(batch=4096, rate=1e-2, steps=500, least=10, most=400, bias=8.0)
    assert [way.bias_rate(steps) for steps in (1, 200, 800, 20_000)] == [8.0, 8.0, 4.0, 1.0]


def test_units_of_no_use_do_not_crowd_out_the_others(monkeypatch):
    """Heavy-tailed rows of 64 sources have nothing for most of 1,024 units to say."""
    monkeypatch.setattr(auto, "LARGE", 1)
    draw = np.random.default_rng(0)
    mixing = draw.normal(size=(64, 64)) * np.geomspace(1, 0.02, 64)[:, None]
    X, new = ((draw.laplace(size=(n, 64)) @ mixing).astype(np.float32) for n in (30_000, 2000))
    model = Autoencoder(1024, code_activation="BatchTopK(8)", max_iter=10, early_stopping=False, random_state=0)
    assert model.fit(X).score(new) > 0.85
