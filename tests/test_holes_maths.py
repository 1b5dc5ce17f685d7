"""Scaling, metrics, densities and factors against NumPy, scikit-learn and SciPy."""

import numpy as np
import pytest
from scipy import stats
from sklearn.datasets import load_digits, load_wine
from sklearn.metrics import r2_score

from retell import Autoencoder
from retell.density import Density
from retell.factors import Factors
from retell.metrics import explained_variance, row_errors
from retell.scaling import Scaling

HOLE = np.nan


def draw(n=200, d=5, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 2)) @ rng.normal(size=(2, d)) + 0.5 * rng.normal(size=(n, d))


def punch(X, share=0.2, seed=1):
    return np.where(np.random.default_rng(seed).random(X.shape) < share, HOLE, X)


# --- scaling


@pytest.mark.parametrize("scale", ["auto", "standard", None])
@pytest.mark.parametrize("holes", [False, True])
def test_scaling_centres_and_undoes_itself(scale, holes):
    X = draw() * [1, 10, 100, 1e-3, 5] + [0, 1, -7, 50, 1e4]
    X = punch(X) if holes else X
    scaling = Scaling.fit(X, scale)
    x = scaling.to(X)
    np.testing.assert_allclose(np.nanmean(x, 0), 0, atol=1e-9)
    np.testing.assert_allclose(scaling.shift, np.nanmean(X, 0), rtol=1e-12)
    np.testing.assert_allclose(scaling.back(x), X, rtol=1e-12)
    np.testing.assert_array_equal(np.isnan(x), np.isnan(X))
    np.testing.assert_allclose(scaling.factor, np.ones(5) if scale is None else np.nanstd(X, 0), rtol=1e-10)


def test_auto_keeps_the_proportions_of_images_and_not_those_of_tables():
    images, table = load_digits().data, load_wine().data
    factor = Scaling.fit(images, "auto").factor
    assert len(set(factor)) == 1
    spread = images.std(0)
    assert factor[0] == pytest.approx(np.sqrt((spread[spread > 0] ** 2).mean()), rel=1e-12)
    np.testing.assert_allclose(Scaling.fit(table, "auto").factor, table.std(0), rtol=1e-12)
    # the rule's border: ten times the median
    for wide, common in [(9.9, True), (10.1, False)]:
        X = stats.zscore(draw(d=3), 0) * [1, 1, wide]
        assert (len({f"{f:.9g}" for f in Scaling.fit(X, "auto").factor}) == 1) == common


@pytest.mark.parametrize("scale", ["auto", "standard", None])
def test_constant_and_empty_columns_have_factor_one(scale):
    X = draw(d=4) * [1, 100, 1, 1]
    X[:, 2], X[:, 3] = 0.1, HOLE
    X[::2, 2] = 0.3 - 0.2  # another 0.1: what differs by rounding only is constant
    scaling = Scaling.fit(X, scale)
    assert (scaling.factor[2:] == 1).all()
    assert scaling.shift[2] == pytest.approx(0.1, rel=1e-15)
    assert scaling.shift[3] == 0
    assert (abs(scaling.to(X)[:, 2]) < 1e-15).all()


def test_bounded_rows_stay_as_they_are():
    X = punch(np.random.default_rng(0).random((50, 3)))
    scaling = Scaling.fit(X, "standard", bounded=True)
    np.testing.assert_array_equal(scaling.to(X), X)
    np.testing.assert_allclose(scaling.centre, np.nanmean(X, 0), rtol=1e-12)


def test_huge_spreads_warn_and_scale():
    X = stats.zscore(draw(d=3), 0) * [1, 1, 1e300]
    with pytest.warns(UserWarning, match="column 2 has a standard deviation of 1e\\+300"):
        scaling = Scaling.fit(X, "auto")
    np.testing.assert_allclose(scaling.factor, [1, 1, 1e300], rtol=1e-12)
    np.testing.assert_allclose(scaling.to(X).std(0), 1, rtol=1e-12)
    small = Scaling.fit(X[:, :2] * 1e-200, "standard")  # whose squares underflow
    np.testing.assert_allclose(small.factor, 1e-200, rtol=1e-12)


# --- metrics


def test_explained_variance_is_r2():
    X = draw()
    made = X + 0.3 * draw(seed=2)
    assert explained_variance(X, made) == pytest.approx(r2_score(X, made, multioutput="variance_weighted"), rel=1e-12)
    assert explained_variance(X, X) == 1
    assert explained_variance(X, np.broadcast_to(X.mean(0), X.shape)) == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(row_errors(X, made), ((X - made) ** 2).sum(1), rtol=1e-14)


def test_metrics_leave_unseen_cells_out():
    X = punch(draw())
    made = np.nan_to_num(X) + 0.3 * draw(seed=2)
    parts = [(X[~np.isnan(X[:, j]), j], made[~np.isnan(X[:, j]), j]) for j in range(5)]
    error = sum(((x - m) ** 2).sum() for x, m in parts)
    total = sum(((x - x.mean()) ** 2).sum() for x, _ in parts)
    assert explained_variance(X, made) == pytest.approx(1 - error / total, rel=1e-12)
    assert row_errors(X, made).sum() == pytest.approx(error, rel=1e-12)


def test_rows_that_do_not_vary_are_reproduced_or_not():
    X = np.ones((4, 2))
    assert explained_variance(X, X) == 1
    assert explained_variance(X, X + 1e-3) == 0


# --- densities


