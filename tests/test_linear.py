"""The linear autoencoder is PCA, its regularised kin have closed forms, and every solver meets them.

The figures are the project's oracles (mean over rows of the squared error summed over columns), computed
independently of this library.
"""

import itertools

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles
from scipy.optimize import minimize
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.decomposition import PCA

from retell import Autoencoder, Codec, Corrupted, Gaussian, Identity, Mask, mirror, mlp


def standard(X):
    return (X - X.mean(0)) / X.std(0)


DATA = {
    "digits": load_digits().data / 16,
    "wine": standard(load_wine().data),
    "cancer": standard(load_breast_cancer().data),
}
FLOOR = {
    ("digits", 2): 3.355253,
    ("digits", 4): 2.406997,
    ("digits", 8): 1.530448,
    ("digits", 16): 0.706796,
    ("digits", 32): 0.157909,
    ("cancer", 2): 11.027038,
    ("cancer", 5): 4.579718,
    ("cancer", 10): 1.452936,
    ("wine", 2): 5.797176,
    ("wine", 5): 2.578902,
    ("wine", 8): 1.037719,
}
TABLE_DIGITS = 5e-7  # the table has six decimals
# long enough to converge, and no stop before the learning rate has come down
STEPS = {"early_stopping": False, "n_iter_no_change": 10000, "weight_decay": 0.0}
DIGITS_STEPS = {"learning_rate_init": 0.05, "batch_size": 256, "max_iter": 60}
WINE_STEPS = {"learning_rate_init": 0.05, "batch_size": 178, "max_iter": 800}
NONLINEAR = [
    ("digits", 8, {"learning_rate_init": 0.02, "batch_size": 128, "max_iter": 100}),
    ("wine", 5, {"learning_rate_init": 0.02, "batch_size": 64, "max_iter": 400}),
]
LINEAR = {"hidden_layer_sizes": (), "scale": None, "random_state": 0}


def error(model, X):
    return ((X - model.reconstruct(X)) ** 2).sum(1).mean()


def angle(model, X):
    return subspace_angles(model.components_.T, PCA(model.n_components_).fit(X).components_.T).max()


# --- PCA


@pytest.mark.parametrize("early_stopping", [True, False])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("data", "K"), FLOOR)
def test_linear_is_pca(data, K, tied, early_stopping):
    X = DATA[data]
    model = Autoencoder(K, tied=tied, early_stopping=early_stopping, **LINEAR).fit(X)
    assert model.solver_ == "exact"
    assert error(model, X) == pytest.approx(FLOOR[data, K], rel=1e-6, abs=TABLE_DIGITS)
    assert error(model, X) == pytest.approx(
        ((X - PCA(K).fit(X).inverse_transform(PCA(K).fit_transform(X))) ** 2).sum(1).mean(), rel=1e-9
    )
    assert angle(model, X) < 1e-4
    assert model.pca_score_ == pytest.approx(model.score(X), rel=1e-9) or early_stopping


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("data", "K", "steps"), [("digits", 8, DIGITS_STEPS), ("wine", 5, WINE_STEPS)])
def test_descend_meets_pca_from_random_starts(data, K, steps, seed):
    X = DATA[data]
    model = Autoencoder(K, solver="descend", start="random", **STEPS, **steps, **LINEAR | {"random_state": seed}).fit(X)
    assert 1 - 1e-6 <= error(model, X) / FLOOR[data, K] <= 1.005


@pytest.mark.parametrize("plain", [False, True], ids=["default", "plain net from random weights"])
@pytest.mark.parametrize(("data", "K", "steps"), NONLINEAR)
def test_a_linear_decoder_never_beats_pca(data, K, steps, plain):
    """Whatever the encoder: PCA is the best affine image of any code (Bourlard & Kamp 1988)."""
    X = DATA[data]
    model = Autoencoder(K, hidden_layer_sizes=(64,), decoder_hidden_layer_sizes=(), scale=None, linear_path=not plain,
                        start="random" if plain else "auto", random_state=0, **STEPS, **steps).fit(X)  # fmt: skip
    assert 1 - 1e-6 <= error(model, X) / FLOOR[data, K] <= 1.01
    assert angle(model, X) < 0.05


