"""Every member of a letter is its formula, and has the gradient that it declares.

N rows, D columns, K code units; random problems in float64.
"""

import copy
import math
from typing import ClassVar

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.datasets import load_digits
from sklearn.decomposition import NMF
from torch.distributions import Normal as TorchNormal
from torch.distributions import kl_divergence

from retell import (
    L0,
    MSE,
    Autoencoder,
    AuxK,
    BatchTopK,
    Codec,
    Contractive,
    Corrupted,
    Gated,
    GateL1,
    GateMSE,
    Gaussian,
    Hidden,
    Huber,
    Identity,
    JumpReLU,
    L1Weights,
    Likelihood,
    Mask,
    Nested,
    Normal,
    Part,
    Poisson,
    ReLU,
    SaltAndPepper,
    Sample,
    Sigmoid,
    Softplus,
    StudentT,
    Swap,
    Tanh,
    Term,
    ToNormal,
    TopK,
    Uniform,
    mirror,
    mlp,
)
from retell.corruptions import Nothing
from retell.objective import mean
from retell.solvers.exact import Problem, Spectrum, solve, why_not

D, K, N = 5, 4, 12
DIGITS = load_digits().data / 16


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


def make_codec(activation, hidden=(), *, tied=False, squash="tanh", linear_path=True, seed=0, size=0.7):
    """A random codec in float64."""
    encoder = mlp([D, *hidden, getattr(activation, "outputs", 1) * K], squash, linear_path=linear_path)
    decoder = mirror(encoder, tied=tied) if tied else mlp([K, *hidden[::-1], D], squash, linear_path=linear_path)
    codec = Codec(encoder, activation.bind(K), decoder, torch.zeros(D)).double().eval()
    draw = draws(seed)
    with torch.no_grad():
        for net in (codec.encoder, codec.decoder):
            for parameter in net.parameters():
                parameter.normal_(generator=draw).mul_(size)
    return codec


def make_rows(seed=1, n=N):
    return torch.randn(n, D, dtype=torch.float64, generator=draws(seed))


def with_holes(x, share=0.2):
    x = x.clone()
    x[torch.rand(x.shape, generator=draws(9)) < share] = math.nan
    return x


def same(a, b, atol=1e-12):
    torch.testing.assert_close(a, b, rtol=1e-10, atol=atol)


# --- JumpReLU


def jump(thresholds, bandwidth=0.5):
    squash = JumpReLU(bandwidth=bandwidth).bind(len(thresholds)).double()
    with torch.no_grad():
        squash.threshold.copy_(torch.as_tensor(thresholds))
    return squash


THRESHOLDS = [0.0, 0.3, 0.8, -0.4]  # below 0 counts as 0


def test_jump_relu_is_its_formula():
    a = torch.randn(200, K, dtype=torch.float64, generator=draws())
    theta = torch.tensor(THRESHOLDS, dtype=torch.float64).clamp(min=0)
    h = jump(THRESHOLDS)(a).detach()
    same(h, torch.where(a > theta, a, 0.0))
    assert (h[:, 3] >= 0).all()
    at = jump([0.5] * K)(torch.full((1, K), 0.5, dtype=torch.float64))
    assert (at == 0).all()  # a > θ, not a >= θ


def test_jump_relus_gradients_are_those_of_the_window():
    """∂h/∂θ = -(θ / ε) [|a - θ| < ε / 2],  ∂[a > θ]/∂θ = -[|a - θ| < ε / 2] / ε,  ∂h/∂a = [a > θ]"""
    bandwidth = 0.5
    a = torch.randn(200, K, dtype=torch.float64, generator=draws()).requires_grad_()
    weight = torch.randn(200, K, dtype=torch.float64, generator=draws(1))
    squash = jump(THRESHOLDS, bandwidth)
    theta = squash.threshold.detach().clamp(min=0)
    window = ((a - theta).abs() < bandwidth / 2).double().detach()
    assert 0.05 < window.mean() < 0.5
    for_theta, for_a = torch.autograd.grad((weight * squash(a)).sum(), [squash.threshold, a])
    same(for_theta, -(weight * theta / bandwidth * window).sum(0))
    same(for_a, weight * (a > theta))
    (counted,) = torch.autograd.grad((weight * squash.part.active(a, squash)).sum(), [squash.threshold])
    same(counted, -(weight / bandwidth * window).sum(0))
    assert counted.abs().min() > 1e-3


def test_l0_counts_active_units_and_moves_only_thresholds():
    codec = make_codec(JumpReLU(0.3, bandwidth=0.8))
    p = codec(make_rows())
    value = L0()(p)
    same(value.detach(), (p.h != 0).sum(1).double())
    value.sum().backward()
    theta = codec.code_activation.threshold
    same(theta.grad, -((p.a - theta).abs() < 0.4).sum(0).double().detach() / 0.8)
    assert theta.grad.abs().max() > 0
    for parameter in (*codec.encoder.parameters(), *codec.decoder.parameters()):
        assert parameter.grad is None or (parameter.grad == 0).all()


