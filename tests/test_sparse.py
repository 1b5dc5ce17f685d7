"""The sparse solver's step is the reference's: values, gradients, parameters and what is counted, to rounding."""

import math
from itertools import product

import numpy as np
import pytest
import torch

from retell import (
    L0,
    L1,
    MSE,
    Autoencoder,
    AuxK,
    BatchTopK,
    Codec,
    Free,
    JumpReLU,
    Nested,
    NonNegative,
    Nothing,
    ReLU,
    TopK,
    UnitNorm,
    mlp,
)
from retell.descend import Descent, Recipe
from retell.objective import as_objective
from retell.seeds import generator
from retell.solvers.pairs import Block, ByUnit, summed
from retell.solvers.sparse import Sparse, why_not

CODES = TopK(1), TopK(5), TopK(5, least=0.5), BatchTopK(3), ReLU(), JumpReLU(0.3, 0.4), JumpReLU(0.1, 0.4)
OBJECTIVES = (
    MSE(),
    Nested(MSE(), (5, 11)),
    MSE() + 0.1 * L1(),
    MSE() + 0.5 * AuxK(3, rows=100) + 0.01 * L1(),
    0.7 * Nested(MSE(), (8,)) + 0.3 * AuxK(40, rows=60),
)


def codec_of(D, K, code, seed=0):
    """A codec in float64, every weight at random."""
    encoder, decoder, draw = mlp([D, K]), mlp([K, D]), generator(seed)
    codec = Codec(encoder, code.bind(K), decoder, torch.zeros(D)).double()
    with torch.no_grad():
        for layer in codec.affines():
            layer.own.normal_(generator=draw).div_(math.sqrt(layer.own.shape[1]))
            layer.bias.normal_(generator=draw).mul_(0.1)
    codec.centre = torch.zeros(D, dtype=torch.float64)
    return codec.train()


def recipe_of(objective, constraint, clip=math.inf, revive=0.0, bias_rate=1.0):
    return Recipe(
        objective=as_objective(objective), corruption=Nothing(), constraint=constraint, batch_size=64,
        learning_rate=2e-2, max_iter=5, decay=0.0, n_iter_no_change=3, tol=1e-4, sure=0.0, clip=clip,
        betas=(0.8, 0.95), late=0.6, revive=revive, bias_rate=bias_rate,
    )  # fmt: skip


def compare(code, recipe, x, K, steps=5):
    """Steps of both solvers, side by side."""
    one, other = codec_of(x.shape[1], K, code), codec_of(x.shape[1], K, code)
    assert why_not(other, recipe, holes=False) == ""
    reference, sparse = Descent(one, recipe, 0), Sparse(other, recipe, 0)
    for _ in range(steps):
        wanted, got = reference.one_step(x, None, 1e-2), sparse.one_step(x, None, 1e-2)
        torch.testing.assert_close(torch.stack(got), torch.stack(wanted), rtol=0, atol=1e-10)
        for (name, p), q in zip(one.named_parameters(), other.parameters(), strict=True):
            mean, wanted_mean = sparse.moments[q].mean, reference.moments[p].mean  # of all gradients so far
            torch.testing.assert_close(
                mean, wanted_mean, rtol=0, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}"
            )
            if q.grad is not None:
                torch.testing.assert_close(q.grad, p.grad, rtol=0, atol=1e-10)
            torch.testing.assert_close(q, p, rtol=0, atol=1e-8)
        for p, q in zip(one.buffers(), other.buffers(), strict=True):
            torch.testing.assert_close(q, p, rtol=0, atol=1e-10)
    return one, other


@pytest.mark.parametrize("code", CODES, ids=repr)
@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
def test_steps_are_those_of_the_reference(code, objective):
    if isinstance(code, ReLU) and "AuxK" in repr(objective):
        pytest.skip("AuxK revives units of a sparse code")
    x = torch.randn(50, 13, dtype=torch.float64, generator=generator(1))
    objective = objective + 0.02 * L0() if isinstance(code, JumpReLU) else objective
    for constraint, clip in product((UnitNorm(), Free(), NonNegative()), (math.inf, 0.05)):
        compare(code, recipe_of(objective, constraint, clip), x, 37)
        compare(code, recipe_of(objective, constraint, clip, bias_rate=5.0), x, 37)


