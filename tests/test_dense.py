"""The step with its gradient written out is that of `Descent`, which leaves it to autograd: law 11 of the house."""

import math
import random
import re
from copy import deepcopy
from typing import NamedTuple

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits
from threadpoolctl import threadpool_info

import retell.plan
import retell.solvers.dense
import retell.training
from retell import MSE, Autoencoder, Codec, Free, Nothing, Objective, Part, Term, parse
from retell.batches import Due
from retell.descend import Descent, Recipe
from retell.grammar import vocabulary
from retell.networks import ACTIVATIONS
from retell.plan import Parts, build_codec
from retell.scaled import Rows
from retell.seeds import generator
from retell.settings import Settings
from retell.solvers.dense import Dense, why_not
from retell.solvers.squares import Shares, Squares
from retell.spread import at_once
from retell.start import fill_random

N, D, K = 23, 9, 4
DIGITS = load_digits().data / 16
QUICK = {"n_components": 8, "batch_size": 64, "learning_rate_init": 2e-3, "random_state": 0}

# --- random problems

LEFT = {"JumpReLU", "Gated", "Sample", "L0", "GateL1", "GateMSE", "AuxK", "Nested", "ToNormal"}  # to autograd
SQUASHES = ["Identity()", "ReLU()", "Sigmoid()", "Tanh()", "Softplus()", "TopK(2)", "BatchTopK(2)"]
LOSSES = [
    "MSE()", "MSE()", "Huber(0.5)", "BCE()", "Poisson()", "Hidden(MSE())", "Hidden(Huber(0.5))",
    "Likelihood(Normal(0.5))", "Likelihood(Laplace(0.5))", "Likelihood(StudentT(3.0, 0.5))", "Likelihood(Bernoulli())",
    "Likelihood(Poisson())",
]  # fmt: skip
PENALTIES = [
    "L1()", "StudentT()", "StudentT(3.0, 0.5)", "L2()", "L1Weights()", "KL(0.2)", "Contractive()", "Prior(Normal(0.5))",
    "Prior(Laplace(0.5))", "Prior(StudentT(2.0, 0.5))", "Prior(Exponential(0.5))", "Prior(Normal(1.0), on='weights')",
    "Prior(StudentT(2.0, 0.5), on='weights')",
]  # fmt: skip
COEFFICIENTS = ["0.02", "0.3", "0.05", "Warmup(0.2, 2)", "Cosine(0.3, 0.1, 3)"]
CORRUPTIONS = [
    "Nothing()", "Nothing()", "Nothing()", "Gaussian(0.3)", "Uniform(0.2, 0.5)", "Mask(0.3)", "Mask(0.3, emphasis=2.0)",
    "Swap(0.3)", "SaltAndPepper(0.2)",
]  # fmt: skip
CONSTRAINTS = ["Free()", "UnitNorm()", "NonNegative()", "UnitRMS()"]
TRIALS = 240


class Problem(NamedTuple):
    codec: Codec
    recipe: Recipe
    x: torch.Tensor
    text: str


def problem(trial):
    """Parts that can work with each other, the plain mean squared error every fourth time, and rows for them."""
    draw = random.Random(trial)
    while True:
        plain, holes = trial % 4 == 0, trial % 3 == 1
        sum_ = [f"1.0 * {'MSE()' if plain else draw.choice(LOSSES)}"]
        for _ in range(0 if plain else draw.randint(0, 3)):
            sum_.append(f"{draw.choice(COEFFICIENTS)} * {draw.choice(PENALTIES)}")
        corruption = "Nothing()" if plain else draw.choice(CORRUPTIONS)
        texts = [" + ".join(sum_), corruption, draw.choice(SQUASHES), draw.choice(CONSTRAINTS)]
        objective, *others = [parse(text) for text in texts]
        objective = objective if isinstance(objective, Objective) else Objective(((1.0, objective),))
        widths = draw.choice([(), (7,), (7, 5)])
        outer = () if draw.random() < 0.2 else widths[::-1]
        net = {"activation": draw.choice(list(ACTIVATIONS)), "tied": draw.random() < 0.4 and outer == widths[::-1],
               "linear_path": draw.random() < 0.6}  # fmt: skip
        try:
            codec = build_codec(Settings(**net), Parts(objective, *others), D, K, (widths, outer), torch.float64)
        except ValueError:
            continue
        corruption, _, constraint = others
        more = {"late": 0.6, "bias_rate": 1.0 + trial % 2}
        recipe = Recipe(objective, corruption, constraint, N, 0.02, 1, 0.4, 10, 1e-4, 0.0, **more)
        if not why_not(codec, recipe):
            return Problem(codec, recipe, fill(codec, objective, trial, holes=holes), f"{texts} {widths} {outer} {net}")