def test_density_is_scipys():
    rng = np.random.default_rng(0)
    residuals, h = rng.normal(size=(60, 4)) * [1, 0.1, 3, 0.5], rng.normal(size=(90, 3)) @ rng.normal(size=(3, 3)) + 2
    density = Density.fit(residuals, h)
    noise = stats.norm(scale=np.sqrt((residuals**2).mean(0))).logpdf(residuals[:20]).sum(1)
    code = stats.multivariate_normal(h.mean(0), np.cov(h.T, bias=True)).logpdf(h[:20])
    np.testing.assert_allclose(density.log_rows(residuals[:20], h[:20]), noise + code, rtol=1e-10)
    holed = np.where(rng.random((20, 4)) < 0.3, HOLE, residuals[:20])
    seen = np.nansum(stats.norm(scale=np.sqrt((residuals**2).mean(0))).logpdf(holed), 1)
    np.testing.assert_allclose(density.log_rows(holed, h[:20]), seen + code, rtol=1e-10)


def test_density_of_dead_units_and_perfect_columns_is_finite():
    rng = np.random.default_rng(0)
    residuals, h = rng.normal(size=(60, 3)) * [1, 0, 1], rng.normal(size=(60, 3)) * [1, 0, 5]
    residuals[:, 2] = HOLE
    density = Density.fit(residuals, h)
    assert density.noise[1] == 1e-6
    assert density.noise[2] == pytest.approx(np.nanmean(residuals[:, :2] ** 2), rel=1e-12)  # no value: the pooled one
    assert np.isfinite(density.log_rows(residuals, h)).all()


@pytest.mark.parametrize("settings", [{}, {"early_stopping": False}, {"scale": None}, {"scale": "standard"}], ids=str)
def test_score_samples_is_the_density_in_the_rows_own_units(settings):
    X = draw() * [1, 2, 3, 4, 5] + 7
    model = Autoencoder(2, hidden_layer_sizes=(), random_state=0, **settings).fit(X)
    h, residuals = model.transform(X), X - model.reconstruct(X)
    noise = np.sqrt(model.density_.noise) * model.scaling_.factor
    expected = stats.norm(scale=noise).logpdf(residuals).sum(1)
    expected += stats.multivariate_normal(h.mean(0), np.cov(h.T, bias=True)).logpdf(h)
    np.testing.assert_allclose(model.score_samples(X), expected, rtol=1e-9)
    if not settings.get("early_stopping", True):
        np.testing.assert_allclose(noise**2, (residuals**2).mean(0), rtol=1e-9)


def test_a_column_in_other_units_changes_the_log_density_by_its_factor():
    X = punch(draw(), 0.1)
    keep = {"hidden_layer_sizes": (), "scale": "standard", "random_state": 0, "max_iter": 2, "batch_size": 64,
            "learning_rate_init": 1e-3}  # fmt: skip
    unit = np.array([1, 10, 1, 1, 1])
    for rows in (draw(), X):
        one, other = (Autoencoder(2, **keep).fit(rows * u).score_samples(rows * u) for u in (np.ones(5), unit))
        np.testing.assert_allclose(other - one, np.where(np.isnan(rows[:, 1]), 0, -np.log(10)), atol=1e-4)


# --- factors


def likelihood(factors, x):
    """log p of the seen cells of every row, summed, by SciPy."""
    total = 0.0
    for row in x:
        seen = ~np.isnan(row)
        if seen.any():
            C = factors.covariance[np.ix_(seen, seen)]
            total += stats.multivariate_normal(np.zeros(seen.sum()), C).logpdf(row[seen])
    return total


def test_every_step_of_em_raises_the_likelihood():
    x = punch(draw(120))
    x[3] = HOLE
    x -= np.nanmean(x, 0)
    seen = ~np.isnan(x)
    filled = np.where(seen, x, 0.0)
    factors = Factors._start(filled.T @ filled / (seen.T.astype(float) @ seen), 2)
    values = [likelihood(factors, x)]
    for _ in range(15):
        factors = factors._improve(filled, seen)
        values.append(likelihood(factors, x))
    assert (np.diff(values) > -1e-6).all()
    assert values[-1] > values[0] + 1
    # and no worse than the factors that made the rows
    assert likelihood(Factors.fit(x, 2), x) >= values[-1] - 1e-6


def test_every_step_of_em_on_a_covariance_raises_the_likelihood():
    x = draw(120)
    x -= x.mean(0)
    S = x.T @ x / len(x)
    values, axes = np.linalg.eigh(S)
    factors = Factors(axes[:, -2:] * 0.5, np.diag(S) * 0.5)
    curve = []
    for _ in range(15):
        curve.append(likelihood(factors, x))
        factors = factors._improve_full(S)
    assert (np.diff(curve) > -1e-6).all()
    # both roads of EM take the same step where every cell is seen
    one = factors._improve(x, np.ones(x.shape, bool))
    np.testing.assert_allclose(one.covariance, factors._improve_full(S).covariance, rtol=1e-6)
    found = Factors.from_covariance(S, values[::-1][:2], axes[:, ::-1][:, :2])
    assert likelihood(found, x) >= curve[-1] - 0.5


def test_complete_is_the_conditional_expectation():
    x = punch(draw(60))
    x[5] = HOLE
    x -= np.nanmean(x, 0)
    factors = Factors.fit(x, 2)
    done, C = factors.complete(x), factors.covariance
    for row, made in zip(x, done, strict=True):
        seen = ~np.isnan(row)
        expected = C[:, seen] @ np.linalg.solve(C[np.ix_(seen, seen)], row[seen])
        np.testing.assert_allclose(made, np.where(seen, row, expected), rtol=1e-8, atol=1e-10)
    assert (done[5] == 0).all()
    assert np.isnan(x).any()  # its argument is left alone
