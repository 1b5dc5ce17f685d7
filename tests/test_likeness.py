"""A warning where rows do not look like those of the fit, and none where they do."""

import warnings

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine
from sklearn.model_selection import train_test_split

from retell import Autoencoder, load
from retell.likeness import norms_of, warn_unlike
from retell.model_file import Fitted

TABLES = {
    "wine": load_wine(return_X_y=True),
    "breast cancer": load_breast_cancer(return_X_y=True),
    "digits": load_digits(return_X_y=True),
    "iris": load_iris(return_X_y=True),
}
SAID = "these rows do not look like those of the fit"


def fitted(X, **given):
    K = min(4, X.shape[1] - 1)
    return Autoencoder(**{"n_components": K, "hidden_layer_sizes": (), "random_state": 0, **given}).fit(X)


def quiet(model, X):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.transform(X)
        model.reconstruct(X)
        model.score(X)


def warned(model, X):
    for method in (model.transform, model.reconstruct, model.score):
        with pytest.warns(UserWarning, match=SAID) as caught:
            method(X)
        assert len(caught) == 1


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("scale", ["auto", "standard", None])
def test_ordinary_splits_are_alike(table, scale):
    X, _ = TABLES[table]
    for seed in range(20):
        a, b = train_test_split(X, test_size=0.4, random_state=seed)
        quiet(fitted(a, scale=scale), b)
        quiet(fitted(a[:25], scale=scale, early_stopping=False), b)  # of few rows not much is known
        quiet(fitted(a[:3], scale=scale), b)


@pytest.mark.parametrize("table", TABLES)
def test_one_class_of_rows_is_alike(table):
    X, y = TABLES[table]
    model = fitted(X)
    for label in np.unique(y):
        quiet(model, X[y == label])


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("scale", ["auto", "standard", None])
def test_rows_in_other_units_or_places_are_unlike(table, scale):
    X, _ = TABLES[table]
    model = fitted(X[::2], scale=scale)
    X = X[1::2]
    for other in (100 * X, -10 * X, X + 10 * X.std(0), X - 10 * X.std(0), X + 10 * X.std()):
        warned(model, other)
        warned(model, other[:32])


@pytest.mark.parametrize("table", ["wine", "breast cancer", "iris"])
def test_standardised_rows_are_unlike_raw_ones_and_the_other_way_round(table):
    X, _ = TABLES[table]
    Z = (X - X.mean(0)) / X.std(0)
    warned(fitted(Z), X)
    warned(fitted(X), Z)


def test_rows_that_are_too_small_are_unlike():
    X = np.random.default_rng(0).normal(size=(400, 100))
    warned(fitted(X), X / 100)
    quiet(fitted(X), X / 2)


def test_strange_rows_among_others_are_no_news():
    X, _ = TABLES["wine"]
    model = fitted(X)
    mixed = X.copy()
    mixed[::3] *= 100
    assert np.isfinite(model.transform(mixed)).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.transform(100 * X[:31])
        model.score_samples(100 * X)


def test_heavy_tails_are_no_news():
    X = np.random.default_rng(0).standard_t(2, size=(4000, 10))
    quiet(fitted(X[:2000]), X[2000:])


def test_holes_are_no_news():
    X, _ = TABLES["wine"]
    holed = np.where(np.random.default_rng(0).random(X.shape) < 0.3, np.nan, X)
    holed[5] = np.nan
    model = fitted(holed)
    quiet(model, holed)
    model.transform(np.full((40, X.shape[1]), np.nan))
    warned(model, 100 * holed)


def test_infinities_are_refused_and_not_only_warned_of():
    X, _ = TABLES["wine"]
    model = fitted(X)
    bad = X.copy()
    bad[7, 3] = np.inf
    with pytest.raises(ValueError, match="row 7, column 3"):
        model.transform(bad)


@pytest.mark.parametrize("objective", ["MSE()", "BCE()"])
def test_it_is_kept_with_the_model(objective, tmp_path):
    X = TABLES["digits"][0] / 16
    model = fitted(X, objective=objective, max_iter=2)
    model.save(tmp_path / "model")
    again = load(tmp_path / "model")
    assert again._model.fitted.norms == model._model.fitted.norms
    quiet(again, X[:100])
    warned(again, 100 * X)


def test_a_model_that_does_not_know_says_nothing():
    X, _ = TABLES["wine"]
    model = fitted(X)
    assert Fitted.__struct_defaults__  # models of before have no such field
    model._model.fitted.norms = None
    quiet(model, 100 * X)


def test_constant_rows_are_like_themselves():
    X = np.ones((40, 3))
    quiet(fitted(X), X)


def test_three_numbers_are_as_defined():
    draw = np.random.default_rng(0)
    x, centre = draw.normal(size=(500, 7)), draw.normal(size=7)
    x[draw.random(x.shape) < 0.2] = np.nan
    r = np.sqrt(np.nanmean((x - centre) ** 2, axis=1))
    expected = (np.quantile(r, 0.01), np.quantile(r, 0.99), np.sqrt((r**2).mean()))
    np.testing.assert_allclose(norms_of(x, centre), expected, rtol=1e-12)


def test_some_rows_of_many_are_looked_at(tmp_path):
    X = np.random.default_rng(0).normal(size=(100_000, 20))
    model = fitted(X[:1000])
    file = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", float, X.shape)
    file[:] = X + 20
    with pytest.warns(UserWarning, match=r"19\.\d times the norm"):
        warn_unlike(file, model.scaling_, model._model.fitted.norms)


def test_the_sentence_says_how_far():
    X, _ = TABLES["wine"]
    with pytest.warns(UserWarning, match=r"most of them have 9\.\d+ times the norm; give them in the units of the fit"):
        fitted(X).transform(X + 10 * X.std(0))
    X = np.random.default_rng(0).normal(size=(400, 3))
    X[::20] *= 100  # whose norms are the range's end
    with pytest.warns(UserWarning, match=r"their columns' medians are \d\.\d+ spreads away"):
        fitted(X).transform(X + 5 * X.std(0))
