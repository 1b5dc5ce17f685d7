"""Columns are turned while a large dictionary learns: an orthogonal map that the finished codec knows nothing of."""

import numpy as np
import pytest
import torch

from retell import Autoencoder, auto
from retell.turning import AS_THEY_ARE, Turning


def axes_of(D, r, seed=0):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(D, r)))[0]


@pytest.mark.parametrize(("D", "r"), [(1, 1), (2, 1), (7, 3), (40, 32), (5, 5)])
def test_orthogonal_and_onto_the_first_columns(D, r):
    axes, x = axes_of(D, r), np.random.default_rng(1).normal(size=(20, D))
    turning = Turning.onto(axes)
    np.testing.assert_allclose(np.abs(turning(axes.T)), np.eye(r, D), atol=1e-12)
    np.testing.assert_allclose(turning(np.eye(D)) @ turning(np.eye(D)).T, np.eye(D), atol=1e-12)
    np.testing.assert_allclose(turning.back(turning(x)), x, atol=1e-12)
    np.testing.assert_allclose(turning.turn_(torch.from_numpy(x.copy())), turning(x), atol=1e-12)


def test_axes_that_are_columns_already():
    x = np.random.default_rng(0).normal(size=(3, 4))
    np.testing.assert_allclose(np.abs(Turning.onto(np.eye(4, 2))(x)), np.abs(x), atol=1e-12)


@pytest.fixture
def rows():
    """Of columns that vary together."""
    draw = np.random.default_rng(0)
    return (draw.laplace(size=(3000, 16)) @ (draw.normal(size=(16, 16)) * np.geomspace(1, 0.02, 16)[:, None])).astype(
        np.float32
    )


@pytest.fixture
def large(monkeypatch):
    """Every sparse dictionary is one that many rows share out."""
    monkeypatch.setattr(auto, "LARGE", 0)


def begun(rows, code="TopK(4)", **given):
    model = Autoencoder(64, code_activation=code, precision="float64", random_state=0, **given)
    return model._begin(*model._settings(), rows, None)


@pytest.mark.usefixtures("large")
def test_a_codec_is_the_same_in_turned_columns(rows, monkeypatch):
    plan = begun(rows).plan
    monkeypatch.setattr("retell.plan.Plan.turn", lambda self, known: None)
    plain, some = begun(rows).plan, np.arange(100)
    turning = plan.survey.turning
    assert turning
    assert plain.survey.turning is AS_THEY_ARE
    x, own = plan.rows(some)[:], plain.rows(some)[:]
    np.testing.assert_allclose(x, turning(own.numpy()), atol=1e-12)
    np.testing.assert_allclose(x[0], plan.survey.some(some[:1])[0], atol=1e-12)
    with torch.no_grad():
        np.testing.assert_allclose(plan.codec(x).h, plain.codec(own).h, atol=1e-10)
        np.testing.assert_allclose(plan.codec(x).x_hat, turning(plain.codec(own).x_hat.numpy()), atol=1e-10)
    plan.turn_back()
    for ours, theirs in zip(plan.codec.parameters(), plain.codec.parameters(), strict=True):
        np.testing.assert_allclose(ours.detach(), theirs.detach(), atol=1e-12)


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("solver", ["sparse", "descend"])
@pytest.mark.parametrize("code", ["TopK(4)", "BatchTopK(4)"])
def test_a_fitted_model_reads_rows_as_they_are(rows, code, solver):
    model = Autoencoder(64, code_activation=code, solver=solver, max_iter=3, random_state=0)
    last = list(model.fit_epochs(rows))[-1]
    held_out = np.flatnonzero(~np.isin(np.arange(len(rows)), begun(rows, code).plan.train))
    if code == "TopK(4)":  # which is the same between epochs and after them
        assert last.improved
        assert model.score(rows[held_out]) == pytest.approx(last.score, abs=1e-5)
    assert model.score(rows) > 0.8
    np.testing.assert_allclose(model.mean_, rows.mean(0), atol=1e-4)


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize(
    "given",
    [
        {"constraint": "NonNegative()"},
        {"corruption": "Gaussian(0.1)"},
        {"objective": "Huber()"},
        {"objective": "MSE() + 1e-3 * L2()"},
        {"tied": True, "constraint": "Free()"},
    ],
)
def test_columns_that_mean_something_are_not_turned(rows, given):
    assert begun(rows).plan.survey.turning
    assert begun(rows, **given).plan.survey.turning is AS_THEY_ARE


@pytest.mark.usefixtures("large")
def test_rows_with_holes_are_not_turned(rows):
    rows[0, 0] = np.nan
    assert begun(rows).plan.survey.turning is AS_THEY_ARE


@pytest.mark.usefixtures("large")
def test_less_is_left_where_columns_vary_together(monkeypatch):
    draw = np.random.default_rng(0)
    parts = draw.normal(size=(200, 48)) / 48**0.5
    x = (draw.random((4000, 200)) < 0.03) * draw.exponential(size=(4000, 200)) @ parts
    x += 5 * draw.normal(size=(4000, 3)) @ draw.normal(size=(3, 48)) / 48**0.5

    def left(seed):
        model = Autoencoder(256, code_activation="BatchTopK(8)", max_iter=8, random_state=seed)
        return 1 - model.fit(x.astype(np.float32)).score(x)

    turned = [left(seed) for seed in range(2)]
    monkeypatch.setattr("retell.plan.Plan.turn", lambda self, known: None)
    assert np.mean(turned) < 0.95 * np.mean([left(seed) for seed in range(2)])
