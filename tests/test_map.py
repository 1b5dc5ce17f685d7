"""Maximum likelihood to MAP: penalties are priors, losses are likelihoods, and the code of a row can be optimised.

D columns, K code units, n rows. A penalty and a prior are the same up to a factor and a constant, and both are known.
"""

import copy
import math
import re

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.datasets import load_digits, load_wine
from sklearn.decomposition import sparse_encode
from sklearn.linear_model import Lasso, Ridge

import retell
from retell import (
    BCE,
    KL,
    L0,
    L1,
    L2,
    MSE,
    Autoencoder,
    AuxK,
    Bernoulli,
    Codec,
    Contractive,
    Exponential,
    Hidden,
    Huber,
    Identity,
    L1Weights,
    Laplace,
    Likelihood,
    Normal,
    Poisson,
    Prior,
    ReLU,
    Softplus,
    StudentT,
    ToNormal,
    UnitRMS,
    Warmup,
    mirror,
    mlp,
    parse,
)
from retell.solvers.codes import optimise

D, N = 5, 12
DIGITS = load_digits().data / 16
WINE = load_wine().data
BENT = {"hidden_layer_sizes": (20,), "linear_path": False}
PLAIN = {"hidden_layer_sizes": (), "max_iter": 3, "random_state": 0}


def draws(seed):
    return torch.Generator().manual_seed(seed)


def make_codec(K, activation, hidden=(), *, tied=False, n=N, seed=0, learns_scale=False):
    """A random codec in float64 that thinks n rows share its weights."""
    encoder = mlp([D, *hidden, K], "tanh")
    squash, centre = activation.bind(K), torch.zeros(D)
    codec = Codec(encoder, squash, mirror(encoder, tied=tied), centre, learns_scale=learns_scale).double().eval()
    draw = draws(seed)
    with torch.no_grad():
        for parameter in codec.parameters():
            parameter.normal_(generator=draw).mul_(0.7)
    codec.n_rows.fill_(n)
    return codec


def make_rows(kind="real", seed=1):
    draw = draws(seed)
    if kind == "counts":
        return torch.randint(0, 7, (N, D), generator=draw).double()
    if kind == "bits":
        return torch.randint(0, 2, (N, D), generator=draw).double()
    return torch.randn(N, D, dtype=torch.float64, generator=draw)


def total(objective, codec, x):
    return torch.stack(list((1.0 * objective)(codec(x)).values())).sum()


def value_and_gradient(objective, codec, x):
    """The objective and its gradient with respect to every parameter, in one vector."""
    codec.zero_grad()
    value = total(objective, codec, x)
    value.backward()
    slopes = [torch.zeros_like(q) if q.grad is None else q.grad for q in codec.parameters()]
    return value.item(), torch.cat([slope.flatten() for slope in slopes])


def n_weights(codec):
    return sum(w.numel() for w in codec.matrices())


def check_same(densities, penalties, constant, codec, x):
    value, slope = value_and_gradient(densities, codec, x)
    other, its_slope = value_and_gradient(penalties, codec, x)
    assert value == pytest.approx(other + constant, rel=1e-10, abs=1e-10)
    torch.testing.assert_close(slope, its_slope, rtol=1e-10, atol=1e-10)
    assert slope.abs().max() > 1e-3


# --- likelihoods and priors are losses and penalties

EVERY_SHAPE = pytest.mark.parametrize("hidden", [(), (6,)], ids=["linear", "deep"])
EVERY_K = pytest.mark.parametrize("K", [1, 7])


@EVERY_SHAPE
@EVERY_K
@pytest.mark.parametrize("seed", range(3))
def test_laplace_prior_on_a_signed_code_is_l1(K, hidden, seed):
    s, b = (3 + 2 * seed) / 8, (1 + 3 * seed) / 8
    codec, x = make_codec(K, Identity(), hidden, seed=seed), make_rows(seed=seed + 10)
    lam = 2 * s**2 / (D * b)
    constant = D / 2 * math.log(2 * math.pi * s**2) + K * math.log(2 * b)
    penalties = D / (2 * s**2) * (MSE() + lam * L1())
    check_same(Likelihood(Normal(scale=s)) + Prior(Laplace(scale=b)), penalties, constant, codec, x)


@EVERY_SHAPE
@EVERY_K
@pytest.mark.parametrize("activation", [ReLU(), Softplus()], ids=repr)
@pytest.mark.parametrize("density", [Laplace, Exponential])
def test_laplace_and_exponential_priors_on_a_nonnegative_code_are_l1(density, activation, K, hidden):
    s, b = 0.375, 0.75
    codec, x = make_codec(K, activation, hidden, seed=K), make_rows()
    lam = 2 * s**2 / (D * b)
    constant = D / 2 * math.log(2 * math.pi * s**2) + K * math.log(b)
    penalties = D / (2 * s**2) * (MSE() + lam * L1())
    check_same(Likelihood(Normal(scale=s)) + Prior(density(scale=b)), penalties, constant, codec, x)


@pytest.mark.parametrize("rate", [0.5, 4.0])
def test_the_constant_counts_the_units(rate):
    """-log(λ / 2) is the constant of one unit: K have K times that, and -K log λ where they can't be negative."""
    x = make_rows()
    for K in (1, 7):
        for activation, one in ((Identity(), -math.log(rate / 2)), (ReLU(), -math.log(rate))):
            codec = make_codec(K, activation)
            p = codec(x)
            constant = Prior(Laplace(scale=1 / rate))(p) - rate * L1()(p)
            torch.testing.assert_close(constant, torch.full_like(constant, K * one), rtol=0, atol=1e-10)
            if K > 1:
                assert (constant - one).abs().min() > 1  # one unit's constant is far off


