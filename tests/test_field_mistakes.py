"""Mistakes that autoencoder software has made, each as a law that is kept here.

Where it can be had, the mistaken quantity is computed beside the right one, on a case where the two differ.
"""

import inspect
import math
import os
import random

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.metrics import r2_score
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler, scale
from torch.autograd.functional import jacobian
from torch.distributions import Normal as TorchNormal
from torch.distributions import kl_divergence

from retell import (
    BCE,
    KL,
    L0,
    L1,
    MSE,
    Autoencoder,
    AuxK,
    BatchTopK,
    Codec,
    Contractive,
    Corrupted,
    Free,
    Gated,
    GateMSE,
    Gaussian,
    Identity,
    JumpReLU,
    Likelihood,
    Mask,
    Normal,
    Nothing,
    Objective,
    Part,
    ReLU,
    Sample,
    Sigmoid,
    StudentT,
    Term,
    ToNormal,
    TopK,
    UnitNorm,
    UnitRMS,
    load,
    mirror,
    mlp,
)
from retell.descend import Descent, Recipe

N, D, K = 40, 6, 4


def make(activation, *, hidden=(), squash="tanh", tied=False, linear_path=True, units=K, seed=0):
    """A codec of random weights, float64."""
    encoder = mlp([D, *hidden, getattr(activation, "outputs", 1) * units], squash, linear_path=linear_path)
    decoder = mirror(encoder, tied=True) if tied else mlp([units, *hidden[::-1], D], squash, linear_path=linear_path)
    codec = Codec(encoder, activation.bind(units), decoder, torch.zeros(D)).double()
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in [*encoder.parameters(), *decoder.parameters()]:
            parameter.normal_(generator=draw).mul_(0.7)
    return codec