def fill(codec, objective, trial, *, holes):
    """Weights, biases and clips at random; rows in the loss's support."""
    draw = torch.Generator().manual_seed(trial)
    x = torch.rand(N, D, generator=draw, dtype=torch.float64)
    x = (4 * x).floor() if objective.loss.support == (0.0, math.inf) else x
    codec.centre = x.mean(0)
    codec.n_rows.fill_(50)
    fill_random(codec, objective.loss, draw)
    for layer in codec.affines():
        if layer.bias is not None:
            layer.bias.data.normal_(generator=draw).mul_(0.3)
    for net in (codec.encoder, codec.decoder):
        if net.linear is not None:  # some cells are cut off on both sides
            for name, value in {"low": -0.4, "high": 0.6, "into": 1.3, "out": 0.7}.items():
                getattr(net, name).fill_(value)
    if holes:
        x[torch.rand(N, D, generator=draw) < 0.2] = float("nan")
        x[3] = float("nan")
    return x


def words(text):
    return set(re.findall(r"\w+(?=\()", text))


def test_every_part_is_drawn():
    problems = [problem(trial) for trial in range(TRIALS)]
    drawn = set().union(*(words(p.text) for p in problems))
    assert drawn | LEFT == set(vocabulary())
    assert not drawn & LEFT
    for some in ("'tied': True", "'linear_path': True", "(7, 5) ()", *(f"'{name}'" for name in ACTIVATIONS)):
        assert sum(some in p.text for p in problems) >= 10, some
    default = [p for p in problems if "gelu" in p.text and "'linear_path': True" in p.text and p.codec.encoder.deep]
    assert len(default) >= 5
    plain = [p for p in problems if Dense(p.codec, p.recipe, 0).alone and not p.x.isnan().any()]
    assert len(plain) >= 20
    assert any(p.codec.tied for p in plain)
    assert any(p.x.isnan().any() for p in problems)


@pytest.mark.parametrize("algebra", ["numpy", "torch"])
@pytest.mark.parametrize("first", range(0, TRIALS, 24))
def test_three_steps_are_those_of_autograd(first, algebra, monkeypatch):
    """In float64: every gradient, value and parameter, whatever the number of rows and whose the products."""
    if algebra == "torch":
        monkeypatch.setattr(retell.solvers.dense, "SMALL", 0)
    for trial in range(first, first + 24):
        codec, recipe, x, text = problem(trial)
        slow, fast = Descent(deepcopy(codec), recipe, 0), Dense(codec, recipe, 0)
        slow.codec.train()
        fast.codec.train()
        fast.holed = bool(x.isnan().any())
        assert fast.algebra.numpy == (algebra == "numpy")
        for step, rows in enumerate((x, x[:-4], x)):
            expected, got = (each.one_step(rows, generator(trial, step), 0.01) for each in (slow, fast))
            expected, got = torch.stack(expected).detach(), torch.tensor([*map(float, got)], dtype=torch.float64)
            assert_close(got, expected, expected.abs().max(), text)
            gradients = {name: p.grad for name, p in slow.parameters.items()}
            largest = max(gradient.abs().max() for gradient in gradients.values())
            assert fast.parameters.keys() == gradients.keys()
            for name, gradient in gradients.items():
                assert_close(fast.parameters[name].grad, gradient, largest, f"{text}: {name}, step {step}")
            for name, value in slow.codec.state_dict().items():
                assert_close(fast.codec.state_dict()[name], value, 1.0, f"{text}: {name}, step {step}")
            assert slow.step == fast.step