@EVERY_SHAPE
@EVERY_K
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("activation", [Identity(), ReLU()], ids=repr)
def test_priors_on_weights_are_penalties_on_weights(activation, tied, K, hidden):
    s, t, b, n = 0.625, 0.3125, 0.1875, 37
    codec, x = make_codec(K, activation, hidden, tied=tied, n=n), make_rows()
    nats, gaussian, W = D / (2 * s**2), D / 2 * math.log(2 * math.pi * s**2), n_weights(codec)
    normal = Likelihood(Normal(scale=s)) + Prior(Normal(scale=t), on="weights")
    check_same(normal, nats * (MSE() + 2 * s**2 / (D * n * t**2) * L2()),
               gaussian + W / 2 * math.log(2 * math.pi * t**2) / n, codec, x)  # fmt: skip
    laplace = Likelihood(Normal(scale=s)) + Prior(Laplace(scale=b), on="weights")
    check_same(laplace, nats * (MSE() + 2 * s**2 / (D * n * b) * L1Weights()),
               gaussian + W * math.log(2 * b) / n, codec, x)  # fmt: skip


def test_a_prior_on_weights_is_shared_by_the_rows():
    codec = make_codec(3, Identity())
    values = []
    for n in (1, 10, 1000):
        codec.n_rows.fill_(n)
        values.append(n * Prior(Normal(scale=0.5), on="weights")(codec(make_rows())).item())
    assert values[0] == pytest.approx(values[1], rel=1e-12) == pytest.approx(values[2], rel=1e-12)
    objective = Likelihood(Normal(scale=0.5)) + Prior(Normal(scale=0.1), on="weights")
    model = Autoencoder(2, objective=objective, early_stopping=False, **PLAIN).fit(WINE)
    assert model.codec_.n_rows == len(WINE)


@EVERY_K
def test_bernoulli_likelihood_is_cross_entropy(K):
    for kind in ("bits", "real"):
        x = make_rows(kind)
        x = x if kind == "bits" else x.sigmoid()  # cells between 0 and 1 too
        check_same(Likelihood(Bernoulli()), D * BCE(), 0.0, make_codec(K, ReLU(), (6,)), x)


@EVERY_K
def test_poisson_likelihood_is_the_poisson_loss(K):
    codec, x = make_codec(K, Identity(), (6,)), make_rows("counts")
    check_same(Likelihood(Poisson()), D * Poisson(), 0.0, codec, x)
    p = codec(x)
    true = -stats.poisson.logpmf(x.numpy(), p.x_hat.detach().exp().numpy())
    np.testing.assert_allclose(Poisson()(p).detach().numpy(), true, rtol=1e-12, atol=1e-12)


@EVERY_K
@pytest.mark.parametrize(("df", "scale"), [(1.0, 1.0), (3.5, 0.375)])
def test_student_prior_is_its_penalty(df, scale, K):
    for activation, sides in ((Identity(), 2), (ReLU(), 1)):
        constant = -K * float(stats.t.logpdf(0, df, scale=scale)) - (K * math.log(2) if sides == 1 else 0.0)
        s = 0.5
        densities = Likelihood(Normal(scale=s)) + Prior(StudentT(df, scale))
        penalties = D / (2 * s**2) * MSE() + StudentT(df, scale)
        constant += D / 2 * math.log(2 * math.pi * s**2)
        check_same(densities, penalties, constant, make_codec(K, activation), make_rows())


def test_a_likelihood_of_holes_counts_seen_cells_with_their_constants():
    codec, x, s = make_codec(3, Identity()), make_rows(), 0.375
    x[torch.rand(x.shape, generator=draws(5)) < 0.3] = math.nan
    p = codec(x)
    by_hand = torch.where(p.seen, ((p.x - p.x_hat) / s).square() / 2 + math.log(s * math.sqrt(2 * math.pi)), 0.0)
    torch.testing.assert_close(Likelihood(Normal(scale=s))(p), by_hand.sum(1), rtol=1e-12, atol=1e-12)


def test_a_learned_scale_settles_at_the_residuals_spread():
    """The scale of greatest likelihood is the root mean squared residual: there its gradient is zero."""
    codec, x = make_codec(3, Identity(), learns_scale=True), make_rows()
    with torch.no_grad():
        codec.log_scale.copy_((x - codec(x).x_hat).square().mean().sqrt().log())
    total(Likelihood(Normal()), codec, x).backward()
    assert abs(float(codec.log_scale.grad)) < 1e-12
    fixed = total(Likelihood(Normal(scale=codec.log_scale.exp().item())), codec, x)
    assert total(Likelihood(Normal()), codec, x).item() == pytest.approx(fixed.item(), rel=1e-12)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Prior(Bernoulli()), "needs a density of real numbers"),
        (lambda: Prior(Normal()), r"needs a scale, as in Normal\(scale=0.1\)"),
        (lambda: Prior(Laplace(0.1), on="bias"), "'code' or 'weights'"),
        (lambda: Prior(Exponential(0.1), on="weights"), "weights can be negative"),
        (lambda: Likelihood(Exponential(0.1)), "needs a density of the data"),
        (lambda: Prior(Exponential(0.1)).check(make_codec(2, Identity())), "codes that can't be negative"),
        (lambda: Prior(Laplace(0.1)).check(make_codec(2, retell.Sigmoid())), "use an unbounded code"),
        (lambda: Likelihood(Normal()).check(make_codec(2, Identity())), "learns its scale"),
    ],
    ids=["bits", "no scale", "nowhere", "one-sided weights", "one-sided rows", "signed code", "bounded code", "fixed"],
)
def test_impossible_densities_are_refused_with_a_sentence(make, says):
    with pytest.raises(ValueError, match=says):
        make()