# --- BatchTopK


def test_batch_topk_shares_k_units_a_row_while_training():
    k, n = 2, 50
    a = torch.randn(n, K, dtype=torch.float64, generator=draws()) + torch.linspace(0, 2, n)[:, None]
    squash = BatchTopK(k).bind(K).double()
    h = squash.train()(a)
    kept = a >= a.flatten().sort(descending=True).values[k * n - 1]
    assert kept.sum() == k * n
    same(h, torch.where(kept, a.clamp(min=0), 0.0))
    active = (h != 0).sum(1)
    assert active.min() == 0
    assert active.max() == K  # no row has a quota
    with torch.no_grad():
        squash.threshold.fill_(0.7)
    row = squash.eval()(a)
    same(row, torch.where(a >= 0.7, a, 0.0))
    same(squash(a[:1]), row[:1])  # alone as in company


def test_batch_topk_counts_its_threshold_as_the_mean_of_least_active_values():
    codec = make_codec(BatchTopK(2))
    squash, least = codec.code_activation, []
    for seed in range(5):
        p = codec.train()(make_rows(seed))
        before = float(squash.threshold)
        assert (codec(make_rows(seed)).h == p.h).all()
        assert float(squash.threshold) == before  # forward counts nothing
        codec.observe(p)
        least.append(float(p.h[p.h > 0].min().detach()))
    assert float(squash.threshold) == pytest.approx(np.mean(least), rel=1e-6)


@pytest.mark.parametrize("units", [64, 128])
def test_batch_topk_has_k_active_units_on_held_out_rows_too(units):
    order = np.random.default_rng(0).permutation(len(DIGITS))
    train, test = DIGITS[order[:1500]], DIGITS[order[1500:]]
    model = Autoencoder(units, code_activation=BatchTopK(8), random_state=0, max_iter=15).fit(train)
    active = (model.transform(test) != 0).sum(1)
    print(f"\nK={units}: {active.mean():.2f} active units a held-out row, k = 8")
    assert active.mean() == pytest.approx(8, rel=0.15)
    assert active.std() > 0.5  # some rows need more than others


# --- Gated


def test_gated_is_its_formula():
    squash = Gated().bind(K).double()
    with torch.no_grad():
        squash.stretch.copy_(torch.tensor([0.0, 0.5, -1.0, 0.2]))
        squash.shift.copy_(torch.tensor([0.0, 0.3, -0.2, -0.5]))
    a = torch.randn(100, K, dtype=torch.float64, generator=draws())
    r, b = squash.stretch.detach(), squash.shift.detach()
    by_hand = torch.where(a > 0, (r.exp() * a + b).clamp(min=0), 0.0)
    same(squash(a).detach(), by_hand)
    assert (by_hand[:, 1][a[:, 1] <= 0] == 0).all()  # a closed gate lets no shift through


def gate_gradients(term, *, tied):
    codec = make_codec(Gated(), tied=tied)
    with torch.no_grad():
        codec.code_activation.stretch.fill_(0.3)
        codec.code_activation.shift.fill_(-0.1)
    p = codec(make_rows())
    term(p).sum().backward()
    return codec, p


def test_gate_l1_is_the_l1_of_what_opens_the_gates():
    codec, p = gate_gradients(GateL1(), tied=False)
    same(GateL1()(p).detach(), p.a.detach().clamp(min=0).sum(1))
    same(codec.encoder.last.weight.grad, (p.a > 0).double().T @ p.x)
    for parameter in (*codec.decoder.parameters(), *codec.code_activation.parameters()):
        assert parameter.grad is None or (parameter.grad == 0).all()


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_gate_mse_teaches_the_gates_and_holds_the_decoder_still(tied):
    codec, p = gate_gradients(GateMSE(), tied=tied)
    V, b = codec.decoder.last.weight.detach().clone(), codec.decoder.last.bias
    gate = p.a.detach().clamp(min=0)
    off = gate @ V.T + b.detach() - p.x
    same(GateMSE()(p).detach(), off.square().mean(1))
    # by hand through the gates alone: with tied weights V is the same storage and still held
    through = (2 / D * off @ V) * (p.a > 0)
    same(codec.encoder.last.weight.grad, through.T @ p.x)
    same(codec.encoder.last.bias.grad, through.sum(0))
    assert b.grad is None or (b.grad == 0).all()
    own = codec.decoder.last.own
    assert own is None or own.grad is None or (own.grad == 0).all()


# --- Sample, ToNormal