@pytest.mark.parametrize("shape", [(3, 2, 7), (1, 5, 300), (700, 3, 1031), (129, 17, 4097)])
def test_any_shape_will_do(shape):
    n, D, K = shape
    x = torch.randn(n, D, dtype=torch.float64, generator=generator(2))
    for code in (TopK(1), TopK(min(7, K)), BatchTopK(2)):
        compare(code, recipe_of(MSE() + 0.1 * AuxK(4, rows=2 * n), UnitNorm()), x, K, steps=3)


def test_rows_of_zeros_and_rows_without_an_active_unit():
    x = torch.randn(20, 6, dtype=torch.float64, generator=generator(3))
    x[::3] = 0
    compare(TopK(3), recipe_of(MSE(), UnitNorm()), x, 40)
    one, other = codec_of(6, 40, TopK(3)), codec_of(6, 40, TopK(3))
    for codec in (one, other):
        with torch.no_grad():
            codec.encoder.last.bias.fill_(-100.0)  # no unit is above zero
    recipe = recipe_of(MSE() + AuxK(2, rows=1), UnitNorm())
    reference, sparse = Descent(one, recipe, 0), Sparse(other, recipe, 0)
    for _ in range(3):
        wanted, got = reference.one_step(x, None, 1e-2), sparse.one_step(x, None, 1e-2)
        torch.testing.assert_close(torch.stack(got), torch.stack(wanted), rtol=0, atol=1e-10)
    assert all(torch.isfinite(p).all() for p in other.parameters())


def dense(pairs, n, K):
    """The code (n, K) of pairs."""
    code = torch.zeros(n, K, dtype=pairs.values.dtype)
    code[torch.arange(n).repeat_interleave(pairs.starts.diff()), pairs.units.long()] = pairs.values
    return code


def test_of_equal_units_exactly_k_are_active():
    a = torch.tensor([[1.0, 2.0, 2.0, 2.0, 0.5, 2.0], [0.0, -1.0, 3.0, 3.0, 3.0, 3.0], [-1.0] * 6])
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        for k in (1, 2, 3, 6):
            found = Block(3, 6, dtype).largest(a.to(dtype), k)
            best = torch.relu(torch.topk(a, k).values).sum(1)
            sums = [float(some.sum()) for some in found.values.float().split(found.starts.diff().tolist())]
            torch.testing.assert_close(torch.tensor(sums), best)
            assert (found.starts.diff() <= k).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("n", "K", "k"), [(65, 1000, 9), (10, 129, 129), (300, 3072, 32), (7, 513, 1)])
def test_the_largest_are_the_largest(dtype, n, K, k):
    a = torch.randn(n, K, generator=generator(4)).to(dtype)
    a[0] = a[0].abs().neg()
    found = Block(n, K, dtype).largest(a, k)
    code = dense(found, n, K)
    assert torch.equal(code.sort(1).values, TopK(k)(a).sort(1).values)


def test_sums_by_unit_are_products_with_the_code():
    a = torch.randn(31, 77, dtype=torch.float64, generator=generator(5))
    found = Block(31, 77, torch.float64).largest(a, 6)
    code, rows = TopK(6)(a), torch.randn(31, 9, dtype=torch.float64, generator=generator(6))
    by = ByUnit(found, 77)
    sums = torch.cat([summed([by.sum(rows, found.values)], u, v) for u, v in ((0, 40), (40, 77))])
    torch.testing.assert_close(sums, code.T @ rows)
    some = summed([by.sum(rows, found.values, 30, 50), by.sum(rows, found.values, 38, 77)], 20, 40)
    torch.testing.assert_close(some[10:], sums[30:40] + torch.cat([torch.zeros(8, 9), sums[38:40]]))
    assert not some[:10].any()
    dictionary = torch.randn(77, 9, dtype=torch.float64, generator=generator(7))
    torch.testing.assert_close(found.decode(dictionary), code @ dictionary)
    dots = found._replace(values=found.dots(rows, dictionary))
    torch.testing.assert_close(dense(dots, 31, 77), (rows @ dictionary.T) * (code > 0))


def planted(n=4000, D=32, K=512, seed=0):
    """Rows of 4 of K directions."""
    draw = np.random.default_rng(seed)
    directions = draw.normal(size=(K, D)) / math.sqrt(D)
    which = draw.integers(K, size=(n, 4))
    return np.einsum("nk,nkd->nd", draw.uniform(1, 2, (n, 4)), directions[which]).astype(np.float32)