# --- linear regression: the design matrix is the code, the targets are the rows, the weights are the decoder's


def regression(signal):
    """Design (n, K), targets (n, D) and a codec whose decoder is to be found; its encoder is zero."""
    draw, n, K = draws(3), 60, 6
    design = torch.randn(n, K, dtype=torch.float64, generator=draw)
    truth = torch.randn(D, K, dtype=torch.float64, generator=draw) * signal
    noise = torch.randn(n, D, dtype=torch.float64, generator=draw)
    codec = make_codec(K, Identity(), n=n)
    with torch.no_grad():
        for parameter in codec.parameters():
            parameter.zero_()
    return design, design @ truth.T + 0.5 + 0.3 * noise, codec


def regress(objective, codec, design, targets):
    """The objective of a row on average, with the design as the code."""
    return torch.stack(list((1.0 * objective)(codec.as_pass(targets, design, 1.0)).values())).sum()


def test_a_normal_prior_on_the_weights_is_ridge_regression():
    s, t = 0.75, 0.25
    design, targets, codec = regression(signal=1.0)
    objective = Likelihood(Normal(scale=s)) + Prior(Normal(scale=t), on="weights")
    unknown = [codec.decoder.last.weight, codec.decoder.last.bias]
    optimizer = torch.optim.LBFGS(unknown, max_iter=500, tolerance_grad=1e-12, tolerance_change=0, history_size=50,
                                  line_search_fn="strong_wolfe")  # fmt: skip

    def closure():
        optimizer.zero_grad()
        value = regress(objective, codec, design, targets)
        value.backward(inputs=unknown)
        return value

    optimizer.step(closure)
    ridge = Ridge(alpha=s**2 / t**2, solver="cholesky").fit(design.numpy(), targets.numpy())
    assert np.abs(codec.decoder.last.weight.detach().numpy() - ridge.coef_).max() < 1e-6
    assert np.abs(codec.decoder.last.bias.detach().numpy() - ridge.intercept_).max() < 1e-6
    free = Ridge(alpha=1e-12).fit(design.numpy(), targets.numpy())
    assert np.abs(free.coef_ - ridge.coef_).max() > 0.1  # the prior has a say


def test_a_laplace_prior_on_the_weights_is_the_lasso():
    """Proximal gradient on retell's own value and slopes ends where scikit-learn's Lasso does."""
    s, b = 0.75, 0.03125
    design, targets, codec = regression(signal=torch.tensor([1.0, 0.0, 0.5, 0.0, -1.0, 0.0]))
    n, weight, bias = len(design), codec.decoder.last.weight, codec.decoder.last.bias
    likelihood, prior = Likelihood(Normal(scale=s)), Prior(Laplace(scale=b), on="weights")
    with torch.no_grad():
        weight.fill_(1.0)
    (kink,) = torch.autograd.grad(regress(prior, codec, design, targets), weight)  # the prior's slope above 0
    assert torch.allclose(kink, torch.full_like(kink, 1 / (n * b)), rtol=1e-12)
    step = s**2 * n / float(torch.linalg.matrix_norm(torch.cat([design, torch.ones(n, 1)], 1), 2)) ** 2
    for _ in range(3000):
        slopes = torch.autograd.grad(regress(likelihood, codec, design, targets), [weight, bias])
        with torch.no_grad():
            weight -= step * slopes[0]
            weight.copy_(weight.sign() * (weight.abs() - step * kink).clamp(min=0))
            bias -= step * slopes[1]
    lasso = Lasso(alpha=s**2 / (b * n), tol=1e-14, max_iter=100_000).fit(design.numpy(), targets.numpy())
    assert np.abs(weight.detach().numpy() - lasso.coef_).max() < 1e-6
    assert np.abs(bias.detach().numpy() - lasso.intercept_).max() < 1e-6
    assert ((weight == 0).numpy() == (lasso.coef_ == 0)).all()
    assert 0.2 < (lasso.coef_ == 0).mean() < 0.8

    # scikit-learn's solution is a minimum of retell's objective: no slope is left, and at 0 none can leave
    with torch.no_grad():
        weight.copy_(torch.from_numpy(lasso.coef_))
        bias.copy_(torch.from_numpy(lasso.intercept_))
    (slope,) = torch.autograd.grad(regress(likelihood + prior, codec, design, targets), weight)
    assert slope[weight != 0].abs().max() < 1e-6
    (pull,) = torch.autograd.grad(regress(likelihood, codec, design, targets), weight)
    assert (pull.abs() < kink)[weight == 0].all()
    least, draw = regress(likelihood + prior, codec, design, targets).item(), draws(0)
    for size in (1e-3, 1e-2, 0.1):
        with torch.no_grad():
            weight.copy_(torch.from_numpy(lasso.coef_) + size * torch.randn(weight.shape, generator=draw))
        assert regress(likelihood + prior, codec, design, targets).item() > least


# --- both languages

