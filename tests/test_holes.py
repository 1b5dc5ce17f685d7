"""NaN is an unseen cell, everywhere."""

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer

from retell import Autoencoder

DATA = {"digits": load_digits, "breast_cancer": load_breast_cancer}


def holed(X, seed, share=0.2):
    hidden = np.random.default_rng(seed).random(X.shape) < share
    return np.where(hidden, np.nan, X), hidden


@pytest.mark.parametrize("name", DATA)
@pytest.mark.filterwarnings("ignore:.*reached.*")  # IterativeImputer's own ten rounds
def test_completed_cells_are_as_good_as_an_iterative_imputers(name):
    X = DATA[name]().data
    rows, hidden = holed(X, 0)
    model = Autoencoder(random_state=0, max_iter=5).fit(rows)
    whole = model.reconstruct(rows, keep_seen=True)
    assert np.array_equal(whole[~hidden], X[~hidden])
    imputed = IterativeImputer(random_state=0, keep_empty_features=True).fit_transform(rows)
    for units in (lambda a: a, model.scaling_.to):
        error, other, mean = (
            ((units(a) - units(X))[hidden] ** 2).mean() for a in (whole, imputed, np.broadcast_to(model.mean_, X.shape))
        )
        assert error <= 1.10 * other
        assert error < 0.5 * mean


def test_a_network_trained_with_masks_completes_rows_itself():
    # two halves of a row are a nonlinear function of one number: a linear model can't tell one from the other
    t = np.random.default_rng(0).uniform(-3, 3, 2000)
    X = np.c_[np.cos(2 * t), np.sin(2 * t), np.cos(t), np.sin(t), t, t**2]
    model = Autoencoder(2, corruption="Mask(0.3)", random_state=0, max_iter=60).fit(X)
    assert model._model.fitted.filler == "network"
    rows, hidden = holed(X, 1)
    linear = model.scaling_.back(model._factors.complete(model.scaling_.to(rows)))
    error = ((model.reconstruct(rows, keep_seen=True) - X)[hidden] ** 2).mean()
    assert error < ((linear - X)[hidden] ** 2).mean()


def test_no_method_returns_nan_and_encoding_reads_the_centre():
    X = load_breast_cancer().data
    rows, _ = holed(X, 1)
    model = Autoencoder(4, random_state=0, max_iter=3).fit(rows)
    centred = np.where(np.isnan(rows), model.mean_, rows)
    # a cell at the centre is seen by the encoder as a hole is; rounding of mean - mean is all that may differ
    np.testing.assert_allclose(model.transform(rows), model.transform(centred), atol=1e-5)
    for result in (
        model.transform(rows),
        model.reconstruct(rows),
        model.reconstruct(rows, keep_seen=True),
        model.inverse_transform(model.transform(rows)),
        model.score_samples(rows),
        model.score(rows),
    ):
        assert np.isfinite(result).all()


def test_a_column_and_a_row_without_any_value():
    rows, _ = holed(load_digits().data[:200], 2)
    rows[:, 3] = np.nan  # documented: mean 0, factor 1, completed with 0
    rows[5] = np.nan
    with pytest.warns(UserWarning, match="1 of the 64 columns hold no value"):
        model = Autoencoder(5, random_state=0, max_iter=3).fit(rows)
    whole = model.reconstruct(rows, keep_seen=True)
    assert np.isfinite(whole).all()
    assert np.allclose(whole[:, 3], 0)
    np.testing.assert_allclose(whole[5], model.mean_, atol=1e-8)


def test_holes_do_not_enter_the_loss():
    X = load_digits().data
    rows, hidden = holed(X, 3)
    model = Autoencoder(6, random_state=0, max_iter=3).fit(X)
    other = np.where(hidden, np.nan, X)
    # the value behind a hole can be anything: the score reads seen cells only
    x, x_hat = model.scaling_.to(other), model.scaling_.to(model.reconstruct(other))
    mean = np.nanmean(x, 0)
    expected = 1 - np.nansum((x - x_hat) ** 2) / np.nansum((x - mean) ** 2)
    assert model.score(rows) == pytest.approx(expected, rel=1e-6)