def normal_rows(n=N, width=D, seed=1):
    return torch.randn(n, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def gradient(value, parameter):
    """d value / d parameter; zeros where the value does not know it."""
    (found,) = torch.autograd.grad(value, parameter, retain_graph=True, allow_unused=True)
    return torch.zeros_like(parameter) if found is None else found


def descent(codec, objective, *, corruption=None, constraint=None, batch_size=20, learning_rate=0.01, max_iter=100):
    recipe = Recipe(objective, corruption or Nothing(), constraint or Free(), batch_size, learning_rate, max_iter,
                    decay=0.0, n_iter_no_change=10, tol=1e-4, sure=0.0)  # fmt: skip
    return Descent(codec, recipe, seed=0)


def linear(n_components=3, **given):
    """A small linear model, trained by descent."""
    settings = {"hidden_layer_sizes": (), "solver": "descend", "max_iter": 3, "random_state": 0}
    return Autoencoder(n_components, **{**settings, **given})


@pytest.fixture(scope="module")
def digits():
    return load_digits().data[:400]


@pytest.fixture(scope="module")
def wine():
    return load_wine().data


# --- the divergence of a drawn code


def test_kl_is_not_clamped_to_zero():
    p = make(Sample())(normal_rows())
    m, log_s = p.a.chunk(2, dim=1)
    right = kl_divergence(TorchNormal(m, log_s.exp()), TorchNormal(0.0, 1.0)).sum(1)
    value = ToNormal()(p)
    torch.testing.assert_close(value, right, rtol=1e-12, atol=1e-12)
    assert value.min() > 0.1
    assert gradient(value.mean(), p.a).abs().max() > 1e-3
    mistaken = right.clamp(min=0, max=0)
    assert not mistaken.any()
    assert not gradient(mistaken.mean(), p.a).any()


def test_kl_holds_the_code_back(wine):
    """The divergence is paid for while training: with it the codes spread less."""
    with_it, without = (
        linear(objective=Likelihood(Normal(0.5)) + weight * ToNormal(), code_activation="Sample()", max_iter=20,
               learning_rate_init=0.01, early_stopping=False).fit(wine)
        for weight in (1.0, 1e-6)
    )  # fmt: skip
    assert min(with_it.history_["ToNormal"]) > 0.5
    x = torch.from_numpy(with_it.scaling_.to(wine)).float()
    nats = [float(ToNormal()(model.codec_(x)).mean().detach()) for model in (with_it, without)]
    assert nats[0] < 0.7 * nats[1]


def test_an_exploding_log_variance_stays_finite():
    codec, x = make(Sample()), normal_rows()
    with torch.no_grad():
        codec.encoder.last.bias[K:] = 800.0  # exp(2 · 800) is no float64
    p = codec(x, generator=torch.Generator().manual_seed(0))
    value = ToNormal()(p).mean() + MSE()(p).mean()
    assert torch.isfinite(value)
    assert torch.isfinite(gradient(value, codec.encoder.last.own)).all()
    _, log_s = p.a.chunk(2, dim=1)
    assert torch.isinf((2 * log_s).exp()).any()


# --- contraction


def true_norms(function, x):
    """||J||_F² of each row, one row at a time."""
    return torch.stack([jacobian(function, row[None])[0, :, 0].square().sum() for row in x])


def test_contraction_is_not_a_formula_for_another_network():
    """The slope h (1 - h) is that of a sigmoid, and the last layer's matrix is not the whole derivative."""
    x = normal_rows()
    for activation, hidden in ((ReLU(), ()), (ReLU(), (5,)), (Sigmoid(), (5,))):
        codec = make(activation, hidden=hidden, squash="relu", linear_path=False)
        value = Contractive()(codec(x))
        torch.testing.assert_close(value, true_norms(codec.encode, x), rtol=1e-10, atol=1e-12)
        h = codec.encode(x)
        mistaken = (h * (1 - h)).square() @ codec.encoder.last.weight.square().sum(1)
        assert abs(mistaken.mean() / value.mean() - 1) > 0.2
    one_layer = make(Sigmoid())
    h = one_layer.encode(x)  # where the formula holds, the two agree
    formula = (h * (1 - h)).square() @ one_layer.encoder.last.weight.square().sum(1)
    torch.testing.assert_close(Contractive()(one_layer(x)), formula, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("of", ["code", "reconstruction"])
@pytest.mark.parametrize("hidden", [(), (5,)], ids=["linear", "deep"])
def test_contraction_is_not_the_gradient_of_the_sum(of, hidden):
    """Squared, the gradient of the summed outputs is ||Jᵀ1||²: outputs of opposite slopes cancel in it."""
    codec, x = make(Identity(), hidden=hidden, units=2), normal_rows()
    with torch.no_grad():  # the second output is minus the first
        net = codec.encoder if of == "code" else codec.decoder
        for layer in {net.last, net.straight}:
            layer.own[1::2] = -layer.own[0::2]
    function = codec.encode if of == "code" else lambda rows: codec.decode(codec.encode(rows))
    value = Contractive(of=of)(codec(x))
    torch.testing.assert_close(value, true_norms(function, x), rtol=1e-10, atol=1e-12)
    assert value.min() > 0.1
    leaf = x.clone().requires_grad_()
    mistaken = torch.autograd.grad(function(leaf).sum(), leaf)[0].square().sum(1)
    assert mistaken.max() < 1e-20


def test_contraction_of_a_batch_is_that_of_its_rows_in_one_backward_pass(monkeypatch):
    codec, x = make(Sigmoid(), hidden=(5,)), normal_rows()
    rows = torch.cat([Contractive()(codec(row[None])) for row in x])
    calls, grad = [], torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: calls.append(1) or grad(*a, **k))
    torch.testing.assert_close(Contractive()(codec(x)), rows, rtol=1e-10, atol=1e-12)
    assert len(calls) == 1


# --- penalties


PENALTIES = {
    "L1": (L1(), ReLU()),
    "StudentT": (StudentT(), Identity()),
    "KL": (KL(0.2), Sigmoid()),
    "ToNormal": (ToNormal(), Sample()),
    "Contractive": (Contractive(), Identity()),
    "Contractive, projection": (Contractive(of="reconstruction", method="projection"), Sigmoid()),
}


@pytest.mark.parametrize("penalty", list(PENALTIES))
def test_penalties_are_not_zero_in_evaluation(penalty, wine):
    term, activation = PENALTIES[penalty]
    codec, x = make(activation, hidden=(5,)), normal_rows()
    learning = term(codec(x)).detach()
    codec.train(False)
    with torch.no_grad():
        judged = term(codec(x))
    assert torch.equal(judged, learning)
    assert judged.mean() > 1e-3
    model = linear(objective=MSE() + 0.1 * term, code_activation=activation).fit(wine)
    name = f"held-out {type(term).__name__}"
    assert min(model.history_[name]) > 1e-5


class KLOfASquashedCopy(Term):
    """Ω = Σ_k KL(rho || mean_n s(h_k)),  s the logistic function: the mistake, on a copy that nobody reads"""

    rho: float = 0.05

    def __call__(self, p):
        on = torch.sigmoid(p.h).mean(0)
        return (self.rho * torch.log(self.rho / on) + (1 - self.rho) * torch.log((1 - self.rho) / (1 - on))).sum()


def test_what_kl_acts_on_is_what_is_returned(digits):
    codec, x = make(Sigmoid()), normal_rows()
    p = codec(x)
    assert torch.equal(p.h, codec.encode(x))
    torch.testing.assert_close(p.x_hat, codec.decode(p.h), rtol=0, atol=0)
    q = p.h.mean(0)
    right = (0.05 * torch.log(0.05 / q) + 0.95 * torch.log(0.95 / (1 - q))).sum()
    torch.testing.assert_close(KL(0.05)(p), right, rtol=1e-12, atol=0)
    assert abs(KLOfASquashedCopy(0.05)(p) / right - 1) > 0.2
    with pytest.raises(ValueError, match="code in"):
        linear(objective=MSE() + KL()).fit(digits)
    settings = {"n_components": 32, "max_iter": 40, "learning_rate_init": 0.03, "early_stopping": False}
    kept = linear(objective=MSE() + 3 * KL(0.05), code_activation="Sigmoid()", **settings).fit(digits)
    assert abs(kept.transform(digits).mean() - 0.05) < 0.03
    mistaken = linear(objective=MSE() + 3 * KLOfASquashedCopy(0.05), **settings).fit(digits).transform(digits)
    assert mistaken.mean() < -1.5  # on its way to logit(0.05) = -2.94
    assert (abs(mistaken) < 0.05).mean() < 0.05


def test_sparse_means_zeros_and_not_small(digits):
    settings = {"n_components": 64, "max_iter": 30, "early_stopping": False}
    model = linear(objective="MSE() + 0.03 * L1()", code_activation="ReLU()", **settings).fit(digits)
    code = model.transform(digits)
    assert (code == 0).mean() > 0.6
    assert ((code != 0) & (abs(code) < 1e-3)).mean() < 0.01
    # the mistake: a code that can't be zero and a decoder that makes up for its size
    free = {"code_activation": "Identity()", "constraint": "Free()"}
    plain = linear(objective="MSE() + 1e-6 * L1()", **free, **settings).fit(digits).transform(digits)
    small = linear(objective="MSE() + 0.1 * L1()", **free, **settings).fit(digits).transform(digits)
    assert abs(small).mean() < 0.3 * abs(plain).mean()
    varied = small.std(0) > 0
    assert (small[:, varied] == 0).mean() < 0.01


@pytest.mark.parametrize("penalty", ["L1()", "StudentT()", "Contractive()", "Prior(Laplace(scale=1.0))"])
def test_a_penalty_is_not_escaped_by_a_small_code_and_a_large_decoder(penalty, wine):
    """h -> s h with V -> V / s costs nothing in reconstruction; Π takes the gain away."""
    flat = linear(objective=f"MSE() + 0.01 * {penalty}").fit(wine)
    deep = linear(objective=f"MSE() + 0.01 * {penalty}", hidden_layer_sizes=(5,)).fit(wine)
    tied = linear(objective=f"MSE() + 0.01 * {penalty}", tied=True).fit(wine)
    assert [m._model.parts.constraint for m in (flat, deep, tied)] == [UnitNorm(), UnitRMS(), Free()]
    torch.testing.assert_close(flat.codec_.dictionary().norm(dim=0), torch.ones(3), rtol=1e-5, atol=0)
    term, x = flat.objective_.terms[1], normal_rows()

    def shrunk(constraint):
        """The penalty and the loss before and after the code is ten times smaller, the decoder ten times larger."""
        twin = make(Identity())
        with torch.no_grad():
            constraint.project(twin.dictionary())
            before = twin(x)
            before = float(term(before._replace(unit=constraint.unit(before.h))).mean()), float(MSE()(before).mean())
            twin.encoder.last.own /= 10
            twin.encoder.last.bias /= 10
            twin.decoder.last.own *= 10
            constraint.project(twin.dictionary())
            after = twin(x)
            after = float(term(after._replace(unit=constraint.unit(after.h))).mean()), float(MSE()(after).mean())
        return before, after

    (penalty_before, loss_before), (penalty_after, loss_after) = shrunk(Free())
    assert penalty_after < penalty_before - 0.1  # the mistake: cheaper
    assert loss_after == pytest.approx(loss_before)  # and none the worse
    (_, loss_before), (_, loss_after) = shrunk(UnitNorm())
    assert abs(loss_after - loss_before) > 0.1
    (penalty_before, loss_before), (penalty_after, loss_after) = shrunk(UnitRMS())
    assert loss_after == pytest.approx(loss_before)
    assert penalty_after == pytest.approx(penalty_before, rel=1e-9)


def test_denoising_and_contraction_go_together(wine):
    model = linear(objective=MSE() + 0.1 * Contractive(), corruption="Gaussian(0.3)", code_activation="Sigmoid()")
    assert min(model.fit(wine).history_["Contractive"]) > 1e-4
    alone = clone(model).set_params(corruption="Nothing()").fit(wine)
    assert alone.history_["MSE"] != model.history_["MSE"]


# --- noise


def test_noise_is_there_when_the_noisy_loss_is_reported():
    """For a linear net the noise adds s² ||V W||² / D to the clean loss, in evaluation too."""
    codec, x, s = make(Identity()), normal_rows(4000), 1.0
    noisy = descent(codec, MSE() + L1(), corruption=Gaussian(s)).evaluate(x).terms["MSE"]
    with torch.no_grad():
        clean = float(MSE()(codec(x)).mean())
        added = s**2 * float((codec.decoder.last.own @ codec.encoder.last.own).square().sum()) / D
    assert noisy == pytest.approx(clean + added, rel=0.03)
    assert added > 0.5 * clean


def test_the_reported_held_out_loss_is_the_noisy_one(wine):
    noisy, clean = (linear(corruption=c, max_iter=1, learning_rate_init=1e-9).fit(wine)
                    for c in ("Gaussian(1.0)", "Nothing()"))  # fmt: skip
    assert noisy.history_["held-out MSE"][0] > 1.2 * clean.history_["held-out MSE"][0]
    assert noisy.validation_scores_ == pytest.approx(clean.validation_scores_, abs=1e-6)  # R² is of clean rows


def test_the_target_is_not_corrupted():
    codec, x = make(Identity()), normal_rows()
    p = codec(x, Gaussian(1.0)(x, torch.Generator().manual_seed(0)))
    assert torch.equal(p.x, x)
    assert not torch.equal(p.a, codec(x).a)


# --- state


def test_constructing_touches_no_global_state():
    def state():
        numpy = np.random.get_state(legacy=False)["state"]  # noqa: NPY002  the one that is to be left alone
        return torch.get_rng_state().tolist(), numpy["key"].tolist(), numpy["pos"], random.getstate(), dict(os.environ)

    before = state()
    model = linear(corruption="Mask(0.3)", code_activation="Sample()", random_state=7)
    assert state() == before
    model.fit(load_wine().data).transform(load_wine().data)
    assert state() == before
    random.random()  # the comparison can tell
    assert state() != before


@pytest.mark.parametrize("setting", [{}, {"corruption": "Mask(0.3)"}, {"code_activation": "BatchTopK(2)"}],
                         ids=["plain", "noise", "counted"])  # fmt: skip
def test_refitting_gives_the_same_result(setting, wine):
    model = linear(**setting).fit(wine)
    first, scores = model.transform(wine), model.score_samples(wine)
    np.random.seed(99)  # noqa: NPY002  what others do to the global generators does not matter
    torch.manual_seed(99)
    model.fit(wine)
    assert np.array_equal(model.transform(wine), first)
    assert np.array_equal(model.score_samples(wine), scores)
    assert clone(model).set_params(random_state=1).fit(wine).history_ != model.history_


def test_no_default_is_shared_between_models():
    for parameter in inspect.signature(Autoencoder.__init__).parameters.values():
        if parameter.name != "self":
            hash(parameter.default)  # a list would raise
    part = JumpReLU()
    one, other = part.bind(K), part.bind(K)
    with torch.no_grad():
        one.threshold += 1
    torch.testing.assert_close(other.threshold.detach(), torch.full((K,), 0.05))
    assert part == JumpReLU()


def test_evaluation_counts_nothing():
    codec, x = make(BatchTopK(2)), normal_rows()
    run = descent(codec, MSE() + AuxK(2, rows=10))
    before = {name: value.clone() for name, value in codec.state_dict().items()}
    run.evaluate(x)
    codec(x)
    assert all(torch.equal(value, before[name]) for name, value in codec.state_dict().items())
    run.one_epoch(x)
    assert codec.code_activation.batches == 2


def test_biases_are_not_shared():
    """As many units as columns, tied or not: the encoder's bias and the decoder's are two."""
    for tied in (True, False):
        codec, x = make(Sigmoid(), tied=tied, units=D), normal_rows()
        ours, theirs = codec.encoder.last.bias, codec.decoder.last.bias
        assert ours.data_ptr() != theirs.data_ptr()
        p = codec(x)
        value = MSE()(p).mean()
        torch.testing.assert_close(gradient(value, theirs), 2 * (p.x_hat - x).mean(0) / D)
        assert (gradient(value, ours) - gradient(value, theirs)).abs().max() > 1e-3
        with torch.no_grad():
            ours += 1
        assert torch.equal(codec.decode(p.h), p.x_hat)
    model = linear(D, corruption="Mask(0.3)", code_activation="Sigmoid()").fit(normal_rows(80).numpy() + 3)
    assert not torch.allclose(model.codec_.encoder.last.bias, model.codec_.decoder.last.bias, atol=1e-3)


def test_the_tied_gradient_is_the_sum_of_two():
    tied, x = make(Sigmoid(), tied=True), normal_rows()
    found = gradient(MSE()(tied(x)).mean(), tied.encoder.last.own)
    W, V = (tied.encoder.last.own.detach().clone().requires_grad_() for _ in range(2))
    h = torch.sigmoid(x @ W.T + tied.encoder.last.bias.detach())
    up, down = torch.autograd.grad((x - h @ V - tied.decoder.last.bias.detach()).square().mean(), (W, V))
    torch.testing.assert_close(found, up + down, rtol=1e-10, atol=1e-12)
    for mistaken in (up, down):
        assert (found - mistaken).abs().max() > 1e-2


# --- rows and batches


class Watch(Part):
    """x̃ = x, and how many rows there were is written down"""

    letter = "C"
    seen: tuple[list[int], ...]

    def __call__(self, x, generator=None):
        self.seen[0].append(len(x))
        return Corrupted(x, torch.zeros_like(x, dtype=torch.bool))


@pytest.mark.parametrize("early_stopping", [True, False])
@pytest.mark.parametrize("n", [2, 3, 20, 33])
def test_few_rows_do_not_crash_training(n, early_stopping, wine):
    model = linear(1, batch_size=32, early_stopping=early_stopping, max_iter=2).fit(wine[:n])
    assert np.isfinite(model.history_["MSE"]).all()
    assert len(model.history_["MSE"]) == 2
    assert np.isfinite(model.reconstruct(wine)).all()
    assert np.isfinite(model.score_samples(wine)).all()


@pytest.mark.parametrize("n", [20, 33, 65])
def test_no_row_is_left_out_of_an_epoch(n):
    sizes = []
    run = descent(make(Identity()), MSE() + L1(), corruption=Watch((sizes,)), batch_size=32)
    run.one_epoch(normal_rows(n))
    assert sum(sizes) == n
    assert n // 32 * 32 != n  # what would be left with the last batch dropped
    assert max(sizes) - min(sizes) <= 1  # and no batch is a leftover of a few rows


@pytest.mark.parametrize("activation", ["Identity()", "TopK(2)", "Sigmoid()", "ReLU()"])
def test_the_start_looks_at_every_row(activation, wine):
    """Biases from the first rows alone are wrong where rows come sorted."""
    rows = wine[wine[:, 12].argsort()]
    model = linear(code_activation=activation, max_iter=1, learning_rate_init=1e-12, early_stopping=False).fit(rows)
    off = abs(model.reconstruct(rows).mean(0) - rows.mean(0)) / rows.std(0)
    assert off.max() < 1e-4
    assert (abs(rows[:50].mean(0) - rows.mean(0)) / rows.std(0)).max() > 0.5


def test_one_backward_pass_a_step(monkeypatch):
    calls, backward = [], torch.Tensor.backward
    monkeypatch.setattr(torch.Tensor, "backward", lambda *a, **k: calls.append(1) or backward(*a, **k))
    objective = MSE() + 0.1 * L1() + 0.1 * Contractive()
    descent(make(Sigmoid()), objective, batch_size=10).one_epoch(normal_rows(40))
    assert len(calls) == 4


def test_a_diverging_fit_keeps_what_was_best(wine):
    model = linear(learning_rate_init=1e30, max_iter=20)
    with pytest.warns(UserWarning, match="diverged"):
        model.fit(wine)
    assert np.isfinite(model.reconstruct(wine)).all()
    assert model.score(wine) > 0.5


def test_a_fit_that_never_improves_is_still_a_model(wine):
    model = linear(learning_rate_init=0.5, max_iter=2, batch_size=4).fit(wine)
    start = linear(learning_rate_init=1e-12, max_iter=1).fit(wine)
    assert min(model.validation_scores_) < start.validation_scores_[0]  # it got worse
    assert model.score(wine) == pytest.approx(start.score(wine), abs=1e-6)


# --- tables


def test_no_column_is_dropped_silently():
    kinds = ["int64", "float32", "int32", "Int64", "Float64", "bool", "uint8", "float16"]
    draws = np.random.default_rng(0).integers(0, 2, (100, len(kinds)))
    frame = pd.DataFrame(
        {f"a {kind}": pd.Series(column).astype(kind) for kind, column in zip(kinds, draws.T, strict=True)}
    )
    mistaken = [name for name in frame if frame[name].dtype in (int, float) or frame[name].dtype == "object"]
    assert len(mistaken) < len(kinds)
    model = linear().fit(frame)
    assert list(model.feature_names_in_) == list(frame)
    assert model.reconstruct(frame).shape == frame.shape
    code = model.transform(frame)
    for name in frame:  # every column has a say in the code
        assert abs(model.transform(frame.assign(**{name: 1 - frame[name].astype(float)})) - code).max() > 0.01, name
    for kind, what in (("category", "categories"), ("str", "text")):
        with pytest.raises(ValueError, match=f"'left out' holds {what}"):
            linear().fit(frame.assign(**{"left out": pd.Series(["a", "b"] * 50, dtype=kind)}))


@pytest.mark.parametrize("setting", ["auto", "standard", None])
def test_a_constant_column_is_no_division_by_zero(setting, wine):
    rows = wine.copy()
    rows[:, 2], rows[:, 5] = 0.1, 7.0
    with np.errstate(all="ignore"):
        mistaken = (rows - rows.mean(0)) / rows.std(0)
    assert not np.isfinite(mistaken[:, 5]).all()
    model = linear(scale=setting, code_activation="Tanh()").fit(rows)
    assert np.isfinite(model.transform(rows)).all()
    np.testing.assert_allclose(model.reconstruct(rows)[:, [2, 5]], rows[:, [2, 5]], rtol=0.02)
    assert np.isfinite(model.score_samples(rows)).all()
    rows[:, 5] = 8.0  # and it need not stay constant
    assert np.isfinite(model.reconstruct(rows)).all()


def test_holes_are_not_zeros(wine):
    rows = wine + 50.0
    hole = np.random.default_rng(0).random(rows.shape) < 0.2
    holed = np.where(hole, np.nan, rows)
    model = linear(early_stopping=False).fit(holed)
    np.testing.assert_allclose(model.mean_, np.nanmean(holed, 0), rtol=1e-12)
    assert (abs(np.nan_to_num(holed).mean(0) / model.mean_ - 1) > 0.05).all()
    one = rows[:1].copy()
    one[0, 3] = np.nan
    centred = np.where(np.isnan(one), model.mean_, one)
    np.testing.assert_allclose(model.transform(one), model.transform(centred), rtol=1e-5, atol=1e-5)
    assert abs(model.transform(np.nan_to_num(one)) - model.transform(one)).max() > 0.1
    completed = model.reconstruct(holed, keep_seen=True)
    assert np.isfinite(completed).all()
    assert (completed[~hole] == holed[~hole]).all()
    error, mistaken = (abs(values - rows)[hole].mean() for values in (completed, np.nan_to_num(holed)))
    assert error < 0.5 * mistaken


def test_a_hole_is_not_a_target():
    codec, x = make(Identity()), normal_rows()
    holed = x.masked_fill(normal_rows(seed=5) > 1, math.nan)
    seen, p = ~torch.isnan(holed), codec(holed)
    value = MSE() * 1.0
    found = value(p)["MSE"]
    torch.testing.assert_close(found, (holed - p.x_hat)[seen].square().mean(), rtol=1e-12, atol=0)
    assert abs((holed.nan_to_num() - p.x_hat).square().mean() / found - 1) > 1e-2


def test_wide_columns_do_not_dominate(wine):
    """Two factors behind eight columns, and one column of its own in thousands."""
    draw = np.random.default_rng(0)
    factors = draw.normal(size=(300, 2))
    rows = np.c_[factors @ draw.normal(size=(2, 8)) + 0.1 * draw.normal(size=(300, 8)), 1e4 * draw.normal(size=300)]
    scaled, raw = (Autoencoder(2, hidden_layer_sizes=(), scale=scale).fit(rows) for scale in ("auto", None))
    explained, mistaken = (r2_score(rows, model.reconstruct(rows), multioutput="raw_values")[:8].mean()
                           for model in (scaled, raw))  # fmt: skip
    assert explained > 0.9
    assert mistaken < 0.7


def test_fit_returns_the_model(wine):
    model = linear()
    assert model.fit(wine) is model
    assert model.partial_fit(wine) is model
    assert model.fit_transform(wine).shape == (len(wine), 3)


def test_input_and_target_share_a_scale(wine):
    """In other units, or behind a scaler, the rows have the same code and the same score."""
    settings = {"scale": "standard"}
    plain, other = linear(**settings).fit(wine), linear(**settings).fit(1000 * wine - 5)
    assert other.score(1000 * wine - 5) == pytest.approx(plain.score(wine), abs=1e-5)
    behind = make_pipeline(StandardScaler(), linear(**settings)).fit(wine)
    assert behind.score(wine) == pytest.approx(plain.score(wine), abs=1e-5)
    raw = wine - plain.inverse_transform(plain.transform(wine))
    assert abs(raw).mean() > 5  # the units that the mistake would report in
    assert plain.history_["MSE"][-1] < 1


# --- what comes out


def test_the_reconstruction_can_leave_the_unit_interval():
    x = scale(load_breast_cancer().data)
    made = Autoencoder(10, hidden_layer_sizes=(), scale="standard").fit(x).reconstruct(x)
    floor = ((x - x.clip(0, 1)) ** 2).mean()  # what a sigmoid output can reach at best
    assert floor == pytest.approx(0.549, abs=1e-3)
    assert ((x - made) ** 2).mean() < 0.05
    assert made.min() < -1
    assert made.max() > 2


def test_a_loss_for_the_unit_interval_refuses_other_rows(wine):
    with pytest.raises(ValueError, match=r"BCE\(\) needs values in \[0, 1\]"):
        linear(objective=BCE()).fit(wine)


def test_probabilities_are_not_rounded():
    """Coins that fall alike four times in five: one unit can say how sure it is, and should."""
    draw = np.random.default_rng(0)
    binary = ((draw.random((400, 1)) < 0.5) ^ (draw.random((400, 8)) < 0.2)).astype(float)
    made = linear(1, objective=BCE(), max_iter=20).fit(binary).reconstruct(binary)
    assert ((made > 0.01) & (made < 0.99)).mean() > 0.9
    assert ((made - binary) ** 2).mean() < 0.95 * ((made.round() - binary) ** 2).mean()


def test_codes_can_be_had(wine):
    """transform gives what the decoder reads: no noise, no dropout, no neighbours."""
    for activation in ("Identity()", "Sample()", "BatchTopK(2)", "Gated()"):
        model = linear(code_activation=activation, corruption=Mask(0.3)).fit(wine)
        code = model.transform(wine)
        assert code.shape == (len(wine), 3)
        assert np.array_equal(code, model.transform(wine))
        assert np.array_equal(code[5:6], model.transform(wine[5:6]))
        np.testing.assert_allclose(model.inverse_transform(code), model.reconstruct(wine), rtol=1e-6)
    assert list(model.get_feature_names_out()) == ["autoencoder0", "autoencoder1", "autoencoder2"]


def test_the_code_layer_is_what_was_asked_for(wine):
    """An Identity code is affine in the row: nothing normalises, rectifies or drops it on the way."""
    model = linear(early_stopping=False).fit(wine)
    code, middle = model.transform(wine), model.transform((wine[:1] + wine[1:2]) / 2)
    np.testing.assert_allclose(middle[0], (code[0] + code[1]) / 2, rtol=1e-4, atol=1e-5)
    assert (code < 0).any()
    assert {type(module).__name__ for module in model.codec_.modules()} == {"Codec", "Net", "ModuleList", "Affine"}


def test_defaults_can_be_cloned_searched_and_framed(wine):
    assert clone(Autoencoder()).get_params() == Autoencoder().get_params()
    search = GridSearchCV(linear(), {"n_components": [1, 4]}, cv=2, error_score="raise").fit(wine)
    assert search.best_params_ == {"n_components": 4}
    assert np.isfinite(cross_val_score(linear(), wine, cv=2)).all()
    assert isinstance(linear().set_output(transform="pandas").fit_transform(wine), pd.DataFrame)


def test_explained_variance_is_of_all_rows_together(wine):
    """A mean of each row's own ratio would let rows near the mean decide."""
    model = linear().fit(wine)
    near = model.mean_ + 0.1 * model.scaling_.factor * np.random.default_rng(0).normal(size=wine.shape)
    rows = np.r_[wine, near]
    x, x_hat = model.scaling_.to(rows), model.scaling_.to(model.reconstruct(rows))
    assert model.score(rows) == pytest.approx(r2_score(x, x_hat, multioutput="variance_weighted"), abs=1e-6)
    mistaken = 1 - np.mean(((x - x_hat) ** 2).sum(1) / ((x - x.mean(0)) ** 2).sum(1))
    assert mistaken < model.score(rows) - 0.1


# --- sparse codes


def largest(a, k):
    """The k largest of each row, negative ones too; zero elsewhere."""
    top = torch.topk(a, k)
    return torch.zeros_like(a).scatter(1, top.indices, top.values)


def half_dead(activation=None, rows=100):
    """A codec of 4 live and 4 dead units: the dead have positive pre-activations that never win."""
    codec = make(activation or TopK(2), units=8)
    with torch.no_grad():
        codec.encoder.last.bias[:4] = 20.0
        codec.encoder.last.bias[4:] = 0.5
        codec.decoder.last.bias += 3.0
    codec.idle[4:] = rows
    p = codec(normal_rows())
    assert not p.h[:, 4:].any()
    assert (p.a[:, 4:] > 0).any(0).all()
    return codec, p


def test_auxk_reaches_the_encoder():
    codec, p = half_dead()
    term, weight, step = AuxK(2, rows=100), codec.encoder.last.own, 1e-6
    slope = gradient(term(p).mean(), weight)
    assert (slope[4:].abs().amax(1) > 1e-2).all()
    for i in range(4, 8):
        for j in range(D):
            ends = []
            with torch.no_grad():
                for sign in (1, -2, 1):  # up, down, back
                    weight[i, j] += sign * step
                    ends.append(float(term(codec(p.x)).mean()))
            assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(float(slope[i, j]), rel=1e-5, abs=1e-6)
    assert not gradient(MSE()(p).mean(), weight)[4:].any()  # without it dead units have no gradient at all


def test_the_auxiliary_reconstruction_adds_no_bias():
    codec, p = half_dead()
    found = AuxK(2, rows=100)(p)
    z = largest(p.a[:, 4:], 2)
    V, b = codec.decoder.last.weight[:, 4:], codec.decoder.last.bias
    e = p.x - p.x_hat
    torch.testing.assert_close(found, (e - z @ V.T).square().mean(1), rtol=1e-12, atol=0)
    mistaken = (e - z @ V.T - b).square().mean(1)
    assert abs(mistaken.mean() / found.mean() - 1) > 0.01
    assert not gradient(found.mean(), b).any()


def test_the_auxiliary_loss_leaves_live_units_alone():
    codec, p = half_dead()
    W, V, b = codec.encoder.last.own, codec.decoder.last.own, codec.encoder.last.bias
    found = AuxK(2, rows=100)(p).mean()
    assert not gradient(found, W)[:4].any()
    assert not gradient(found, b)[:4].any()
    assert not gradient(found, V)[:, :4].any()
    assert gradient(found, V)[:, 4:].any()
    z = torch.cat([torch.zeros(N, 4).double(), largest(p.a[:, 4:], 2)], 1)
    mistaken = (p.x - p.x_hat - z @ V.T).square().mean()  # the residual pulls on those that left it
    assert gradient(mistaken, V)[:, :4].abs().max() > 1e-2
    codec.idle[:] = 0  # units that were merely not chosen are not dead
    assert not AuxK(2, rows=100)(p).any()


def active_before_and_after(objective):
    """Rows are one of six features each; three units know one, three are far below their thresholds."""
    codec, features = make(JumpReLU(0.5), units=D), torch.linalg.qr(normal_rows(D))[0]
    size = 1 + torch.rand(240, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    x = features[torch.arange(240) % D] * size
    with torch.no_grad():
        codec.encoder.last.own.copy_(features)[3:] *= 0.05
        codec.decoder.last.own.copy_(features.T)
        for net in (codec.encoder, codec.decoder):
            net.last.bias.zero_()
    run = descent(codec, objective, constraint=UnitNorm(), batch_size=40, learning_rate=0.03)
    counts = [int((codec.encode(x) != 0).any(0).sum())]
    for _ in range(25):
        run.one_epoch(x, constant_rate=True)
    return [*counts, int((codec.encode(x) != 0).any(0).sum())]


def test_dead_units_come_back():
    assert active_before_and_after(MSE() + AuxK(3, rows=400)) == [3, 6]
    assert active_before_and_after(MSE() * 1.0) == [3, 3]


def test_a_unit_below_zero_for_every_row_can_come_back():
    """Rectified, the auxiliary code of such a unit is 0 and has no gradient."""
    codec, p = half_dead()
    with torch.no_grad():
        codec.encoder.last.bias[4:] = -50.0
    p = codec(p.x)
    assert (p.a[:, 4:] < 0).all()
    weight = codec.encoder.last.own
    assert (gradient(AuxK(4, rows=100)(p).mean(), weight)[4:].abs().amax(1) > 1e-2).all()


@pytest.mark.parametrize("activation", [TopK(2), BatchTopK(2), JumpReLU(), Gated()], ids=repr)
def test_every_sparse_code_has_a_cure_for_dead_units(activation):
    codec = make(activation, units=8)
    AuxK(2, rows=100).check(codec)
    codec.idle[4:] = 100
    assert AuxK(2, rows=100)(codec(normal_rows())).mean() > 0


def test_dead_units_are_counted_in_rows_not_batches():
    codec = make(TopK(1), units=3)
    with torch.no_grad():
        codec.encoder.last.bias[:] = torch.tensor([50.0, 0.0, 0.0])
    for n in (7, 5, 1):
        codec.observe(codec(normal_rows(n)))
    assert codec.idle.tolist() == [0, 13, 13]
    ends = []
    for batch_size in (5, 40):
        codec.idle.zero_()
        objective = MSE() + AuxK(2, rows=10 * N)
        descent(codec, objective, batch_size=batch_size, learning_rate=1e-9).one_epoch(normal_rows())
        ends.append(codec.idle.tolist())
    assert ends == [[0, N, N]] * 2  # a count of batches would say 8 and 1


def test_the_gates_reconstruction_leaves_the_decoder_alone():
    codec, x = make(Gated()), normal_rows()
    p = codec(x)
    value, last = GateMSE()(p).mean(), codec.decoder.last
    assert not gradient(value, last.own).any()
    assert not gradient(value, last.bias).any()
    assert gradient(value, codec.encoder.last.own).abs().max() > 1e-2
    mistaken = (x - last(torch.relu(p.a))).square().mean()
    torch.testing.assert_close(value, mistaken, rtol=1e-12, atol=0)  # the value is the same
    assert gradient(mistaken, last.own).abs().max() > 1e-2


def test_the_jump_learns_from_both_sides_of_the_threshold():
    threshold, width = 0.5, 0.1
    codec = make(JumpReLU(threshold, width), units=1)
    squash = codec.code_activation
    for a, inside in ((0.46, True), (0.54, True), (0.40, False), (0.60, False)):
        rows = torch.tensor([[a]]).double()
        p = codec(normal_rows(1))._replace(a=rows, h=squash(rows))
        expected = -1 / width if inside else 0.0
        assert float(gradient(L0()(p).sum(), squash.threshold)) == pytest.approx(expected)
        assert float(gradient(p.h.sum(), squash.threshold)) == pytest.approx(threshold * expected, rel=1e-6)
    # the mistake: the window around what is left after the jump, where nothing lies just below it
    h = squash(torch.tensor([[0.46]]).double())
    assert not gradient(squash.part.active(h, squash).sum(), squash.threshold).any()


def test_the_threshold_is_learned_itself_and_not_its_logarithm():
    """Steps of Adam have one size: in the logarithm of 0.001 they are a thousandth of what they should be."""
    codec = make(JumpReLU(0.001, 5.0))
    threshold = codec.code_activation.threshold
    descent(codec, 1e-9 * MSE() + 1.0 * L0(), batch_size=N, learning_rate=0.01).one_epoch(
        normal_rows(), constant_rate=True
    )
    torch.testing.assert_close(threshold.detach(), torch.full((K,), 0.011).double(), rtol=1e-6, atol=0)
    mistaken = 0.001 * math.exp(0.01)
    assert float(threshold.detach().min()) > 10 * mistaken


def test_the_sparsity_coefficient_moves_the_sparsity(digits):
    active = []
    for weight in (1e-4, 1e-3, 1e-2):
        model = linear(64, objective=f"MSE() + {weight} * L0()", code_activation="JumpReLU()", max_iter=15,
                       learning_rate_init=0.02, early_stopping=False)  # fmt: skip
        active.append((model.fit(digits).transform(digits) != 0).sum(1).mean())
    assert (np.diff(active) < -1).all(), active
    assert active[0] > 2 * active[-1], active


def test_a_rows_code_does_not_depend_on_its_batch(digits):
    model = linear(32, code_activation="BatchTopK(4)", max_iter=10).fit(digits)
    code = model.transform(digits)
    assert np.array_equal(np.vstack([model.transform(digits[i : i + 1]) for i in range(20)]), code[:20])
    assert 2 < (code != 0).sum(1).mean() < 8  # about as many as while training
    codec = model.codec_
    x = torch.from_numpy(model.scaling_.to(digits)).float()
    assert not codec.training
    codec.train()  # the mistake: the batch decides
    mistaken = codec.encode(x[:20])
    assert not torch.equal(mistaken, torch.cat([codec.encode(x[i : i + 1]) for i in range(20)]))


@pytest.mark.parametrize("activation", ["TopK(2)", "BatchTopK(2)", "JumpReLU()", "Gated()", "Sample()"])
def test_what_was_trained_can_be_loaded(activation, wine, tmp_path):
    model = linear(code_activation=activation, scale="standard").fit(100 * wine + 7)
    model.save(tmp_path / "model")
    again = load(tmp_path / "model")
    rows = 100 * wine + 7  # its scaling with it
    assert np.array_equal(again.transform(rows), model.transform(rows))
    assert np.array_equal(again.reconstruct(rows), model.reconstruct(rows))
    with pytest.warns(UserWarning, match="do not look like those of the fit"):
        assert np.array_equal(again.transform(wine), model.transform(wine))
    assert np.array_equal(again.components_, model.components_)


def test_l1_is_not_averaged_over_units():
    """A sum: one coefficient means the same at any width."""
    p = make(ReLU())(normal_rows())
    twice = p._replace(h=torch.cat([p.h, p.h], 1))
    found, wide = (Objective(((1.0, L1()),))(q)["L1"] for q in (p, twice))
    torch.testing.assert_close(wide, 2 * found)
    assert not torch.isclose(found, p.h.abs().mean(), rtol=0.1)