ROUND_TRIPS = [
    ("MSE() + 1.6 * L1()", "Identity()", "real", 1.0),
    ("MSE() + 1.6 * L1()", "ReLU()", "real", 0.5),
    ("2 * MSE() + 0.08 * L2() + 1.6 * L1()", "Identity()", "real", 0.5),
    ("MSE() + 0.16 * L1Weights()", "Identity()", "real", 1.0),
    ("MSE() + StudentT()", "Identity()", "real", 1.0),
    ("MSE()", "Identity()", "real", 0.25),
    ("BCE() + 0.8 * L1() + 0.08 * L1Weights()", "ReLU()", "bits", 1.0),
    ("0.5 * Poisson() + 0.2 * L1()", "Identity()", "counts", 1.0),
    ("Likelihood(Normal(scale=0.5)) + Prior(Laplace(scale=0.125)) + Prior(Normal(scale=0.25), on='weights')",
     "Identity()", "real", 1.0),
    ("Likelihood(Normal(scale=0.5)) + Prior(Laplace(scale=0.125))", "ReLU()", "real", 1.0),
    ("Likelihood(Normal(scale=0.5)) + Prior(Normal(scale=0.125))", "Identity()", "real", 1.0),
    ("Likelihood(Laplace(scale=0.5)) + 2.0 * Prior(Laplace(scale=0.375))", "Identity()", "real", 1.0),
    ("Likelihood(StudentT(df=3.0, scale=0.5)) + Prior(StudentT(df=2.0, scale=0.375))", "Identity()", "real", 1.0),
    ("0.25 * Likelihood(Bernoulli()) + 0.125 * Prior(Laplace(scale=0.25))", "Identity()", "bits", 1.0),
    ("Likelihood(Poisson()) + Prior(Laplace(scale=0.25), on='weights')", "ReLU()", "counts", 1.0),
    ("Likelihood(Normal()) + Prior(Laplace(scale=0.25))", "Identity()", "real", 0.5),
]  # fmt: skip


@pytest.mark.parametrize(("text", "activation", "kind", "noise"), ROUND_TRIPS)
def test_explain_says_the_same_in_both_languages(text, activation, kind, noise):
    n, K = 40, 7
    codec, x = make_codec(K, parse(activation), n=n, learns_scale=True), make_rows(kind)
    with torch.no_grad():
        codec.log_scale.fill_(math.log(noise))  # where the scale is learned, it is read at `noise`
    objective = 1.0 * parse(text)
    said = objective.explain(n_rows=n, n_features=D, noise=noise)
    penalties, densities = parse(said.penalties), parse(said.densities)
    constants = dict(said.constants)
    one_sided = 0.0 if activation == "Identity()" else math.log(2)
    constant = (
        D * constants.pop("x", 0.0)
        + K * (constants["code"] - one_sided if "code" in constants else 0.0)
        + n_weights(codec) * constants.pop("weights", 0.0) / n
    )
    constants.pop("code", None)
    assert not constants
    check_same(densities, said.factor * penalties, constant, codec, x)
    # what was given pulls the weights the same way, and its size is known
    _, slope = value_and_gradient(objective, codec, x)
    _, its_slope = value_and_gradient(densities, codec, x)
    if "Normal()" not in text:  # the scale it would learn is a given in the other form
        ratio = float(slope @ its_slope / (its_slope @ its_slope))
        torch.testing.assert_close(slope, ratio * its_slope, rtol=1e-9, atol=1e-12)
    for word in (said.penalties, said.densities, f"{said.factor:.6g}"):
        assert word in str(said)


def test_explain_maps_coefficients_to_scales():
    n, d, s, lam, c = 1797, 64, 0.2, 0.003, 0.01
    said = (MSE() + lam * L1() + c * L2()).explain(n, d, noise=s)
    likelihood, code, weights = (term for _, term in parse(said.densities).summands)
    assert likelihood.p == Normal(scale=s)
    assert code.p.scale == pytest.approx(2 * s**2 / (d * lam), rel=1e-12)
    assert weights.p.scale == pytest.approx(math.sqrt(2 * s**2 / (d * n * c)), rel=1e-12)
    assert weights.on == "weights"
    laplace = parse((MSE() + lam * L1Weights()).explain(n, d, noise=s).densities).terms[1]
    assert laplace.p.scale == pytest.approx(2 * s**2 / (d * n * lam), rel=1e-12)
    assert laplace.on == "weights"
    back = parse(said.densities).explain(n, d)
    assert [term for _, term in parse(back.penalties).summands] == [MSE(), L1(), L2()]
    assert [k for k, _ in parse(back.penalties).summands] == pytest.approx([1, lam, c], rel=1e-11)


def test_explain_prints_the_documented_example():
    assert str((MSE() + 0.001 * L1()).explain(n_rows=1797, n_features=64)).splitlines() == [
        "as penalties  MSE() + 0.001 * L1()",
        "as densities  Likelihood(Normal(scale=1.0)) + Prior(Laplace(scale=31.25))",
        "nats a row    32 x the penalties + constants",
        "constants     0.918939 a cell; 4.13517 a unit of the code (3.44202 where it can't be negative)",
    ]


@pytest.mark.parametrize(
    ("objective", "says"),
    [
        (MSE() + 0.1 * KL(), r"KL\(\) is not the logarithm of a density"),
        (MSE() + 0.1 * Contractive(), r"Contractive\(\) is not the logarithm of a density"),
        (MSE() + 0.1 * AuxK(), r"AuxK\(\) is not the logarithm"),
        (MSE() + 0.1 * L0(), r"L0\(\) is not the logarithm"),
        (1.0 * Huber(), r"Huber\(\) is not the logarithm"),
        (MSE() + Warmup(0.1, 10) * L1(), r"a constant exponent above 0, got the coefficient Warmup"),
        (MSE() + -0.1 * L1(), "exponent above 0, got the coefficient -0.1"),
        (MSE() + Likelihood(Normal(0.5)), "an objective with 2 losses"),
        (1.0 * L1(), "an objective with 0 losses"),
        (MSE() + L1() + StudentT(), "two densities of one thing"),
        (MSE() + 1e-6 * StudentT(), "no finite integral"),
    ],
    ids=repr,
)
def test_explain_refuses_what_has_no_density(objective, says):
    with pytest.raises(ValueError, match=says):
        objective.explain(100, D)