def test_sample_draws_with_the_encoders_mean_and_deviation():
    n = 40_000
    m, log_s = torch.tensor([0.5, -1.0, 0.0, 2.0]), torch.tensor([0.0, -1.0, 0.7, -3.0])
    a = torch.cat([m, log_s]).double().expand(n, 2 * K)
    state = torch.get_rng_state()
    h = Sample().sample(a, draws(3))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(h, Sample().sample(a, draws(3)))
    assert not torch.equal(h, Sample().sample(a, draws(4)))
    s = log_s.exp().double()
    assert ((h.mean(0) - m).abs() < 4 * s / math.sqrt(n)).all()
    assert ((h.var(0) / s**2 - 1).abs() < 4 * math.sqrt(2 / n)).all()
    assert stats.kstest(((h - m) / s).flatten()[:20_000].numpy(), "norm").pvalue > 0.01
    same(Sample()(a), m.double().expand(n, K))  # elsewhere the code is the mean
    assert abs(np.corrcoef(h.T.numpy())[np.triu_indices(K, 1)]).max() < 4 / math.sqrt(n)


def test_a_codec_draws_only_with_a_generator():
    codec, x = make_codec(Sample()), make_rows()
    same(codec(x).h, codec.encoder(x)[:, :K])
    drawn = codec(x, None, draws(2))
    assert (drawn.h != codec(x).h).all()
    same(drawn.h, Sample().sample(drawn.a, draws(2)))


def test_to_normal_is_torchs_divergence():
    p = make_codec(Sample())(make_rows())
    m, log_s = p.a[:, :K], p.a[:, K:]
    true = kl_divergence(TorchNormal(m, log_s.exp()), TorchNormal(0.0, 1.0))
    same(ToNormal().by_unit(p), true)
    same(ToNormal()(p), true.sum(1))


def linear_vae(noise):
    """A linear decoder with orthogonal columns, so that the exact posterior is one that `Sample` can say."""
    codec = make_codec(Sample())
    draw = draws(7)
    V = torch.linalg.qr(torch.randn(D, K, dtype=torch.float64, generator=draw))[0] * torch.tensor([2.0, 1.0, 0.5, 0.2])
    b = codec.decoder.last.bias.detach()
    var = 1 / (1 + V.square().sum(0) / noise**2)
    W = var[:, None] * V.T / noise**2
    with torch.no_grad():
        codec.decoder.last.weight.copy_(V)
        codec.encoder.last.weight.copy_(torch.cat([W, torch.zeros(K, D)]))
        codec.encoder.last.bias.copy_(torch.cat([-W @ b, var.log() / 2]))
    return codec, V, b