# --- closed forms against the table


def expected(model, X, noise=0.0, keep=1.0, weights=0.0):
    """Squared error a row, expected over the corruption, plus weights · (||W||² + ||V||²)."""
    nets = model.codec_.encoder, model.codec_.decoder
    encoder, decoder = (net.layers[0].weight.detach().double().numpy() for net in nets)
    A, S = decoder @ encoder, np.cov(X.T, bias=True)
    Q = keep**2 * S + keep * (1 - keep) * np.diag(np.diag(S)) + noise**2 * np.eye(len(S))
    size = (encoder**2).sum() + (decoder**2).sum()
    return np.trace(S) - 2 * keep * np.trace(A @ S) + np.trace(A @ Q @ A.T) + weights * size


def penalty(weights, tied=False):
    """The coefficient of L2 that makes `weights` · (||W||² + ||V||²) a row: objectives are per cell, L2 is halved."""
    return f"MSE() + {2 * weights / 64 * (2 if tied else 1)!r} * L2()"


TABLE = [
    (8, {"objective": penalty(0.01)}, {"weights": 0.01}, 1.687837),
    (8, {"objective": penalty(0.05)}, {"weights": 0.05}, 2.265173),
    (16, {"objective": penalty(0.01)}, {"weights": 0.01}, 1.015687),
    (16, {"objective": penalty(0.05)}, {"weights": 0.05}, 2.029081),
    (8, {"objective": penalty(0.05, tied=True), "tied": True}, {"weights": 0.05}, 2.265173),
    (8, {"objective": f"MSE() + {2 * 0.05 / 64} * Contractive()", "tied": True, "constraint": "Free()"},
     {"weights": 0.05}, 2.265173),
    (8, {"corruption": Gaussian(0.1)}, {"noise": 0.1}, 1.607937),
    (8, {"corruption": Gaussian(0.3)}, {"noise": 0.3}, 2.093486),
    (16, {"corruption": Gaussian(0.1)}, {"noise": 0.1}, 0.856658),
    (16, {"corruption": Gaussian(0.3)}, {"noise": 0.3}, 1.645367),
    (16, {"corruption": Gaussian(0.3), "tied": True}, {"noise": 0.3}, 1.645367),
    (8, {"corruption": Mask(0.25)}, {"keep": 0.75}, 1.811527),
    (16, {"corruption": Mask(0.25)}, {"keep": 0.75}, 1.185698),
    (64, {"corruption": Mask(0.25)}, {"keep": 0.75}, 0.836116),
    (8, {"corruption": Mask(0.5)}, {"keep": 0.5}, 2.209505),
    (16, {"corruption": Mask(0.5)}, {"keep": 0.5}, 1.772506),
    (64, {"corruption": Mask(0.5)}, {"keep": 0.5}, 1.585782),
]  # fmt: skip


@pytest.mark.parametrize(("K", "settings", "oracle", "value"), TABLE, ids=str)
def test_closed_forms_meet_the_table(K, settings, oracle, value):
    X = DATA["digits"]
    model = Autoencoder(K, **settings, **LINEAR).fit(X)
    assert model.solver_ == "exact"
    assert expected(model, X, **oracle) == pytest.approx(value, rel=1e-5)


def test_clean_errors_of_denoisers():
    """The table's errors on clean rows, which the minimised loss does not see."""
    X = DATA["digits"]
    for K, scale, value in [(8, 0.1, 1.532863), (16, 0.3, 1.000264)]:
        assert error(Autoencoder(K, corruption=Gaussian(scale), **LINEAR).fit(X), X) == pytest.approx(value, rel=1e-5)