def assert_close(one, other, size, text):
    off = float((one - other).abs().max() / size)
    assert off <= 1e-10, f"{off:.2g} {text}"


@pytest.mark.parametrize("cells", [1, 5 * D, 100 * D])
def test_rows_are_judged_as_descend_judges_them(monkeypatch, cells):
    monkeypatch.setattr(retell.solvers.dense, "JUDGED", cells)
    judged = 0
    for trial in range(0, TRIALS, 4):
        codec, recipe, x, text = problem(trial)
        slow, fast = Descent(deepcopy(codec), recipe, 0), Dense(codec, recipe, 0)
        for rows in (x, x, x[:7]):
            expected, got = slow.evaluate(rows), fast.evaluate(rows)
            assert_close(got.rows, expected.rows, expected.rows.abs().max(), text)
            assert got.terms == pytest.approx(expected.terms, rel=1e-10)
            assert got.score == pytest.approx(expected.score, rel=1e-10)
            for each in (slow, fast):
                each.one_epoch(x, constant_rate=True)
        judged += hasattr(fast, "judge")
    assert judged >= 20


def test_rounded_products_do_not_judge():
    codec, recipe, x, _ = problem(0)
    codec = codec.float()
    fast = Dense(codec, recipe, 0, rounded=True)
    fast.stretches[0].low = torch.zeros(1, dtype=torch.bfloat16)
    fast.evaluate(x.float())
    assert not hasattr(fast, "judge")


def test_some_of_many_held_out_rows_judge(monkeypatch):
    asked, real = [], Descent.judging
    monkeypatch.setattr(retell.training, "JUDGES", 50)
    monkeypatch.setattr(Descent, "judging", lambda self, x: asked.append(len(x)) or real(self, x))
    make(solver="descend", max_iter=1, validation_fraction=0.2).fit(DIGITS)
    assert asked == [45] * 2  # every eighth of 359


def test_rows_with_and_without_holes_may_take_turns():
    """The mean squared error has a way of its own where no cell is unseen."""
    codec, recipe, x, _ = problem(8)
    slow, fast = Descent(deepcopy(codec), recipe, 0), Dense(codec, recipe, 0)
    assert fast.alone
    assert not x.isnan().any()
    holed = x.masked_fill(torch.rand(N, D, generator=torch.Generator().manual_seed(0)) < 0.2, float("nan"))
    for rows in (holed, x, holed, x):
        assert fast.one_epoch(rows, constant_rate=True) == pytest.approx(slow.one_epoch(rows, constant_rate=True))
        for name, value in slow.codec.state_dict().items():
            assert_close(fast.codec.state_dict()[name], value, 1.0, name)


# --- whole fits

FITS = {
    "plain": {},
    "linear": {"hidden_layer_sizes": ()},
    "tied": {"tied": True, "activation": "tanh"},
    "no linear path": {"linear_path": False, "activation": "silu", "constraint": "Free()"},
    "sigmoid": {"code_activation": "Sigmoid()", "objective": "BCE() + 0.01 * KL(0.1)"},
    "unit norm": {"objective": "MSE() + 0.001 * L1()", "constraint": "UnitNorm()", "corruption": "Mask(0.2)"},
    "unit rms": {"objective": "Huber() + Warmup(0.001, 20) * StudentT()", "constraint": "UnitRMS()"},
    "contractive": {"hidden_layer_sizes": (), "code_activation": "Softplus()",
                    "objective": "MSE() + 0.01 * Contractive()", "constraint": "NonNegative()"},
    "prior": {"objective": "Likelihood(Normal(0.3)) + Prior(Normal(1.0)) + Prior(Normal(1.0), on='weights')"},
    "top k": {"code_activation": "TopK(3)", "n_components": 24, "hidden_layer_sizes": ()},
}  # fmt: skip


def make(**settings):
    return Autoencoder(**{**QUICK, "hidden_layer_sizes": (24,), "max_iter": 4, "solver": "dense", **settings})