def test_the_elbo_of_a_linear_model_is_its_closed_form():
    noise, n = 0.5, 200_000
    objective = Likelihood(Normal(scale=noise)) + ToNormal()
    codec, V, b = linear_vae(noise)
    x = make_rows(n=3)
    covariance = (V @ V.T + noise**2 * torch.eye(D)).numpy()
    for off in (0.0, 0.3):  # at the posterior the bound is log p(x); off it, less by their divergence
        with torch.no_grad():
            codec.encoder.last.bias += off
            p = codec(x)
            m, s = p.a[:, :K], p.a[:, K:].exp()
            misfit = ((x - m @ V.T - b).square().sum(1) + s.square() @ V.square().sum(0)) / (2 * noise**2)
            closed = D / 2 * math.log(2 * math.pi * noise**2) + misfit + ToNormal()(p)
            values = objective.by_row(codec(x.repeat(n // 3, 1), None, draws(5))).reshape(-1, 3)
        error = values.std(0) / math.sqrt(len(values))
        assert (error < 2e-3 * closed).all()
        assert ((values.mean(0) - closed).abs() < 4 * error).all()
        evidence = stats.multivariate_normal(b.numpy(), covariance).logpdf(x.numpy())
        if off == 0:
            np.testing.assert_allclose(-closed.numpy(), evidence, rtol=1e-10)
        else:
            assert (-closed.numpy() < evidence - 0.01).all()


# --- corruptions


def test_uniform_is_uniform():
    x, scale = torch.zeros(4000, D, dtype=torch.float64), 0.3
    made = Uniform(scale)(x, draws())
    assert made.hit.all()
    assert stats.kstest(made.x.flatten().numpy(), stats.uniform(-scale, 2 * scale).cdf).pvalue > 0.01
    some = Uniform(scale, p=0.25)(x, draws())
    assert abs(some.hit.double().mean() - 0.25) < 4 * math.sqrt(0.25 * 0.75 / x.numel())
    assert ((some.x != 0) == some.hit).all()
    assert stats.kstest(some.x[some.hit].numpy(), stats.uniform(-scale, 2 * scale).cdf).pvalue > 0.01


@pytest.mark.parametrize("p", [0.1, 0.6, 1.0])
def test_salt_and_pepper_gives_the_least_or_the_largest(p):
    x = with_holes(make_rows(n=4000))
    made, seen = SaltAndPepper(p)(x, draws()), ~torch.isnan(x)
    low, high = np.nanmin(x.numpy(), 0), np.nanmax(x.numpy(), 0)
    is_low, is_high = made.x == torch.from_numpy(low), made.x == torch.from_numpy(high)
    assert (is_low | is_high)[made.hit].all()
    assert not (made.hit & ~seen).any()
    assert torch.equal(torch.isnan(made.x), ~seen)
    assert torch.equal(made.x[seen & ~made.hit], x[seen & ~made.hit])
    n = int(seen.sum())
    assert abs(made.hit.sum() / n - p) <= 4 * math.sqrt(p * (1 - p) / n)
    hits = int(made.hit.sum())
    assert abs(is_low[made.hit].double().mean() - 0.5) < 4 * math.sqrt(0.25 / hits)


@pytest.mark.parametrize("p", [0.3, 1.0])
def test_swap_takes_the_column_of_another_row_each_as_often(p):
    n, times = 6, 4000
    x = torch.arange(n * D, dtype=torch.float64).reshape(n, D)  # every value says where it is from
    draw, donors, hits = draws(), np.zeros((n, n)), 0
    for _ in range(times):
        made = Swap(p)(x, draw)
        assert (made.x % D == torch.arange(D)).all()  # never another column's
        assert ((made.x != x) == made.hit).all()  # and never its own
        donor = (made.x // D).long()
        taker = torch.arange(n)[:, None].expand(n, D)
        np.add.at(donors, (taker[made.hit].numpy(), donor[made.hit].numpy()), 1)
        hits += int(made.hit.sum())
    cells = n * D * times
    assert abs(hits / cells - p) <= 4 * math.sqrt(p * (1 - p) / cells)
    assert (np.diag(donors) == 0).all()
    others = donors[~np.eye(n, dtype=bool)]
    assert stats.chisquare(others).pvalue > 0.01


def test_swap_keeps_marginals_and_breaks_what_belongs_together():
    n = 5000
    z = torch.randn(n, 1, dtype=torch.float64, generator=draws())
    x = torch.cat([z, z + 0.1 * torch.randn(n, 1, dtype=torch.float64, generator=draws(1)), z.exp()], 1)
    made = Swap(1.0)(x, draws(2)).x
    for j in range(3):
        assert stats.ks_2samp(made[:, j].numpy(), x[:, j].numpy()).pvalue > 0.01
        assert np.isin(made[:, j].numpy(), x[:, j].numpy()).all()
    assert np.corrcoef(x[:, 0], x[:, 1])[0, 1] > 0.9
    assert abs(np.corrcoef(made[:, 0], made[:, 1])[0, 1]) < 4 / math.sqrt(n)


def test_swap_leaves_holes_and_takes_nothing_from_them():
    x = with_holes(make_rows(n=500), share=0.4)
    made = Swap(0.7)(x, draws())
    assert torch.equal(torch.isnan(made.x), torch.isnan(x))
    assert not made.hit[torch.isnan(x)].any()
    assert made.hit.any()
    assert torch.equal(made.x[~made.hit].nan_to_num(), x[~made.hit].nan_to_num())
    alone = Swap(1.0)(x[:1], draws())
    assert torch.equal(alone.x.nan_to_num(), x[:1].nan_to_num())
    assert not alone.hit.any()


# --- emphasis and Hidden


@pytest.mark.parametrize("corruption", [Gaussian(0.5, p=0.4, emphasis=3.0), Mask(0.4, emphasis=0.5),
                                        SaltAndPepper(0.4, emphasis=3.0), Swap(0.4, emphasis=5.0),
                                        Uniform(0.5, p=0.4, emphasis=3.0)], ids=repr)  # fmt: skip
def test_emphasis_is_the_weight_of_hit_cells(corruption):
    codec, x = make_codec(Identity()), with_holes(make_rows(n=30))
    corrupted = corruption(x, draws())
    p = codec(x, corrupted)
    seen, hit = ~torch.isnan(x), corrupted.hit
    assert (hit & seen).any()
    assert (~hit & seen).any()
    for loss, cells in ((MSE(), (x - p.x_hat).square()), (Huber(0.5), Huber(0.5)(p))):
        top = corruption.emphasis * cells[hit & seen].sum() + cells[~hit & seen].sum()
        by_hand = top / (corruption.emphasis * (hit & seen).sum() + (~hit & seen).sum())
        same(mean(loss(p), p), by_hand)
        same((1.0 * loss).by_row(p).mean(), by_hand)


@pytest.mark.parametrize("emphasis", [1.0, 4.0])
def test_hidden_is_the_mean_over_hit_cells(emphasis):
    codec, x = make_codec(Identity()), with_holes(make_rows(n=30))
    p = codec(x, Mask(0.3, emphasis=emphasis)(x, draws()))
    by_hand = (x - p.x_hat).square()[p.hit].mean()
    same(mean(Hidden(MSE())(p), p), by_hand)
    same((1.0 * Hidden(MSE())).by_row(p).mean(), by_hand)
    untouched = codec(x, Corrupted(x, torch.zeros_like(x, dtype=torch.bool)))
    assert mean(Hidden(MSE())(untouched), untouched) == 0


def test_hidden_counts_hit_cells_that_came_out_as_they_were():
    """Half of all swaps between bits change nothing, and still nobody may copy them."""
    x = torch.randint(0, 2, (200, D), generator=draws()).double()
    corrupted = Swap(0.3)(x, draws(1))
    unchanged = corrupted.hit & (corrupted.x == x)
    assert 0.4 < unchanged.sum() / corrupted.hit.sum() < 0.6
    p = make_codec(Identity())(x, corrupted)
    cells = (x - p.x_hat).square()
    same(mean(Hidden(MSE())(p), p), cells[corrupted.hit].mean())
    assert abs(cells[corrupted.hit].mean() - cells[corrupted.x != x].mean()) > 1e-3


def test_hidden_is_refused_without_corruption():
    with pytest.raises(ValueError, match=r"counts corrupted cells.*Mask\(0.3\)"):
        Autoencoder(2, objective=Hidden(MSE()), random_state=0).fit(DIGITS[:50])
    for inner in (Likelihood(Normal(0.5)), Nested(MSE(), (1,)), Contractive()):
        with pytest.raises(ValueError, match="Hidden"):
            Hidden(inner)


# --- Nested


@pytest.mark.parametrize("hidden", [(), (6,)], ids=["linear", "deep"])
def test_nested_is_the_mean_over_prefixes(hidden):
    codec, x = make_codec(ReLU(), hidden), with_holes(make_rows())
    p = codec(x)
    total = 0.0
    for m in (1, 3, K):
        h = p.h.clone()
        h[:, m:] = 0
        off = torch.where(torch.isnan(x), 0.0, x) - codec.decoder(h)
        total = total + off[~torch.isnan(x)].square().mean() / 3
    same(mean(Nested(MSE(), (1, 3))(p), p), total)
    with pytest.raises(ValueError, match=r"prefix of 4 units, but the code has 4"):
        Nested(MSE(), (1, 4)).check(codec)


def test_the_first_units_of_a_nested_code_carry_the_most():
    prefixes = (1, 2, 4)
    settings = {"hidden_layer_sizes": (), "start": "random", "max_iter": 30, "random_state": 0}
    explained = {}
    for objective in (Nested(MSE(), prefixes), MSE()):
        model = Autoencoder(8, objective=objective, **settings).fit(DIGITS)
        h, off = model.transform(DIGITS), DIGITS - DIGITS.mean(0)
        explained[repr(objective)] = [
            1 - ((DIGITS - model.inverse_transform(h * (np.arange(8) < m))) ** 2).sum() / (off**2).sum()
            for m in (*prefixes, 8)
        ]
    nested, plain = explained.values()
    best = np.cumsum(np.linalg.svd(off, compute_uv=False) ** 2)[[0, 1, 3, 7]] / (off**2).sum()
    print(f"\nR² of prefixes: nested {np.round(nested, 3)}, plain {np.round(plain, 3)}, PCA {np.round(best, 3)}")
    assert (np.array(nested) > 0.97 * best).all()
    assert plain[0] < 0.8 * best[0]


# --- Contractive

ACTIVATIONS = [Identity(), ReLU(), Sigmoid(), Tanh(), Softplus(), TopK(2), BatchTopK(2), JumpReLU(), Gated(), Sample()]


def true_norms(f, x):
    """||∂f/∂x||_F² of each row, by autograd, and J (N, outputs, D)."""
    J = torch.stack([torch.autograd.functional.jacobian(lambda row: f(row[None])[0], row) for row in x])
    return J.square().sum((1, 2)), J


@pytest.mark.parametrize("hidden", [(), (6,), (6, 5)], ids=["0", "1", "2"])
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=repr)
def test_contractive_is_autograds_jacobian(activation, hidden):
    codec, x = make_codec(activation, hidden, seed=len(hidden)), make_rows(n=6)
    of_code, _ = true_norms(codec.encode, x)
    of_x_hat, _ = true_norms(lambda row: codec.decode(codec.encode(row)), x)
    p = codec(x)
    for method in ("auto", "exact"):
        same(Contractive(method=method)(p).detach(), of_code)
        same(Contractive(of="reconstruction", method=method)(p).detach(), of_x_hat)
    assert of_code.max() > 1e-2


class Whole(Part):
    """h = σ(a), with its `elementwise` held back"""

    letter = "σ"
    elementwise: ClassVar[bool] = False
    sparse: ClassVar[bool] = False
    inner: Part

    @property
    def range(self):
        return self.inner.range

    def __call__(self, a):
        return self.inner(a)


@pytest.mark.parametrize("activation", [Identity(), Sigmoid(), Tanh(), Softplus(), TopK(2)], ids=repr)
def test_the_closed_form_is_the_general_path(activation):
    """Value and gradient."""
    closed, general = make_codec(activation), make_codec(Whole(activation))
    x = make_rows()
    values = []
    for codec in (closed, general):
        value = Contractive()(codec(x))
        value.sum().backward()
        values.append((value.detach(), codec.encoder.last.weight.grad, codec.encoder.last.bias.grad))
    for one, other in zip(*values, strict=True):
        assert (one is None) == (other is None)  # the slope of Identity does not know the bias
        if one is not None:
            same(one, other)


class Softmax(Part):
    """h = exp(a) / Σ exp(a)"""

    letter = "σ"
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    sparse: ClassVar[bool] = False
    elementwise: ClassVar[bool] = False

    def __call__(self, a):
        return torch.softmax(a, 1)


def test_an_own_activation_that_mixes_units_is_not_given_the_closed_form():
    codec, x = make_codec(Softmax()), make_rows()
    true, _ = true_norms(codec.encode, x)
    same(Contractive()(codec(x)).detach(), true)
    h = codec.encode(x)
    diagonal = (h * (1 - h)).square() @ codec.encoder.last.weight.square().sum(1)
    assert ((true - diagonal).abs() > 0.01 * true).all()  # what the closed form would have said


@pytest.mark.parametrize("of", ["code", "reconstruction"])
def test_the_projection_is_unbiased_and_scatters_as_it_says(of):
    """With random signs the variance of one draw is 2 Σ_{i != j} (J Jᵀ)_ij²."""
    times = 4096
    codec, x = make_codec(Tanh(), (6,)), make_rows()
    true, J = true_norms((lambda row: codec.decode(codec.encode(row))) if of == "reconstruction" else codec.encode, x)
    G = J @ J.mT
    scatter = 2 * (G.square().sum((1, 2)) - G.diagonal(dim1=1, dim2=2).square().sum(1))
    estimate = Contractive(of=of, method="projection")
    with torch.no_grad():
        values = estimate(codec(x.repeat(times, 1), None, draws())).reshape(times, len(x))
    off = values.mean() / true.mean() - 1
    print(f"\nof {of}: the mean of {times} draws is off by {off:.2%}")
    assert abs(off) < 0.02
    assert ((values.mean(0) - true).abs() < 4 * (scatter / times).sqrt()).all()
    torch.testing.assert_close(values.var(0), scatter, rtol=0.1, atol=0)
    said = estimate.variance(codec(x, None, draws(1)), draws=1000)
    torch.testing.assert_close(said, scatter, rtol=0.2, atol=0)
    exact = Contractive(of=of, method="exact").variance(codec(x, None, draws(1)))
    assert (exact.abs() < 1e-12).all()


def test_the_projections_gradient_is_unbiased():
    codec, x = make_codec(Sigmoid()), make_rows(n=2)
    (true,) = torch.autograd.grad(Contractive()(codec(x)).mean(), codec.encoder.last.weight)
    many = codec(x.repeat(4096, 1), None, draws())
    (found,) = torch.autograd.grad(Contractive(method="projection")(many).mean(), codec.encoder.last.weight)
    assert (found - true).norm() < 0.03 * true.norm()


def test_auto_projects_above_64_directions_only():
    x = torch.from_numpy(DIGITS[:4]).float()
    for width, exact in ((64, True), (65, False)):
        wide = torch.nn.functional.pad(x, (0, width - 64))
        encoder = mlp([width, 3])
        codec = Codec(encoder, Identity(), mirror(encoder), torch.zeros(width))
        with torch.no_grad():
            for parameter in codec.parameters():
                parameter.normal_(generator=draws(width))
        term = Contractive(of="reconstruction")
        values = [term(codec(wide, None, draws(seed))).detach() for seed in (1, 2)]
        assert torch.equal(*values) == exact


def test_the_tied_linear_contraction_is_its_closed_form():
    """MSE + c ||W||² tied: V W = Σ (l - λ)+ / l u uᵀ with λ = c D / 2, and no descent finds less."""
    c, k = 0.02, 6
    X = DIGITS[:, 10:40]
    width = X.shape[1]
    S = np.cov(X.T, bias=True)
    values, axes = np.linalg.eigh(S)
    values, axes = values[::-1][:k], axes[:, ::-1][:, :k]
    gain = np.maximum(values - c * width / 2, 0) / values
    assert (gain == 0).any()
    assert (gain > 0.3).any()
    objective = MSE() + c * Contractive()
    model = Autoencoder(k, hidden_layer_sizes=(), tied=True, objective=objective, scale=None, random_state=0).fit(X)
    assert model.solver_ == "exact"
    V = model.codec_.dictionary().detach().numpy()
    np.testing.assert_allclose(V @ V.T, (axes * gain) @ axes.T, rtol=0, atol=1e-10)
    problem = Problem(objective, Nothing(), Identity(), model._model.parts.constraint, True, True, False)
    assert why_not(problem) == ""
    W, _ = solve(Spectrum.of(S), k, problem)
    np.testing.assert_allclose(W.T @ W, (axes * gain) @ axes.T, rtol=0, atol=1e-10)

    codec, x = copy.deepcopy(model.codec_), torch.from_numpy(X - X.mean(0))
    least = sum(objective(codec(x)).values()).item()
    with torch.no_grad():
        codec.encoder.last.weight.normal_(generator=draws()).mul_(0.3)
    optimizer = torch.optim.LBFGS(codec.parameters(), max_iter=2000, tolerance_grad=1e-10, tolerance_change=0,
                                  history_size=30, line_search_fn="strong_wolfe")  # fmt: skip

    def closure():
        optimizer.zero_grad()
        value = sum(objective(codec(x)).values())
        value.backward()
        return value

    optimizer.step(closure)
    assert closure().item() == pytest.approx(least, rel=1e-8)
    V = codec.dictionary().detach().numpy()
    np.testing.assert_allclose(V @ V.T, (axes * gain) @ axes.T, rtol=0, atol=1e-4)


# --- AuxK, idle


def aux_pass(dead):
    codec, x = make_codec(TopK(1)), make_rows()
    codec.idle[:] = torch.tensor([100.0 if k in dead else 99.0 for k in range(K)])
    return codec, codec(x)


def test_auxk_is_its_formula():
    codec, p = aux_pass(dead={1, 2, 3})
    term = AuxK(k=2, rows=100)
    a, V = p.a.detach(), codec.decoder.last.weight.detach()
    z = torch.zeros_like(a)
    for row in range(N):
        for k in sorted({1, 2, 3}, key=lambda k: -a[row, k])[:2]:
            z[row, k] = a[row, k]
    e = (p.x - p.x_hat).detach()
    same(term(p).detach(), (e - z @ V.T).square().mean(1))
    assert (z != 0).any()


def test_auxk_is_silent_while_no_unit_is_dead():
    codec, p = aux_pass(dead=set())
    value = AuxK(k=2, rows=100)(p)
    assert (value == 0).all()
    value.sum().backward()
    assert all(q.grad is None or (q.grad == 0).all() for q in codec.parameters())


def test_auxk_reaches_both_ends_of_dead_units_and_nothing_else():
    dead = {1, 3}
    codec, p = aux_pass(dead)
    AuxK(k=2, rows=100)(p).mean().backward()
    up, down = codec.encoder.last, codec.decoder.last
    for k in range(K):
        moved = [up.weight.grad[k], up.bias.grad[k], down.weight.grad[:, k]]
        assert all((g != 0).any() if k in dead else (g == 0).all() for g in moved)
    assert down.bias.grad is None or (down.bias.grad == 0).all()  # the residual is a given, and e has no bias
    # by hand: the gradient of ||e - V z||² / D with e held still
    a, V = p.a.detach(), down.weight.detach()
    z = a * torch.tensor([float(k in dead) for k in range(K)])
    off = z @ V.T - (p.x - p.x_hat).detach()
    same(down.weight.grad, 2 / (N * D) * off.T @ z)
    same(up.weight.grad, (2 / (N * D) * (off @ V) * (z != 0)).T @ p.x)


def test_idle_counts_rows_since_a_unit_was_active():
    codec = make_codec(TopK(1))
    with torch.no_grad():
        codec.encoder.last.weight.zero_()
        codec.encoder.last.bias.copy_(torch.tensor([1.0, 2.0, -1.0, -2.0]))
    for batch in (5, 7):
        before = codec.idle.clone()
        p = codec(make_rows(n=batch))
        assert torch.equal(codec.idle, before)  # forward counts nothing
        codec.observe(p)
    assert codec.idle.tolist() == [12, 0, 12, 12]
    with torch.no_grad():
        codec.encoder.last.bias[2] = 3.0
    codec.observe(codec(make_rows(n=4)))
    assert codec.idle.tolist() == [16, 4, 0, 16]


# --- NonNegative, L1Weights, StudentT


def test_a_nonnegative_dictionary_explains_digits_as_nmf_does():
    settings = {"hidden_layer_sizes": (), "code_activation": "ReLU()", "start": "random", "random_state": 0}
    model = Autoencoder(16, constraint="NonNegative()", max_iter=60, **settings).fit(DIGITS)
    free = Autoencoder(16, constraint="Free()", max_iter=20, **settings).fit(DIGITS)
    parts = model.components_
    assert parts.min() >= 0
    assert (parts == 0).mean() > 0.1  # exactly: on the boundary, not near it
    assert (free.components_ < 0).mean() > 0.3
    nmf = NMF(16, init="nndsvda", max_iter=1000, tol=1e-3).fit(DIGITS)
    left = ((DIGITS - nmf.transform(DIGITS) @ nmf.components_) ** 2).sum()
    its_score = 1 - left / ((DIGITS - DIGITS.mean(0)) ** 2).sum()
    print(f"\nR² {model.score(DIGITS):.3f}, NMF {its_score:.3f}, any sign {free.score(DIGITS):.3f}")
    assert model.score(DIGITS) > 0.97 * its_score


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_l1_weights_sums_every_matrix_once(tied):
    codec = make_codec(Identity(), (6,), tied=tied)
    value = L1Weights()(codec(make_rows()))
    same(value.detach(), torch.stack([w.abs().sum() for w in codec.matrices()]).sum().detach())
    assert len(codec.matrices()) == (3 if tied else 6)
    value.backward()
    for weight in codec.matrices():
        same(weight.grad, weight.detach().sign())
    assert all(layer.bias is None or layer.bias.grad is None for layer in codec.affines())


@pytest.mark.parametrize(("df", "scale"), [(1.0, 1.0), (4.0, 0.3)])
def test_student_t_is_the_log_density_less_its_constant(df, scale):
    p = make_codec(Identity())(make_rows())
    h = p.h.detach().numpy()
    true = stats.t.logpdf(0, df, scale=scale) - stats.t.logpdf(h, df, scale=scale)
    np.testing.assert_allclose(StudentT(df, scale)(p).detach().numpy(), true.sum(1), rtol=1e-10)
    if (df, scale) == (1.0, 1.0):
        np.testing.assert_allclose(StudentT()(p).detach().numpy(), np.log1p(h**2).sum(1), rtol=1e-12)


def test_the_projections_variance_does_not_need_a_generator():
    codec, x = make_codec(Tanh(), (6,)), make_rows(n=3)
    estimate = Contractive(method="projection")
    ratio = estimate.variance(codec(x), draws=1000) / estimate.variance(codec(x, None, draws(1)), draws=1000)
    assert ((ratio > 0.7) & (ratio < 1.4)).all()


class Plain(Part):
    """h = exp(a) / Σ exp(a)"""

    letter = "σ"
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    sparse: ClassVar[bool] = False

    def __call__(self, a):
        return torch.softmax(a, 1)


def test_an_own_activation_need_not_say_that_it_is_elementwise():
    codec, x = make_codec(Plain()), make_rows()
    same(Contractive()(codec(x)).detach(), true_norms(codec.encode, x)[0])


@pytest.mark.parametrize("rate", [[0.1, 1000, 20], [0.001, 300_000, 5]], ids=["small", "large"])
@pytest.mark.parametrize("hidden", [(), "auto"], ids=["linear", "deep"])
def test_counts_of_very_different_rates_are_learned(rate, hidden):
    X = np.random.default_rng(0).poisson(rate, (400, 3))
    model = Autoencoder(1, objective="Poisson()", hidden_layer_sizes=hidden, random_state=0).fit(X[:300])
    assert np.isfinite(model.reconstruct(X)).all()
    assert model.score(X[300:]) > 0.5


def test_poisson_is_its_likelihood_however_small_the_rate():
    codec, x = make_codec(Identity()), make_rows().abs().round()
    p = codec(x)._replace(x_hat=torch.full_like(x, -110.0, requires_grad=True))
    for term in (Poisson(), Likelihood(Poisson())):
        value = term(p).sum()
        assert torch.isfinite(value)
        assert torch.isfinite(torch.autograd.grad(value, p.x_hat)[0]).all()
    same(Poisson()(p).sum(1), Likelihood(Poisson())(p))


@pytest.mark.parametrize("term", ["AuxK()", "GateMSE()"])
def test_what_subtracts_the_output_needs_rows_for_it(term):
    squash = "Gated()" if term == "GateMSE()" else "TopK(2)"
    with pytest.raises(ValueError, match="use MSE"):
        Autoencoder(4, hidden_layer_sizes=(), code_activation=squash, objective=f"BCE() + {term}").fit(np.eye(30))


def test_a_value_of_another_shape_is_refused():
    class Each(Term):
        """Ω = |h|, of each unit: forgets to add them up"""

        def __call__(self, p):
            return p.h.abs()

    with pytest.raises(ValueError, match=r"a penalty one per row"):
        Autoencoder(4, hidden_layer_sizes=(), objective=MSE() + Each()).fit(np.random.default_rng(0).random((30, 4)))