def test_l2_makes_encoder_and_decoder_transposes():
    model = Autoencoder(8, objective=penalty(0.01), **LINEAR).fit(DATA["digits"])
    encoder, decoder = (net.layers[0].weight for net in (model.codec_.encoder, model.codec_.decoder))
    torch.testing.assert_close(decoder, encoder.T, rtol=0, atol=1e-9)
    S = np.cov(DATA["digits"].T, bias=True)
    values = np.linalg.eigvalsh(S)[::-1][:8]
    np.testing.assert_allclose(np.linalg.svd(encoder.detach().numpy())[1], np.sqrt(1 - 0.01 / values), rtol=1e-9)


@pytest.mark.parametrize(("K", "settings", "oracle", "value"), [TABLE[i] for i in (1, 4, 5, 7, 10, 11, 15)], ids=str)
def test_descend_meets_the_closed_forms(K, settings, oracle, value):
    X = DATA["digits"]
    model = Autoencoder(K, solver="descend", **settings, **STEPS, **DIGITS_STEPS, **LINEAR).fit(X)
    assert 1 - 1e-5 <= expected(model, X, **oracle) / value <= 1.01


# --- closed forms against L-BFGS on the objective itself


def copies(x, corruption):
    """Corrupted copies of the rows and their weights: their weighted mean is the expectation, exactly."""
    D = x.shape[1]
    if isinstance(corruption, Mask):  # every mask there is
        for hidden in itertools.product([False, True], repeat=D):
            share = np.prod([corruption.p if h else 1 - corruption.p for h in hidden])
            yield share, x.masked_fill(torch.tensor(hidden), float("nan"))
    elif isinstance(corruption, Gaussian):  # points with the noise's mean and covariance: enough for a square
        for sign, j in itertools.product([-1, 1], range(D)):
            yield 1 / (2 * D), x + sign * corruption.scale * D**0.5 * torch.eye(D, dtype=x.dtype)[j]
    else:
        yield 1.0, x


def value_of(codec, x, objective, corruption):
    return sum(
        share * sum(objective(codec(x, Corrupted(copy, copy != x))).values()) for share, copy in copies(x, corruption)
    )


def least_value(x, K, tied, objective, corruption):
    """The least of four L-BFGS runs from random weights."""
    least = np.inf
    for seed in range(4):
        encoder = mlp([x.shape[1], K])
        codec = Codec(encoder, Identity(), mirror(encoder, tied=tied), torch.zeros(x.shape[1])).double()
        parameters = list(codec.parameters())

        def fun(theta, codec=codec, parameters=parameters):
            with torch.no_grad():
                torch.nn.utils.vector_to_parameters(torch.from_numpy(theta), parameters)
            value = value_of(codec, x, objective, corruption)
            gradient = torch.autograd.grad(value, parameters)
            return value.item(), torch.cat([g.reshape(-1) for g in gradient]).numpy()

        size = sum(p.numel() for p in parameters)
        first = np.random.default_rng(seed).normal(size=size)
        found = minimize(
            fun, first, jac=True, method="L-BFGS-B", options={"maxiter": 5000, "ftol": 1e-15, "gtol": 1e-9}
        )
        least = min(least, found.fun)
    return least