@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize("name", FITS)
def test_fits_end_where_those_of_descend_do(name, holes):
    X = DIGITS[:600].copy()
    if holes:
        X[np.random.default_rng(0).random(X.shape) < 0.1] = np.nan
    fast, slow = (make(**FITS[name], solver=solver).fit(X) for solver in ("dense", "descend"))
    assert (fast.solver_, slow.solver_) == ("dense", "descend")
    assert fast.best_loss_ == pytest.approx(slow.best_loss_, rel=1e-4)
    assert fast.loss_curve_ == pytest.approx(slow.loss_curve_, rel=1e-4)
    assert fast.loss_curve_[-1] < fast.loss_curve_[0]


# --- what is left to autograd


class Spread(Term):
    """Ω = Σ_k (rms(h_k) - target)²"""

    target: float = 1.0

    def __call__(self, p):
        return (p.h.square().mean(0).sqrt() - self.target).square().sum()


class Root(Part):
    """h = sign(a) √|a|"""

    letter = "σ"
    range = (-math.inf, math.inf)
    sparse = False

    def __call__(self, a):
        return a.sign() * (a.abs() + 1e-3).sqrt()


@pytest.mark.parametrize(
    ("part", "settings"),
    [
        ("JumpReLU()", {"code_activation": "JumpReLU()", "objective": "MSE() + 0.001 * L0()"}),
        ("Gated()", {"code_activation": "Gated()", "objective": "MSE() + 0.01 * GateL1() + GateMSE()"}),
        ("Sample()", {"code_activation": "Sample()", "objective": "Likelihood(Normal(0.5)) + ToNormal()"}),
        ("Nested(MSE(), (2,))", {"objective": "Nested(MSE(), (2,))"}),
        ("AuxK(k=4, rows=200)", {"code_activation": "TopK(3)", "objective": "MSE() + 0.1 * AuxK(4, 200)"}),
        ("Likelihood(Normal())", {"objective": "Likelihood(Normal())"}),
        ("Contractive(method='projection')", {"objective": "MSE() + 0.1 * Contractive(method='projection')"}),
        ("Contractive(of='reconstruction')", {"objective": "MSE() + 0.1 * Contractive('reconstruction')"}),
        ("Contractive()", {"objective": "MSE() + 0.1 * Contractive()", "corruption": "Mask(0.2)"}),
        ("Contractive()", {"objective": "MSE() + 0.1 * Contractive()", "constraint": "UnitRMS()"}),
        ("Contractive()", {"objective": "MSE() + 0.1 * Contractive()", "hidden_layer_sizes": (8,)}),
        ("KL()", {"objective": "MSE() + 0.1 * KL()", "constraint": "UnitRMS()", "code_activation": "Sigmoid()"}),
        ("Spread(target=0.5)", {"objective": MSE() + 0.1 * Spread(0.5)}),
        ("Root()", {"code_activation": Root()}),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)
def test_what_is_not_written_out_falls_to_autograd(part, settings):
    model = make(**{"hidden_layer_sizes": (), "max_iter": 1, "start": "random", **settings})
    assert clone(model).set_params(solver="auto").fit(DIGITS[:200]).solver_ == "descend"
    with pytest.raises(ValueError, match=rf"solver='dense' can't be used.*{re.escape(part)}.*'auto' or 'descend'"):
        model.fit(DIGITS[:200])


class MeanUnit(Part):
    """mean_n |h_k| = 1 for every code unit, in the penalties' eyes"""

    letter = "Π"
    on_dictionary = False

    def project(self, dictionary):
        pass

    def tangent(self, dictionary, gradient):
        pass

    def unit(self, h):
        return h.abs().mean(0) + 1e-3


class GELU(Part):
    """h = a Φ(a)"""

    letter = "σ"
    range = (-math.inf, math.inf)
    sparse = False
    elementwise = True

    def __call__(self, a):
        return torch.nn.functional.gelu(a)

    def pull(self, d, a, h):
        return torch.ops.aten.gelu_backward(d, a)


@pytest.mark.parametrize(
    "settings",
    [
        {"objective": "MSE() + 0.1 * L1()", "constraint": MeanUnit()},
        {"code_activation": GELU()},
        {"code_activation": GELU(), "objective": "MSE() + 0.1 * Contractive()"},
    ],
    ids=["a unit", "a name of torch's", "no bend"],
)
def test_parts_of_ones_own_have_their_own_gradient(settings):
    """Whether it is written out or not."""
    auto, slow = (make(**settings, hidden_layer_sizes=(), start="random", solver=solver).fit(DIGITS[:300])
                  for solver in ("auto", "descend"))  # fmt: skip
    assert auto.loss_curve_ == pytest.approx(slow.loss_curve_, rel=1e-4)


# --- bfloat16


@pytest.mark.parametrize(
    "settings",
    [{}, {"tied": True, "linear_path": False}, {"code_activation": "ReLU()", "corruption": "Mask(0.2)"}],
    ids=str,
)
def test_products_in_bfloat16_do_not_cost_the_fit(settings):
    exactly, rounded = (make(hidden_layer_sizes=(512,), precision=precision, **settings).fit(DIGITS)
                        for precision in ("float32", "bfloat16"))  # fmt: skip
    assert rounded.loss_curve_ != exactly.loss_curve_, "nothing was rounded"
    assert rounded.best_loss_ == pytest.approx(exactly.best_loss_, rel=5e-3)
    assert {value.dtype for value in rounded.codec_.state_dict().values()} == {torch.float32}


@pytest.mark.parametrize("width", [1, 31, 32, 33])
def test_rows_that_fill_up_a_product_have_no_gradient(width):
    """A step on a few rows in bfloat16 is that in float32 to the rounding; rows of the step before are gone."""
    model = make(hidden_layer_sizes=(512,), max_iter=1).fit(DIGITS)
    x = torch.from_numpy(model.scaling_.to(DIGITS)).float()
    recipe = Recipe(1.0 * MSE(), Nothing(), Free(), 64, 1e-3, 1, 0.0, 1, 0.0, 0.0)
    gradients = []
    for rounded in (False, True):
        run = Dense(deepcopy(model.codec_), recipe, 0, rounded=rounded)
        run.holed = False
        for some in (100 * x[-width:], x[:width]):
            run._squares(some)
        gradients.append(torch.cat([p.grad.flatten() for p in run.parameters.values()]))
    assert run.works[width].lands.shape == (-(-width // 32) * 32, 64)
    assert torch.linalg.vector_norm(gradients[1] - gradients[0]) < 0.02 * torch.linalg.vector_norm(gradients[0])


@pytest.mark.parametrize("rounded", [False, True])
def test_fewer_rows_than_there_is_memory_for_are_all_that_count(rounded):
    model = make(hidden_layer_sizes=(512,), max_iter=1).fit(DIGITS)
    x = torch.from_numpy(model.scaling_.to(DIGITS)).float()
    recipe = Recipe(1.0 * MSE(), Nothing(), Free(), 64, 1e-3, 1, 0.0, 1, 0.0, 0.0)
    found = []
    for most in (31, 40):
        run = Dense(deepcopy(model.codec_), recipe, 0, rounded=rounded)
        run.holed, run.most = False, most
        for some in (100 * x[-most:], x[:31]):
            (value,), scale = run._squares(some)
        gradient = torch.cat([p.grad.flatten() / scale for p in run.parameters.values()])
        found.append(torch.cat([torch.tensor([float(value)]), gradient]))
    assert list(run.works) == [40]
    near = 1e-2 if rounded else 1e-5
    torch.testing.assert_close(found[1], found[0], rtol=near, atol=near * float(found[0].std()))


@pytest.mark.parametrize("linear_path", [True, False])
def test_memory_that_no_row_has_been_in_does_not_count(linear_path):
    """Not even times the zeros that stand for its gradient: it may be NaN, as it is here."""
    model = make(max_iter=1, linear_path=linear_path).fit(DIGITS)
    x = torch.from_numpy(model.scaling_.to(DIGITS)).float()
    recipe = Recipe(1.0 * MSE(), Nothing(), Free(), 64, 1e-3, 1, 0.0, 1, 0.0, 0.0)
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(1).isnan()
        run = Dense(deepcopy(model.codec_), recipe, 0)
        run.holed, run.most = False, 40
        run._squares(x[:31])
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(p.grad.isfinite().all() for p in run.parameters.values())


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(("n_threads", "due"), [(2, False), (2, True), (3, True)])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"tied": True, "linear_path": False, "code_activation": "Sigmoid()", "hidden_layer_sizes": (20,)},
        {"activation": "relu", "linear_path": False, "code_activation": "ReLU()", "hidden_layer_sizes": (16, 12)},
        {"activation": "silu", "n_components": 14},
    ],
    ids=str,
)
def test_shares_of_the_rows_add_up(settings, n_threads, due, monkeypatch):
    """Threads that take a share of each batch from end to end, its rows included, write the gradient that one does."""
    model = make(precision="float64", max_iter=1, **settings).fit(DIGITS[:333])
    x = torch.from_numpy(model.scaling_.to(DIGITS[:333]))
    some = torch.randperm(len(x), generator=generator(0, 0))[:61]
    recipe = Recipe(1.0 * MSE(), Nothing(), Free(), 61, 1e-3, 1, 0.0, 1, 0.0, 0.0)
    monkeypatch.setattr(retell.solvers.dense, "SMALL", 0)
    torch.set_num_threads(n_threads)
    found = []
    for enough, shares in ((1000, 1), (16, n_threads)):
        monkeypatch.setattr(retell.solvers.dense, "ENOUGH", enough)
        run = Dense(deepcopy(model.codec_), recipe, 0)
        run.holed, run.most = False, 61
        assert run.shares == shares
        for numbers in (some, some[:-1]):
            (value,), scale = run._squares(Due(x, numbers) if due else x[numbers])
            gradient = torch.cat([p.grad.flatten() / scale for p in run.parameters.values()])
            found.append(torch.cat([torch.tensor([float(value)]), gradient]))
    for one, other in zip(found[:2], found[2:], strict=True):
        torch.testing.assert_close(other, one, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(found[0], found[1], rtol=1e-4, atol=0)


@pytest.mark.usefixtures("two_threads")
def test_a_fit_whose_threads_take_shares(monkeypatch):
    """What it learns is what one thread learns, but for the order of sums."""
    kinds = []
    for widest in (0, 2**24):
        monkeypatch.setattr(retell.solvers.dense, "SHARED", widest)
        model, watched = make(batch_size=4096, max_iter=4, hidden_layer_sizes=(64,)), Dense.restore_best
        monkeypatch.setattr(
            Dense, "restore_best", lambda run, own=watched: (kinds.append({*map(type, run.works.values())}), own(run))
        )
        kinds.append(model.fit(np.tile(DIGITS, (6, 1))).loss_curve_)
        monkeypatch.setattr(Dense, "restore_best", watched)
    one, of_one, several, of_several = kinds
    assert (one, several) == ({Squares}, {Shares})
    assert of_several == pytest.approx(of_one, rel=1e-4)


@pytest.mark.usefixtures("two_threads")
def test_threads_that_take_shares_find_their_cores_free(monkeypatch):
    """Whatever comes before a step is no work for several of torch's threads, which would go on turning."""
    found = set()

    def counted(name, own, *args, **settings):
        found.add((name, torch.get_num_threads()))
        return own(*args, **settings)

    for owner, name in ((torch, "randperm"), (retell.plan, "fill_start"), (Rows, "take"), (Squares, "forward")):
        own = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args, name=name, own=own, **its: counted(name, own, *args, **its))
    make(batch_size=4096, max_iter=2, hidden_layer_sizes=(64,)).fit(np.tile(DIGITS, (6, 1)))
    assert found == {("randperm", 1), ("fill_start", 1), ("take", 1), ("forward", 1)}