# --- log p(x, h)

SCALES = {"standard": WINE.std(0), None: np.ones(WINE.shape[1])}


def with_holes(X, share=0.125):
    X = X.copy()
    X[np.random.default_rng(0).random(X.shape) < share] = np.nan
    return X


@pytest.mark.parametrize("holes", [False, True], ids=["whole", "holes"])
@pytest.mark.parametrize("scale", SCALES, ids=["standard", "centred"])
@pytest.mark.parametrize(
    ("likelihood", "log_x"),
    [
        ("Normal(scale=0.5)", lambda x, mean, unit: stats.norm.logpdf(x, mean, 0.5 * unit)),
        ("Laplace(scale=0.5)", lambda x, mean, unit: stats.laplace.logpdf(x, mean, 0.5 * unit)),
        ("StudentT(df=3.0, scale=0.5)", lambda x, mean, unit: stats.t.logpdf(x, 3.0, mean, 0.5 * unit)),
    ],
    ids=["Normal", "Laplace", "StudentT"],
)
def test_log_joint_is_scipys_in_the_rows_own_units(likelihood, log_x, scale, holes):
    X = with_holes(WINE) if holes else WINE
    priors = {
        "Normal(scale=2.0)": ("Identity()", lambda h: stats.norm.logpdf(h, scale=2.0)),
        "Laplace(scale=0.125)": ("ReLU()", lambda h: stats.expon.logpdf(h, scale=0.125)),
    }
    for prior, (activation, log_h) in priors.items():
        objective = f"Likelihood({likelihood}) + Prior({prior})"
        model = Autoencoder(3, code_activation=activation, objective=objective, scale=scale, precision="float64",
                            **PLAIN).fit(WINE)  # fmt: skip
        unit = SCALES[scale]
        found, h = model.log_joint(X), model.transform(X)
        np.testing.assert_allclose(
            found.x_given_h, np.nansum(log_x(X, model.reconstruct(X), unit), 1), rtol=1e-9, atol=1e-8
        )
        np.testing.assert_allclose(found.h, log_h(h).sum(1), rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(found.total, found.x_given_h + found.h, rtol=1e-15)


@pytest.mark.parametrize(
    ("prior", "activation", "log_h"),
    [
        ("Laplace(scale=0.375)", "Identity()", lambda h: stats.laplace.logpdf(h, scale=0.375)),
        ("Exponential(scale=0.375)", "ReLU()", lambda h: stats.expon.logpdf(h, scale=0.375)),
        ("StudentT(df=2.0, scale=0.375)", "Identity()", lambda h: stats.t.logpdf(h, 2.0, scale=0.375)),
        ("Normal(scale=0.375)", "Softplus()", lambda h: stats.halfnorm.logpdf(h, scale=0.375)),
    ],
    ids=["Laplace", "Exponential", "StudentT", "half a Normal"],
)
@pytest.mark.parametrize(
    ("likelihood", "rows", "log_x"),
    [
        ("Bernoulli()", (DIGITS[:300] > 0.5) * 1.0, stats.bernoulli.logpmf),
        ("Poisson()", DIGITS[:300] * 16, stats.poisson.logpmf),
    ],
    ids=["Bernoulli", "Poisson"],
)
@pytest.mark.filterwarnings("ignore:reconstructions are farther")  # after so few epochs
def test_log_joint_of_bits_and_counts(likelihood, rows, log_x, prior, activation, log_h):
    model = Autoencoder(4, code_activation=activation, objective=f"Likelihood({likelihood}) + Prior({prior})",
                        precision="float64", **PLAIN).fit(rows)  # fmt: skip
    found = model.log_joint(rows)
    np.testing.assert_allclose(found.x_given_h, log_x(rows, model.reconstruct(rows)).sum(1), rtol=1e-9, atol=1e-8)
    np.testing.assert_allclose(found.h, log_h(model.transform(rows)).sum(1), rtol=1e-9, atol=1e-9)


def test_log_joint_reads_a_learned_scale_and_leaves_priors_on_weights_out():
    objective = "Likelihood(Normal()) + Prior(Normal(scale=1.0)) + Prior(Normal(scale=0.5), on='weights')"
    model = Autoencoder(3, objective=objective, scale="standard", precision="float64", **PLAIN).fit(WINE)
    scale = model.codec_.log_scale.exp().item()
    assert scale != 1.0
    true = stats.norm.logpdf(WINE, model.reconstruct(WINE), scale * WINE.std(0)).sum(1)
    np.testing.assert_allclose(model.log_joint(WINE).x_given_h, true, rtol=1e-9, atol=1e-8)
    np.testing.assert_allclose(model.log_joint(WINE).h, stats.norm.logpdf(model.transform(WINE)).sum(1), rtol=1e-9)


@pytest.mark.parametrize(
    ("objective", "says"),
    [
        ("MSE() + 0.1 * L1()", "not a log density.*explain"),
        ("Likelihood(Normal(scale=0.5)) + 2.0 * Prior(Normal(scale=1.0))", "with coefficient 1"),
        ("Likelihood(Normal(scale=0.5)) + 0.1 * Contractive()", r"Contractive\(\) is not"),
        ("Likelihood(Normal(scale=0.5))", "one Likelihood and one Prior on the code"),
        ("Likelihood(Normal(scale=0.5)) + Prior(Normal(scale=1.0)) + Prior(Laplace(scale=1.0))", "one Prior"),
    ],
)
def test_log_joint_refuses_other_objectives(objective, says):
    model = Autoencoder(2, objective=objective, **PLAIN).fit(WINE)
    with pytest.raises(ValueError, match=says):
        model.log_joint(WINE)


# --- codes by optimisation


def dictionary_and_targets(model, X):
    """V (D, K) and the scaled rows less the decoder's bias, in float64."""
    last = model.codec_.decoder.last
    bias = last.bias.detach().double().numpy()
    return last.weight.detach().double().numpy(), model.scaling_.to(X) - bias


def lasso_codes(V, x, alpha, positive):
    """scikit-learn's sparse codes; where LARS ends off the optimum, by its own conditions, coordinate descent's."""
    codes = sparse_encode(x, V.T, algorithm="lasso_lars", alpha=alpha, positive=positive, max_iter=10_000)
    pull = (x - codes @ V.T) @ V
    worst = np.where(codes == 0, (pull if positive else np.abs(pull)) - alpha, np.abs(pull - alpha * np.sign(codes)))
    lost = np.flatnonzero(worst.max(1) > 1e-7)
    assert len(lost) <= 0.1 * len(x)
    for i in lost:
        lasso = Lasso(alpha=alpha / len(V), positive=positive, fit_intercept=False, tol=1e-14, max_iter=10**6)
        codes[i] = lasso.fit(V, x[i]).coef_
    return codes


@pytest.mark.parametrize("activation", ["Identity()", "ReLU()"])
@pytest.mark.parametrize(("K", "lam"), [(32, 0.01), (256, 0.02)])
def test_map_codes_are_the_lasso(K, lam, activation):
    model = Autoencoder(K, code_activation=activation, objective=f"MSE() + {lam} * L1()", **PLAIN).fit(DIGITS)
    X = DIGITS[:200]
    amortised = model.transform(X)
    codes = model.set_params(inference="map").transform(X)
    V, x = dictionary_and_targets(model, X)
    true = lasso_codes(V, x, alpha=lam * x.shape[1] / 2, positive=activation == "ReLU()")
    assert np.abs(codes - true).max() < 1e-5
    assert np.abs(codes - amortised).max() > 0.1
    assert 0.02 < (codes != 0).mean() < 0.8

    def energy(h):
        return ((x - h @ V.T) ** 2).mean(1) + lam * np.abs(h).sum(1)

    gap = energy(amortised) - energy(codes)
    print(f"\nK={K} {activation}: amortisation gap {gap.mean():.4g} of {energy(codes).mean():.4g} a row")
    assert (gap >= 0).all()
    if K == 32:
        np.testing.assert_allclose(model.amortization_gap(X), gap, rtol=1e-4, atol=1e-6)  # the encoder is in float32


@pytest.mark.parametrize("activation", ["Identity()", "ReLU()"])
def test_map_codes_of_rows_with_holes_are_the_lasso_of_seen_cells(activation):
    lam = 0.02
    model = Autoencoder(32, code_activation=activation, objective=f"MSE() + {lam} * L1()", inference="map",
                        **PLAIN).fit(DIGITS[:500])  # fmt: skip
    X = with_holes(DIGITS[:8], share=0.3)
    X[0] = np.nan  # nothing is known of it: its likeliest code is 0
    codes = model.transform(X)
    assert (codes[0] == 0).all()
    V, x = dictionary_and_targets(model, X)
    for i in range(1, len(X)):
        seen = ~np.isnan(x[i])
        # scikit-learn's mean is over the seen cells, retell's over all
        alpha = lam * x.shape[1] / (2 * seen.sum())
        lasso = Lasso(alpha=alpha, positive=activation == "ReLU()", fit_intercept=False, tol=1e-14, max_iter=10**6)
        assert np.abs(codes[i] - lasso.fit(V[seen], x[i, seen]).coef_).max() < 1e-5
    assert (model.amortization_gap(X) >= 0).all()


@pytest.mark.parametrize("activation", ["Identity()", "ReLU()"])
def test_map_of_densities_is_map_of_penalties(activation):
    K, s, b = 7, 0.4, 0.3
    codec, x = make_codec(K, parse(activation)), make_rows().numpy()
    penalties, _ = optimise(codec, MSE() + 2 * s**2 / (D * b) * L1(), x, 1.0)
    densities, gap = optimise(codec, Likelihood(Normal(scale=s)) + Prior(Laplace(scale=b)), x, 1.0)
    np.testing.assert_allclose(densities, penalties, rtol=0, atol=1e-7)
    assert (densities == 0).any()
    nats = D / (2 * s**2)
    np.testing.assert_allclose(gap, nats * optimise(codec, MSE() + 2 * s**2 / (D * b) * L1(), x, 1.0)[1], rtol=1e-6)


def test_a_normal_prior_gives_the_posterior_mean_and_no_zeros():
    """With Normal noise and a Normal prior the posterior is Normal, and its mode is a ridge regression's."""
    K, s, t = 7, 0.4, 0.8
    codec, x = make_codec(K, Identity()), make_rows().numpy()
    codes, _ = optimise(codec, Likelihood(Normal(scale=s)) + Prior(Normal(scale=t)), x, 1.0)
    V, bias = (q.detach().numpy() for q in (codec.decoder.last.weight, codec.decoder.last.bias))
    true = (x - bias) @ V @ np.linalg.inv(V.T @ V + (s / t) ** 2 * np.eye(K))
    np.testing.assert_allclose(codes, true, rtol=0, atol=1e-7)
    assert (codes != 0).all()


@pytest.mark.parametrize("holes", [False, True], ids=["whole", "holes"])
def test_a_map_code_does_not_depend_on_the_rows_beside_it(holes):
    X = with_holes(DIGITS[:300]) if holes else DIGITS[:300]
    for activation, hidden in (("ReLU()", ()), ("Identity()", (20,))):
        model = Autoencoder(12, code_activation=activation, hidden_layer_sizes=hidden, objective="MSE() + 0.02 * L1()",
                            max_iter=2, random_state=0, inference="map").fit(DIGITS[:300])  # fmt: skip
        codes = model.transform(X)
        for i in (0, 7, 299):
            assert (model.transform(X[i : i + 1]) == codes[i]).all()
        backwards = model.transform(X[::-1])[::-1]
        assert (backwards == codes).all()


@pytest.mark.parametrize(
    ("objective", "settings"),
    [
        ("MSE() + 0.02 * L1()", {"hidden_layer_sizes": (20,)}),
        ("MSE() + 0.02 * L1()", {"code_activation": "ReLU()", **BENT}),
        ("MSE() + 0.1 * StudentT()", {"hidden_layer_sizes": ()}),
        ("Huber(delta=0.5) + 0.01 * L1()", {"code_activation": "Sigmoid()", **BENT}),
        ("BCE() + 0.01 * L1()", {"hidden_layer_sizes": ()}),
        ("BCE()", {"code_activation": "Tanh()", **BENT}),
        ("Poisson() + 0.01 * L1()", {"hidden_layer_sizes": ()}),
        ("Nested(MSE(), (2, 4)) + 0.01 * L1()", {"hidden_layer_sizes": ()}),
        ("Likelihood(Normal()) + Prior(StudentT(df=2.0, scale=0.5)) + Prior(Normal(scale=1.0), on='weights')",
         {"hidden_layer_sizes": (), "code_activation": "Softplus()"}),
    ],
    ids=["deep", "deep and one-sided", "StudentT", "bounded", "bits", "deep bits", "counts", "Nested", "densities"],
)  # fmt: skip
def test_a_map_code_is_never_worse_than_the_encoders(objective, settings):
    X = DIGITS[:300]
    model = Autoencoder(8, objective=objective, max_iter=3, random_state=0, **settings).fit(X)
    first = model.transform(X)
    gap = model.amortization_gap(X)
    best = model.set_params(inference="map").transform(X)
    low, high = model.codec_.code_activation.range
    assert (best >= low).all()
    assert (best <= high).all()
    codec = copy.deepcopy(model.codec_).double()
    unit = codec.rms if repr(model._model.parts.constraint) == "UnitRMS()" else 1.0
    with torch.no_grad():
        x = torch.from_numpy(model.scaling_.to(X))
        energies = [model.objective_.by_row(codec.as_pass(x, torch.from_numpy(h), unit)).numpy() for h in (first, best)]
    assert (gap >= 0).all()
    assert gap.mean() > 1e-6
    assert (energies[1] <= energies[0] + 1e-7).all()
    np.testing.assert_allclose(energies[0] - energies[1], gap, rtol=1e-4, atol=1e-5)


def test_map_codes_of_a_convex_problem_have_no_slope_left():
    """Cross-entropy with an L1: at the optimum the loss's slope is -λ sign(h), and within ±λ where h is 0."""
    X, lam = DIGITS[:100], 0.004
    model = Autoencoder(16, objective=f"BCE() + {lam} * L1()", inference="map", **PLAIN).fit(X)
    codec = copy.deepcopy(model.codec_).double()
    h = torch.from_numpy(model.transform(X)).requires_grad_()
    x = torch.from_numpy(model.scaling_.to(X))
    (slope,) = torch.autograd.grad(BCE()(codec.as_pass(x, h, 1.0)).mean(1).sum(), h)
    zero = h == 0
    assert 0.1 < zero.double().mean() < 0.9
    assert (slope + lam * h.sign())[~zero].abs().max() < 1e-6
    assert slope[zero].abs().max() < lam + 1e-6


def test_map_survives_save_and_load(tmp_path):
    X = DIGITS[:200]
    model = Autoencoder(8, code_activation="ReLU()", objective="MSE() + 0.02 * L1()", inference="map", **PLAIN).fit(X)
    model.save(tmp_path / "model")
    again = retell.load(tmp_path / "model")
    assert again.inference == "map"
    assert (again.transform(X) == model.transform(X)).all()
    assert (again.reconstruct(X) == model.reconstruct(X)).all()
    assert again.score(X) == model.score(X)
    again.set_params(inference="encoder")
    assert np.abs(again.transform(X) - model.transform(X)).max() > 0.01
    assert (again.amortization_gap(X) == model.amortization_gap(X)).all()


def test_inference_changes_codes_and_not_the_fit():
    X = DIGITS[:200]
    settings = {"code_activation": "ReLU()", "objective": "MSE() + 0.02 * L1()", **PLAIN}
    encoder, optimised = Autoencoder(8, **settings).fit(X), Autoencoder(8, inference="map", **settings).fit(X)
    for ours, theirs in zip(encoder.codec_.parameters(), optimised.codec_.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    amortised = encoder.transform(X)
    assert (encoder.set_params(inference="map").transform(X) == optimised.transform(X)).all()
    assert (encoder.set_params(inference="encoder").transform(X) == amortised).all()
    # all that builds on codes uses them
    h = optimised.transform(X)
    np.testing.assert_allclose(optimised.reconstruct(X), optimised.inverse_transform(h), rtol=0, atol=1e-12)
    print(f"\nR² of the encoder's codes {encoder.score(X):.4f}, of optimised ones {optimised.score(X):.4f}")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"code_activation": "TopK(2)"}, r"TopK\(2\) chooses them itself"),
        ({"code_activation": "BatchTopK(2)"}, r"BatchTopK\(2\) chooses them itself"),
        ({"code_activation": "JumpReLU()", "objective": "MSE() + 0.1 * L0()"}, r"L0\(\) is not known to be a function"),
        ({"code_activation": "Sample()"}, r"Sample\(\) chooses them itself"),
        (
            {"code_activation": "Sample()", "objective": MSE() + 0.1 * ToNormal()},
            r"ToNormal\(\) is not known to be a function",
        ),
        ({"code_activation": "Sigmoid()", "objective": MSE() + 0.1 * KL()}, r"KL\(\) is not known to be a function"),
        ({"objective": MSE() + 0.1 * Contractive()}, r"Contractive\(\) is not known to be a function"),
        ({"objective": Hidden(MSE()), "corruption": "Mask(0.3)"}, "no corrupted cells for Hidden"),
    ],
    ids=["TopK", "BatchTopK", "L0", "Sample", "ToNormal", "KL", "Contractive", "Hidden"],
)
def test_map_is_refused_with_a_sentence(settings, says):
    with pytest.raises(ValueError, match=says):
        Autoencoder(4, inference="map", **settings, **PLAIN).fit(WINE)
    model = Autoencoder(4, **settings, **PLAIN).fit(WINE)
    before = model.transform(WINE)
    with pytest.raises(ValueError, match=says):
        model.amortization_gap(WINE)
    with pytest.raises(ValueError, match=re.compile("use inference='encoder'|or inference='encoder'")):
        model.set_params(inference="map").transform(WINE)
    assert (model.set_params(inference="encoder").transform(WINE) == before).all()