@pytest.mark.parametrize(
    ("objective", "corruption", "tied"),
    [
        ("MSE()", "Nothing()", False),
        ("MSE()", "Nothing()", True),
        ("MSE() + 0.1 * L2()", "Nothing()", False),
        ("MSE() + 0.1 * L2()", "Nothing()", True),
        ("2 * MSE() + 0.1 * L2() + 0.1 * L2()", "Nothing()", True),
        ("MSE() + 2.0 * L2()", "Nothing()", False),  # so much that the second unit dies
        ("MSE() + 0.1 * Contractive()", "Nothing()", True),
        ("MSE() + 0.1 * Contractive() + 0.1 * L2()", "Nothing()", True),
        ("MSE()", "Gaussian(0.5)", False),
        ("MSE()", "Gaussian(0.5)", True),
        ("MSE() + 0.1 * L2()", "Gaussian(0.5)", False),
        ("MSE() + 0.1 * L2()", "Gaussian(0.5)", True),
        ("MSE() + 0.1 * Contractive()", "Gaussian(0.5)", True),
        ("MSE()", "Mask(0.3)", False),
    ],
)
def test_closed_forms_are_the_least_of_the_objective(objective, corruption, tied):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(40, 4)) * [2, 1.5, 1, 0.5] @ np.linalg.qr(rng.normal(size=(4, 4)))[0]
    model = Autoencoder(2, objective=objective, corruption=corruption, tied=tied, solver="exact", constraint="Free()",
                        **LINEAR).fit(X)  # fmt: skip
    x = torch.from_numpy(X - X.mean(0))
    corruption = model._model.parts.corruption
    ours = float(value_of(model.codec_, x, model.objective_, corruption).detach())
    assert ours == pytest.approx(least_value(x, 2, tied, model.objective_, corruption), rel=1e-9)


@pytest.mark.parametrize("tied", [True, False])
def test_more_units_than_columns(tied):
    X = DATA["wine"]
    for settings in ({"corruption": "Gaussian(0.3)"}, {"objective": "MSE() + 0.01 * L2()"}):
        wide, full = (Autoencoder(K, tied=tied, **settings, **LINEAR).fit(X) for K in (20, 13))
        assert wide.transform(X).shape == (178, 20)
        assert error(wide, X) == pytest.approx(error(full, X), rel=1e-9)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"hidden_layer_sizes": (4,)}, "the net has hidden layers"),
        ({"code_activation": "ReLU()"}, r"the code activation is ReLU\(\)"),
        ({"constraint": "UnitNorm()"}, r"the constraint is UnitNorm\(\)"),
        ({"objective": "Huber()"}, r"the objective is Huber\(\)"),
        ({"objective": "MSE() + 0.1 * L1()", "constraint": "Free()"}, r"the objective is MSE\(\) \+ 0\.1 \* L1\(\)"),
        ({"objective": "MSE() + Warmup(0.1, 5) * L2()"}, r"the objective is .*Warmup"),
        ({"corruption": "Mask(0.1)", "tied": True}, "Mask has one only untied"),
        ({"corruption": "Mask(0.1)", "objective": "MSE() + 0.1 * L2()"}, "Mask has one only .*without penalties"),
        ({"objective": "MSE() + 0.1 * Contractive()", "constraint": "Free()"}, "Contractive has one only with tied"),
    ],
    ids=str,
)
def test_exact_says_why_it_can_not(settings, reason):
    X = DATA["wine"]
    with pytest.raises(ValueError, match=f"solver='exact' has no closed form here: {reason}"):
        Autoencoder(2, solver="exact", **LINEAR | settings).fit(X)
    quick = {"max_iter": 1, "batch_size": 64, "learning_rate_init": 1e-3}
    assert Autoencoder(2, **quick, **LINEAR | settings).fit(X).solver_ == "dense"


def test_exact_refuses_holes():
    X = DATA["wine"].copy()
    X[0, 0] = np.nan
    with pytest.raises(ValueError, match="rows have holes"):
        Autoencoder(2, solver="exact", **LINEAR).fit(X)


@pytest.mark.parametrize("seed", range(5))
def test_descend_from_random_starts_reaches_pca_with_no_knob_turned(seed):
    X = load_digits().data / 16
    model = Autoencoder(
        8, hidden_layer_sizes=(), scale=None, solver="descend", start="random", early_stopping=False, random_state=seed
    ).fit(X)
    assert ((X - model.reconstruct(X)) ** 2).sum(1).mean() <= 1.005 * 1.530448