def test_who_fails_in_another_thread_is_heard():
    def fails():
        raise ValueError("here")

    with pytest.raises(ValueError, match="here"):
        at_once([lambda: 1, fails])
    assert at_once([lambda: 1, lambda: 2, lambda: 3]) == [1, 2, 3]


@pytest.mark.usefixtures("two_threads")
def test_threads_that_work_at_once_have_one_each():
    """A new thread takes the number that is set when it first asks torch for something, whatever was set for it."""
    at_once([lambda: None] * 4)
    assert at_once([torch.get_num_threads] * 4) == [1] * 4
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("settings", [{"solver": "descend"}, {"solver": "exact", "hidden_layer_sizes": ()}], ids=str)
def test_bfloat16_is_for_written_out_products(settings):
    model = make(precision="bfloat16", **settings)
    with pytest.raises(ValueError, match=rf"bfloat16.*solver='dense'.*{settings['solver']!r}.*precision='auto'"):
        model.fit(DIGITS[:200])


# --- a fit leaves nothing behind


def numbers(model):
    return {name: value.clone() for name, value in model.codec_.state_dict().items()}


@pytest.mark.parametrize("name", ["plain", "tied", "top k", "bfloat16"])
@pytest.mark.parametrize("holes", [False, True])
def test_interrupted_and_resumed_it_ends_in_the_same_bits(name, holes, tmp_path, monkeypatch):
    monkeypatch.setattr(retell.training, "EVERY", 0.0)
    X = DIGITS[:300].copy()
    X[5, 5:9] = np.nan if holes else 0.0
    model = make(**FITS.get(name, {"hidden_layer_sizes": (512,), "precision": "bfloat16"}))
    whole = clone(model).fit(X)
    for epoch in model.fit_epochs(X, checkpoint=tmp_path / "state"):
        if epoch.number == 2:
            break
    resumed = clone(model).fit(X, checkpoint=tmp_path / "state")
    assert resumed.solver_ == "dense"
    assert resumed.n_iter_ == whole.n_iter_ == 4
    assert resumed.history_ == whole.history_
    for name, value in numbers(whole).items():
        assert torch.equal(resumed.codec_.state_dict()[name], value), name