def test_an_unknown_inference_is_refused():
    with pytest.raises(ValueError, match="inference"):
        Autoencoder(2, inference="best", **PLAIN).fit(WINE)
    model = Autoencoder(2, **PLAIN).fit(WINE)
    with pytest.raises(ValueError, match="'encoder' or 'map' was expected"):
        model.set_params(inference="best").transform(WINE)


@pytest.mark.parametrize("K", [1, 7])
def test_scales_are_not_rounded(K):
    """0.3 in float64, not what float32 makes of it."""
    s, b, t = 0.3, 0.1, 0.7
    codec, x = make_codec(K, Identity()), make_rows()
    constant = D / 2 * math.log(2 * math.pi * s**2) + K * math.log(2 * b) + n_weights(codec) * math.log(2 * t) / N
    penalties = D / (2 * s**2) * (MSE() + 2 * s**2 / (D * b) * L1() + 2 * s**2 / (D * N * t) * L1Weights())
    densities = Likelihood(Normal(scale=s)) + Prior(Laplace(scale=b)) + Prior(Laplace(scale=t), on="weights")
    check_same(densities, penalties, constant, codec, x)


@pytest.mark.parametrize(
    ("text", "activation", "kind", "noise"),
    [
        ("MSE() + 0.001 * L1()", "Identity()", "real", 1.0),
        ("2 * MSE() + 0.3 * L2() + 0.02 * L1()", "ReLU()", "real", 0.3),
        ("MSE() + 0.5 * StudentT(df=3.0, scale=2.0)", "Identity()", "real", 0.3),
        ("BCE() + 0.01 * L1() + 0.001 * L1Weights()", "ReLU()", "bits", 1.0),
        ("Likelihood(Normal(scale=0.5)) + Prior(Exponential(0.1))", "ReLU()", "real", 1.0),
        ("Likelihood(Normal(scale=0.5)) + 2.0 * Prior(Exponential(0.25))", "Softplus()", "real", 1.0),
    ],
)
def test_explain_says_the_same_for_any_scale(text, activation, kind, noise):
    test_explain_says_the_same_in_both_languages(text, activation, kind, noise)