def test_whole_fits_agree():
    X = planted()
    settings = {"n_components": 512, "code_activation": "TopK(4)", "random_state": 0, "max_iter": 8, "batch_size": 256}
    by = {
        solver: Autoencoder(solver=solver, precision=precision, **settings).fit(X)
        for solver, precision in (("sparse", "float32"), ("descend", "auto"))
    }
    losses = [model.best_loss_ for model in by.values()]
    assert losses[0] == pytest.approx(losses[1], rel=2e-2)  # selections flip with the last digit
    assert by["sparse"].score(X) > 0.5


def test_auto_takes_pairs_where_few_units_are_active_and_says_so(capsys):
    X = planted(3000, D=64, K=1024)
    settings = {"batch_size": 2048, "max_iter": 1, "random_state": 0}
    model = Autoencoder(1024, code_activation="TopK(4)", verbose=1, **settings).fit(X)
    assert model.solver_ == "sparse"
    assert "solver sparse: few of the 1024 units" in capsys.readouterr().err
    assert Autoencoder(1024, code_activation="TopK(80)", **settings).fit(X).solver_ == "dense"
    assert Autoencoder(1024, code_activation="TopK(4)", **settings | {"batch_size": 64}).fit(X).solver_ == "dense"


def test_idle_units_are_helped_until_they_are_active():
    x = torch.randn(5000, 6, dtype=torch.float64, generator=generator(8))
    helped = recipe_of(MSE(), UnitNorm(), revive=10.0)
    compare(TopK(2), helped, x, 40)
    idle = {}
    for solver, recipe in ((Descent, helped), (Sparse, helped), (Sparse, recipe_of(MSE() + 1e-9 * AuxK(), UnitNorm()))):
        codec = codec_of(6, 40, TopK(2))
        with torch.no_grad():
            codec.encoder.last.bias[:20] = -1.0
        steps = solver(codec, recipe, 0)
        for _ in range(60):
            steps.one_step(x, None, 1e-2)
        idle[solver, recipe is helped] = int((codec.idle >= 20_000).sum())
    assert idle[Sparse, True] == idle[Descent, True] == 0
    assert idle[Sparse, False] >= 10


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"code_activation": "Identity()"}, "no active pairs"),
        ({"code_activation": "TopK(4)", "tied": True}, "not tied"),
        ({"code_activation": "TopK(4)", "hidden_layer_sizes": (8,)}, "one affine map"),
        ({"code_activation": "TopK(4)", "corruption": "Mask(0.3)"}, "not corrupted"),
        ({"code_activation": "TopK(4)", "objective": "Huber()"}, "left to autograd"),
    ],
)
def test_what_it_does_not_take_is_refused_with_a_reason(settings, reason):
    with pytest.raises(ValueError, match=reason):
        Autoencoder(64, solver="sparse", max_iter=1, **settings).fit(planted(200))


def test_rows_with_holes_fall_to_another_solver():
    X = planted(400)
    X[::7, 3] = np.nan
    assert Autoencoder(512, code_activation="TopK(4)", max_iter=1, random_state=0).fit(X).solver_ != "sparse"


def test_bfloat16_finds_as_good_a_code():
    X = planted(6000)
    settings = {
        "n_components": 512,
        "code_activation": "TopK(4)",
        "max_iter": 20,
        "batch_size": 256,
        "solver": "sparse",
    }
    scores = [
        np.mean([Autoencoder(precision=precision, random_state=seed, **settings).fit(X).score(X) for seed in range(3)])
        for precision in ("float32", "bfloat16")
    ]
    assert scores[1] > scores[0] - 0.01


def test_adams_memory_is_long_while_the_rate_rises_and_shrinks_with_it():
    descent = Descent(codec_of(6, 20, TopK(3)), recipe_of(MSE(), Free()), 0)
    descent.end, seen = 100, []
    for descent.step in (0, 5, 50, 100):
        rate = descent.recipe.learning_rate * descent.share(20)
        seen.append(descent.betas(rate))
    assert [first for first, _ in seen] == pytest.approx([0.8, 0.8, 0.6 + 0.2 * 50 / 90, 0.6])
    assert {second for _, second in seen} == {0.95}
