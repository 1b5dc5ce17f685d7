"""What a fit with each kind of constraint achieves: sparse, nonlinear, denoising, variational, dictionaries."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.decomposition import PCA

from retell import L1, MSE, Autoencoder, Gaussian, Likelihood, Mask, Normal, Sample, ToNormal


@pytest.fixture(scope="module")
def digits():
    """1,437 images to fit and 360 held out, in [0, 1]."""
    X = load_digits().data / 16
    order = np.random.default_rng(0).permutation(len(X))
    return X[order[:1437]], X[order[1437:]]


# --- sparse


@pytest.fixture(scope="module")
def sparse(digits):
    model = Autoencoder(256, hidden_layer_sizes=(), code_activation="ReLU()", objective=MSE() + 0.02 * L1(),
                        early_stopping=False, random_state=0)  # fmt: skip
    return model.fit(digits[0])


def test_sparse_means_zeros(sparse, digits):
    h = sparse.transform(digits[1])
    assert (h != 0).sum(1).mean() <= 16
    assert (sparse.transform(digits[0]) != 0).any(0).mean() >= 0.95
    assert sparse.score(digits[1]) >= 0.85


def test_scaling_the_decoder_cannot_lower_the_penalty(sparse, digits):
    """A code ten times as small with a decoder ten times as large costs the same: the constraint undoes it."""
    codec, constraint = sparse.codec_, sparse._model.parts.constraint
    x = torch.from_numpy(sparse.scaling_.to(digits[1])).to(codec.centre)
    norms = codec.dictionary().norm(dim=0)
    torch.testing.assert_close(norms, torch.ones_like(norms), rtol=1e-5, atol=0)
    with torch.no_grad():
        before = sparse.objective_(codec(x))
        smaller = codec(x)._replace(h=codec(x).h / 10)
        assert sparse.objective_(smaller)["L1"] < 0.2 * before["L1"]  # free, it would pay
        large = 10 * codec.dictionary()
        constraint.project(large)
        torch.testing.assert_close(large, codec.dictionary(), rtol=1e-5, atol=1e-6)
        x_hat = smaller.h @ large.T + codec.decoder.last.bias
        escaped = sparse.objective_(smaller._replace(x_hat=x_hat))
    assert sum(escaped.values()) > sum(before.values())


def test_a_laplace_prior_makes_zeros_and_a_normal_prior_none(digits):
    """Codes of least objective, Identity: the prior alone decides, at equal explained variance."""
    train, test = digits[0][:400], digits[1][:100]
    scores, zeros = [], []
    for prior in ("Laplace(scale=0.1)", "Normal(scale=0.18)"):
        objective = f"Likelihood(Normal(scale=0.25)) + Prior({prior})"
        model = Autoencoder(128, hidden_layer_sizes=(), objective=objective, inference="map", max_iter=10,
                            random_state=0).fit(train)  # fmt: skip
        scores.append(model.score(test))
        zeros.append((model.transform(test) == 0).mean())
    assert scores[0] == pytest.approx(scores[1], abs=0.01)
    assert zeros[0] >= 0.8
    assert zeros[1] == 0


# --- nonlinear


def test_one_unit_follows_a_curve_that_pca_folds():
    draw = np.random.default_rng(0)
    t = draw.uniform(0, 1, 2000)  # proportional to arc length
    turn = 1.75 * np.pi * t
    axes = np.linalg.qr(draw.normal(size=(10, 10)))[0][:3]
    X = np.stack([np.cos(turn), np.sin(turn), t], 1) @ axes + 0.02 * draw.normal(size=(2000, 10))
    linear = abs(spearmanr(PCA(1).fit_transform(X)[:, 0], t)[0])
    ours = abs(spearmanr(Autoencoder(1, random_state=0).fit(X).transform(X)[:, 0], t)[0])
    assert linear < 0.9
    assert ours >= 0.99


# --- denoising


def test_rows_with_holes_are_completed_better_by_a_fit_that_knows_them(digits):
    """Training and test rows have real holes: against a plain fit on rows filled with the means."""
    draw = np.random.default_rng(1)
    train, test = (np.where(draw.random(x.shape) < 0.2, np.nan, x) for x in digits)
    hole = np.isnan(test)
    means = np.nanmean(train, 0)
    ours = Autoencoder(16, corruption=Mask(0.2), random_state=0).fit(train).reconstruct(test, keep_seen=True)
    plain = Autoencoder(16, random_state=0).fit(np.where(np.isnan(train), means, train))
    theirs = plain.reconstruct(np.where(hole, means, test))
    errors = [((made - digits[1])[hole] ** 2).mean() for made in (ours, theirs)]
    assert errors[0] < 0.7 * errors[1]


def test_the_denoising_field_is_the_score_of_a_gaussian():
    """(r(x) - x) / s² = -(S + s² I)⁻¹ x  (Alain & Bengio 2014)."""
    draw, s = np.random.default_rng(0), 0.5
    X = draw.normal(size=(4000, 6)) @ draw.normal(size=(6, 6)).T
    model = Autoencoder(6, hidden_layer_sizes=(), corruption=Gaussian(s), scale=None).fit(X)
    field = (model.reconstruct(X) - X) / s**2
    score = -(X - X.mean(0)) @ np.linalg.inv(np.cov(X.T, bias=True) + s**2 * np.eye(6))
    assert np.linalg.norm(field - score) <= 0.02 * np.linalg.norm(score)


def test_the_denoising_field_points_along_the_score_of_a_mixture():
    draw, s, spread = np.random.default_rng(0), 0.4, 0.4
    centres = np.array([[-1.5, 0.0], [1.5, 0.5]])
    X = centres[draw.integers(0, 2, 4000)] + spread * draw.normal(size=(4000, 2))
    grid = np.stack(np.meshgrid(np.linspace(-2.5, 2.5, 21), np.linspace(-1.5, 2, 15)), -1).reshape(-1, 2)
    away, variance = grid[:, None] - centres, spread**2 + s**2
    density = np.exp(-(away**2).sum(2) / (2 * variance))
    probable = density.sum(1) > 0.02 * density.sum(1).max()
    share = density / density.sum(1, keepdims=True)
    score = -(share[:, :, None] * away).sum(1)[probable] / variance
    model = Autoencoder(2, hidden_layer_sizes=(64, 64), corruption=Gaussian(s), scale=None, random_state=0).fit(X)
    field = model.reconstruct(grid[probable]) - grid[probable]
    cosine = (field * score).sum() / np.linalg.norm(field) / np.linalg.norm(score)
    assert cosine >= 0.95


# --- variational


@pytest.mark.parametrize(("load", "K", "oracle"), [(load_wine, 2, -16.15536), (load_breast_cancer, 10, -18.18505)])
def test_the_linear_variational_autoencoder_is_probabilistic_pca(load, K, oracle):
    """Its evidence lower bound, right to the constant, is probabilistic PCA's likelihood (Lucas et al. 2019)."""
    X = load().data
    X = (X - X.mean(0)) / X.std(0)
    assert PCA(K).fit(X).score(X) == pytest.approx(oracle, abs=1e-5)
    model = Autoencoder(K, hidden_layer_sizes=(), code_activation=Sample(), scale=None, early_stopping=False,
                        objective=Likelihood(Normal()) + ToNormal(), random_state=0).fit(X)  # fmt: skip
    x, draw = torch.from_numpy(X).to(model.codec_.centre), torch.Generator().manual_seed(1)
    with torch.no_grad():
        bounds = [-sum(model.objective_(model.codec_(x, None, draw)).values()).item() for _ in range(200)]
    assert np.mean(bounds) == pytest.approx(oracle, rel=0.005)
    noise = PCA(K).fit(X).noise_variance_ ** 0.5
    assert model.codec_.log_scale.exp().item() == pytest.approx(noise, rel=0.02)


# --- dictionaries


@pytest.fixture(scope="module")
def planted():
    """8,000 rows of 256 columns, each a sum of about 5 of 512 unit vectors, and the vectors."""
    draw = np.random.default_rng(0)
    features = draw.normal(size=(512, 256))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    on = (draw.random((8000, 512)) < 5 / 512) * draw.uniform(0.5, 1.5, (8000, 512))
    return (on @ features).astype(np.float32), features


@pytest.mark.parametrize(
    ("code", "objective", "bar"),
    [("TopK(5)", "MSE() + 0.1 * AuxK()", 0.95), ("ReLU()", "MSE() + 0.003 * L1()", 0.9)],
    ids=["TopK", "L1"],
)
def test_a_planted_dictionary_is_found(planted, code, objective, bar):
    """Mean over the planted features of the largest cosine with a learned one (Sharkey et al. 2022)."""
    rows, features = planted
    model = Autoencoder(512, hidden_layer_sizes=(), code_activation=code, objective=objective, random_state=0)
    learned = model.fit(rows).components_
    learned = learned / np.linalg.norm(learned, axis=1, keepdims=True)
    assert (features @ learned.T).max(1).mean() >= bar