@pytest.mark.parametrize(
    "settings", [{}, {"tied": True}, {"hidden_layer_sizes": (512,), "precision": "bfloat16"}], ids=str
)
def test_parameters_are_let_go(settings):
    """Each has memory of its own, as much as it needs, and no gradient."""
    model = make(**{**settings, "max_iter": 1}).fit(DIGITS[:200])
    parameters = list(model.codec_.parameters())
    assert len({p.untyped_storage().data_ptr() for p in parameters}) == len(parameters)
    assert all(p.untyped_storage().nbytes() == p.numel() * p.element_size() for p in parameters)
    assert all(p.grad is None for p in parameters)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("widths", [(8,), (4096,)])
@pytest.mark.parametrize("fails", [False, True])
def test_threads_are_as_before(widths, fails, monkeypatch):
    """Small products, NumPy's, have one; whatever happens, what was set stays."""
    seen, step = set(), Dense.one_step

    def algebra():
        return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]

    def watched(self, *args):
        seen.add((torch.get_num_threads(), *algebra()))
        if fails:
            raise KeyboardInterrupt
        return step(self, *args)

    monkeypatch.setattr(Dense, "one_step", watched)
    model, before = make(hidden_layer_sizes=widths, max_iter=1), algebra()
    if fails:
        with pytest.raises(KeyboardInterrupt):
            model.fit(DIGITS[:200])
    else:
        model.fit(DIGITS[:200])
    assert seen == {(1, *(1 for _ in before)) if widths == (8,) else (2, *before)}
    assert torch.get_num_threads() == 2
    assert algebra() == before


def test_verbose_names_the_solver_and_why(capsys):
    for settings, why in (
        ({}, "solver dense: the net has hidden layers"),
        (
            {"objective": "Nested(MSE(), (2,))"},
            "solver descend: the derivative of Nested(MSE(), (2,)) is left to autograd",
        ),
    ):
        make(verbose=1, max_iter=1, **{"solver": "auto", **settings}).fit(DIGITS[:200])
        assert why in capsys.readouterr().err