def test_explain_gives_an_exponential_the_one_sided_constant():
    said = (Likelihood(Normal(scale=0.5)) + Prior(Exponential(0.1))).explain(100, D)
    assert f"({math.log(0.1):.6g} where it can't be negative)" in str(said)


def test_map_of_an_exponential_prior_is_that_of_a_laplace_prior():
    K, s, b = 7, 0.4, 0.3
    codec, x = make_codec(K, ReLU()), make_rows().numpy()
    one_sided, _ = optimise(codec, Likelihood(Normal(scale=s)) + Prior(Exponential(scale=b)), x, 1.0)
    laplace, _ = optimise(codec, Likelihood(Normal(scale=s)) + Prior(Laplace(scale=b)), x, 1.0)
    np.testing.assert_allclose(one_sided, laplace, rtol=0, atol=1e-7)
    assert (laplace == 0).any()


def test_the_rows_that_share_a_prior_survive_save_and_load(tmp_path):
    model = Autoencoder(2, objective="MSE() + 0.1 * Prior(Normal(1.0), on='weights')", **PLAIN).fit(WINE)
    model.save(tmp_path / "model")
    assert retell.load(tmp_path / "model").codec_.n_rows == model.codec_.n_rows > 100


def test_dead_units_of_a_deep_decoder_have_a_density():
    objective = Likelihood(Normal(1.0)) + Prior(Laplace(0.05))
    model = Autoencoder(8, hidden_layer_sizes=(16,), code_activation="ReLU()", objective=objective, max_iter=20,
                        random_state=0).fit(WINE)  # fmt: skip
    with torch.no_grad():
        model.codec_.rms[0] = UnitRMS().unit(torch.zeros(5, 1))[0]  # as of a unit that is never active
    assert np.isfinite(model.log_joint(WINE).total).all()
    assert np.isfinite(model.amortization_gap(WINE[:5])).all()
