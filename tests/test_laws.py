"""Laws that every part obeys, over all members by enumeration: a new class is tested without a new line here."""

import copy
import dataclasses
import itertools
import math
import pickle
import random

import numpy as np
import pytest
import torch
from torch.autograd.functional import jacobian

import retell
from retell import (
    BCE,
    KL,
    L1,
    L2,
    MSE,
    Autoencoder,
    Bernoulli,
    Codec,
    Contractive,
    Corrupted,
    Cosine,
    Exponential,
    Free,
    Gaussian,
    Huber,
    Identity,
    Laplace,
    Likelihood,
    Mask,
    Normal,
    Objective,
    Part,
    Poisson,
    ReLU,
    Sigmoid,
    Softplus,
    StudentT,
    Tanh,
    Term,
    TopK,
    UnitNorm,
    UnitRMS,
    Warmup,
    mirror,
    mlp,
    parse,
)
from retell.grammar import read, vocabulary

N, D, K = 12, 5, 3
# What an argument of each type is tried with; a constructor may refuse, another value is tried then.
TRIES = {
    "int": (2, 3, 1),
    "float": (0.25, 0.75, 2.0),
    "bool": (True, False),
    "Term": (MSE(), Huber(0.5)),
    "Part": (Normal(0.5), Laplace(0.5), Bernoulli(), StudentT(3.0, 0.5), Exponential(0.5), Poisson(), Normal()),
    "tuple[int, ...]": ((1,), (1, 2)),
    # what a text may be is for its part to say
    "str": ("weights", "reconstruction", "exact", "projection"),
}


def examples(part):
    """Up to four different values of a class, from its signature alone."""
    choices = []
    for field in dataclasses.fields(part):
        tries = [t for kind in str(field.type).split(" | ") for t in TRIES.get(kind, ())]
        given = [] if field.default is dataclasses.MISSING else [field.default]
        choices.append([*given, *tries])
    made = []
    for arguments in itertools.product(*choices):
        try:
            value = part(*arguments)
        except (ValueError, TypeError):
            continue
        if value not in made:
            made.append(value)
    # from both ends, so that optional arguments leave their defaults too
    return made[:2] + made[2:][-2:]


PARTS = [value for part in vocabulary().values() for value in examples(part)]


def of(letters):
    return [part for part in PARTS if part.letter in letters]


TERMS, ACTIVATIONS, CORRUPTIONS, SCHEDULES, CONSTRAINTS = of("LΩ"), of("σ"), of("C"), of("λ"), of("Π")
SUMS = [
    MSE() + 0.001 * L1(),
    2 * MSE(),
    -0.5 * Huber() + MSE(),
    MSE() + L1() + 3 * L1(),
    MSE() + Warmup(0.1, 100) * Contractive() + Cosine(1, 0, 10) * L2(),
    np.float32(0.5) * MSE() + np.float64(0.1) * KL(0.2) + np.int64(3) * L1(),
    sum([BCE(), L2(), KL()]),
    2 * (MSE() + 1e-300 * L1()),
    *(MSE() + 0.25 * term for term in TERMS),
]


def fill(module, seed, size=0.7):
    """Random weights and biases."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(generator=draw).mul_(size)
    return module


def make_codec(activation, *, hidden=(4,), squash="tanh", tied=False, linear_path=True, seed=0):
    encoder = mlp([D, *hidden, getattr(activation, "outputs", 1) * K], squash, linear_path=linear_path)
    decoder = mirror(encoder, tied=True) if tied else mlp([K, *hidden[::-1], D], squash, linear_path=linear_path)
    codec = Codec(encoder, activation.bind(K), decoder, torch.full((D,), 0.4), learns_scale=True)
    return fill(codec.double(), seed)


def rows(seed=0, n=N):
    """Rows that lie in every loss's support."""
    return torch.rand(n, D, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 0.9 + 0.05


def run(term, codec, x, constraint=None):
    p = codec(x)
    return p if constraint is None else p._replace(unit=constraint.unit(p.h))


def legal(term, codec):
    try:
        term.check(codec)
    except ValueError:
        return False
    return True


def codec_for(term, activation):
    """A deep codec, or a linear one where the term needs that."""
    deep = make_codec(activation)
    return deep if legal(term, deep) else make_codec(activation, hidden=())


PAIRS = [(term, act) for term in TERMS for act in ACTIVATIONS if legal(term, codec_for(term, act))]


def global_numpy():
    return np.random.get_state(legacy=False)["state"]["key"].copy()  # noqa: NPY002  the one that is to be left alone


def name(value):
    return repr(value)


# --- every part is a value


def test_every_class_has_examples():
    assert {type(part) for part in PARTS} == set(vocabulary().values())
    assert {part.letter for part in PARTS} == {"C", "σ", "L", "Ω", "Π", "λ", "p"}
    # every term is legal with some activation, or its laws below were never tried
    assert {type(term) for term, _ in PAIRS} == {type(term) for term in TERMS}


@pytest.mark.parametrize("part", PARTS, ids=name)
def test_repr_rebuilds(part):
    assert parse(repr(part)) == part


@pytest.mark.parametrize("total", SUMS, ids=name)
def test_repr_rebuilds_sums(total):
    again = read(repr(total), "JLΩ", "objective")
    assert again == total
    assert repr(again) == repr(total)
    assert hash(again) == hash(total)


@pytest.mark.parametrize("part", PARTS + SUMS, ids=name)
def test_parts_are_frozen_values(part):
    for twin in (copy.deepcopy(part), pickle.loads(pickle.dumps(part)), copy.copy(part)):
        assert twin == part
        assert hash(twin) == hash(part)
    for field in dataclasses.fields(part):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(part, field.name, 1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        part.another = 1
    assert part != repr(part)


def test_different_values_differ():
    assert len(set(PARTS)) == len(PARTS)
    assert len({repr(part) for part in PARTS}) == len(PARTS)
    for one, other in itertools.combinations(PARTS, 2):
        assert one != other


def test_every_class_opens_with_its_formula():
    for part in vocabulary().values():
        assert part.__doc__
        assert not part.__doc__.startswith(f"{part.__name__}("), f"{part.__name__} has no docstring of its own"


# --- every term


@pytest.mark.parametrize(("term", "activation"), PAIRS, ids=name)
def test_terms_have_their_shape_and_are_finite(term, activation):
    codec, x = codec_for(term, activation), rows()
    x[0, 0] = x[3, 2] = float("nan")
    value = term(run(term, codec, x))
    assert torch.isfinite(value).all()
    cells = term.letter == "L" and not isinstance(term, Likelihood)
    assert tuple(value.shape) == (N, D) if cells else tuple(value.shape) in {(N,), ()}
    if term.letter == "L":
        assert torch.isfinite(term.mean(codec(x).x_hat)).all()
        low, high = term.support
        assert ((term.mean(codec(x).x_hat) >= low) & (term.mean(codec(x).x_hat) <= high)).all()
        # link is the inverse of mean, where a start needs it
        torch.testing.assert_close(term.mean(term.link(rows())), rows(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("constraint", CONSTRAINTS, ids=name)
@pytest.mark.parametrize(("term", "activation"), PAIRS, ids=name)
def test_terms_are_differentiable(term, activation, constraint):
    """Finite differences through the whole objective, along a random direction in each parameter."""
    codec, x, draw = codec_for(term, activation), rows(), torch.Generator().manual_seed(1)
    x[1, 1] = float("nan")
    objective = 0.7 * MSE() + 1.3 * term

    def value():
        return torch.stack(list(objective(run(term, codec, x, constraint)).values())).sum()

    value().backward()
    step = 1e-5
    for name_of, parameter in codec.named_parameters():
        direction = torch.empty_like(parameter).normal_(generator=draw)
        stated = {*getattr(activation, "surrogate", ()), *getattr(term, "surrogate", ())}
        if stated & set(name_of.split(".")):
            continue  # its gradient is that of a stated formula, tested below
        expected = 0.0 if parameter.grad is None else float((parameter.grad * direction).sum())
        ends = []
        with torch.no_grad():
            for sign in (1, -2, 1):  # up, down, back
                parameter += sign * step * direction
                ends.append(float(value()))
        slope = (ends[0] - ends[1]) / (2 * step)
        assert slope == pytest.approx(expected, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize(("term", "activation"), PAIRS, ids=name)
def test_terms_do_not_depend_on_the_order_of_rows(term, activation):
    if getattr(term, "method", "") == "projection":
        return  # it draws a direction for each row, in the order of the rows
    codec, x = codec_for(term, activation), rows()
    order = torch.randperm(N, generator=torch.Generator().manual_seed(2))
    one, other = term(codec(x)), term(codec(x[order]))
    torch.testing.assert_close(other, one[order] if one.ndim else one, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("term", of("L"), ids=name)
def test_losses_count_seen_cells_only(term):
    if term.needs_corruption:
        return  # these count corrupted cells
    codec, x = make_codec(Identity()), rows()
    hole = torch.rand(N, D, generator=torch.Generator().manual_seed(3)) < 0.3
    x[hole] = float("nan")
    p = codec(x)
    (mean,) = Objective(((1.0, term),))(p).values()
    if isinstance(term, Likelihood):  # in nats a row: a sum over the seen cells of each
        torch.testing.assert_close(mean, -(term.log_cells(p) * ~hole).sum(1).mean(), rtol=1e-12, atol=0)
    else:
        torch.testing.assert_close(mean, term(p)[~hole].mean(), rtol=1e-12, atol=0)
    # what stands in the holes does not matter
    other = p._replace(x=p.x.masked_fill(hole, 0.7))
    assert torch.equal(Objective(((1.0, term),))(other)[type(term).__name__], mean)


# --- every activation


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=name)
def test_activations_stay_in_their_range_and_fill_it(activation):
    a = torch.linspace(-40, 40, 801, dtype=torch.float64)[
        torch.randperm(801, generator=torch.Generator().manual_seed(4))
    ]
    h = activation.bind(K)(a.reshape(-1, K))
    low, high = activation.range
    assert torch.isfinite(h).all()
    assert h.min() >= low
    assert h.max() <= high
    assert h.min() < (low + 1e-3 if math.isfinite(low) else -10)
    assert h.max() > (high - 1e-3 if math.isfinite(high) else 10)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=name)
def test_activations_do_not_depend_on_the_order_of_rows(activation):
    draw = torch.Generator().manual_seed(5)
    a, order = torch.randn(41, K, dtype=torch.float64, generator=draw), torch.randperm(41, generator=draw)
    squash = activation.bind(K)
    # not to the bit: torch computes the end of a block, shorter than a vector, by other instructions
    torch.testing.assert_close(squash(a[order]), squash(a)[order], rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=name)
def test_sparse_says_that_most_of_the_code_can_be_zero(activation):
    h = make_codec(activation)(rows() * 8 - 4).h
    assert not activation.sparse or (h == 0).any()


def test_activations_are_their_formulas():
    a = torch.linspace(-5, 5, 12, dtype=torch.float64).reshape(4, 3)
    z = a.numpy()
    formulas = {
        Identity(): z,
        ReLU(): np.maximum(z, 0),
        Sigmoid(): 1 / (1 + np.exp(-z)),
        Tanh(): np.tanh(z),
        Softplus(): np.log1p(np.exp(z)),
    }
    for activation, expected in formulas.items():
        np.testing.assert_allclose(activation(a).numpy(), expected, rtol=1e-12, atol=1e-14)


def test_topk_keeps_the_k_largest_that_are_positive():
    a = torch.randn(50, 7, generator=torch.Generator().manual_seed(6))
    for k in (1, 3, 7):
        h = TopK(k).bind(7)(a)
        ranks = a.argsort(1, descending=True).argsort(1)
        assert torch.equal(h, torch.where(ranks < k, a.clamp(min=0), 0.0))
    with pytest.warns(UserWarning, match=r"TopK\(8\) keeps all 7 units"):
        assert TopK(8).bind(7) == TopK(7)
    assert torch.equal(TopK(2.0)(a), TopK(2)(a))  # a whole number is one, however it is written


# --- every derivative that is written out


def slope_of(value, *by):
    """Autograd's; 0 where the value does not depend on it."""
    found = torch.autograd.grad(value.sum(), by, allow_unused=True) if value.requires_grad else [None] * len(by)
    return [torch.zeros_like(z) if slope is None else slope for slope, z in zip(found, by, strict=True)]


def leaf(z):
    return z.detach().clone().requires_grad_()


def assert_slopes(ours, expected):
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one.detach().expand_as(other), other, rtol=1e-10, atol=1e-12)


def test_derivatives_are_found_by_their_names():
    """Or the laws below try nothing."""
    for word in ("slope_x_hat", "slope_h", "slope_weights", "slope", "pull", "bend", "slopes"):
        assert sum(hasattr(part, word) for part in vocabulary().values()) >= 1, word


@pytest.mark.parametrize("constraint", [Free(), UnitRMS()], ids=name)
@pytest.mark.parametrize(("term", "activation"), PAIRS, ids=name)
def test_slopes_of_terms_are_autograds(term, activation, constraint):
    codec, x = codec_for(term, activation), rows()
    codec.n_rows.fill_(30)
    x[0, 0] = x[3, 2] = float("nan")
    p = codec(x, Mask(0.3, emphasis=2.0)(x, torch.Generator().manual_seed(2)))
    p = p._replace(h=p.h.detach(), x_hat=leaf(p.x_hat), unit=constraint.unit(p.h.detach()))
    if hasattr(term, "slope_x_hat") and not getattr(term, "learned", False):
        assert_slopes([term.slope_x_hat(p)], slope_of(term(p), p.x_hat))
    of_code = hasattr(term, "slope_h") and getattr(term, "on", "code") == "code"
    if of_code and not (isinstance(term, KL) and constraint != Free()):  # whose derivative is by h itself
        h = leaf(p.h / p.unit)
        assert_slopes([term.slope_h(p)], slope_of(term(p._replace(h=h * p.unit)), h))
    if getattr(term, "on_weights", False):
        matrices = codec.matrices()
        assert_slopes(term.slope_weights(p), slope_of(term(p), *matrices))


@pytest.mark.parametrize(
    "density", [part for part in PARTS if hasattr(part, "slope") and hasattr(part, "at")], ids=name
)
def test_slopes_of_densities_are_autograds(density):
    """By the location; where the density has none, the other way round by z."""
    z, draw = rows().requires_grad_(), torch.Generator().manual_seed(3)
    location = torch.randn(N, D, dtype=torch.float64, generator=draw, requires_grad=True)
    scale = z.new_tensor(getattr(density, "scale", None) or 0.7)
    value = -density.at(location, scale).log_prob(z)
    expected = slope_of(value, location)[0] if hasattr(density, "link") else -slope_of(value, z)[0]
    assert_slopes([density.slope(z, location, scale)], [expected])


@pytest.mark.parametrize("activation", [part for part in ACTIVATIONS if hasattr(part, "pull")], ids=name)
def test_pull_and_bend_are_autograds(activation):
    draw, squash = torch.Generator().manual_seed(4), activation.bind(K)
    a, d = (3 * torch.randn(N, K, dtype=torch.float64, generator=draw) for _ in range(2))
    a.requires_grad_()
    h = squash(a)
    (slope,) = torch.autograd.grad(h.sum(), a, create_graph=True)
    assert_slopes([squash.pull(d, a, h)], [d * slope.detach()])
    assert_slopes([squash.bend(a, h)], slope_of(slope, a))


@pytest.mark.parametrize("activation", [part for part in ACTIVATIONS if hasattr(part, "bend")], ids=name)
def test_slopes_of_contractive_are_autograds(activation):
    """By a and by W they make those by W, through both, and by the bias."""
    term, codec, x = Contractive(), make_codec(activation, hidden=()), rows()
    assert term.closed(codec)
    p, last = codec(x), codec.encoder.last
    by_a, by_weight = term.slopes(p)
    assert_slopes([by_weight + by_a.T @ x, by_a.sum(0)], slope_of(term(p), last.own, last.bias))


# --- every corruption


@pytest.mark.parametrize("corruption", CORRUPTIONS, ids=name)
def test_corruptions_are_seeded_private_and_keep_holes(corruption):
    x = torch.randn(200, D, generator=torch.Generator().manual_seed(7))
    hole = torch.rand(200, D, generator=torch.Generator().manual_seed(8)) < 0.2
    x[hole] = float("nan")
    before, ours = x.clone(), torch.Generator()
    states = torch.get_rng_state(), global_numpy(), random.getstate()
    one, hit, emphasis = corruption(x, ours.manual_seed(1))
    again = corruption(x, ours.manual_seed(1)).x
    later = corruption(x, ours).x
    assert not (hit & hole).any()  # a hole is not corrupted, nor counted as if it were
    assert emphasis == getattr(corruption, "emphasis", 1.0)
    torch.testing.assert_close(one[~hit], x[~hit], rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(one, again, rtol=0, atol=0, equal_nan=True)
    changes = not torch.equal(one.nan_to_num(99.0), x.nan_to_num(99.0))
    assert changes == (not torch.equal(one.nan_to_num(99.0), later.nan_to_num(99.0)))  # fresh noise each time
    assert changes == (corruption != retell.Nothing())
    assert torch.isnan(one[hole]).all()
    torch.testing.assert_close(x, before, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(states[0], torch.get_rng_state())
    assert (states[1] == global_numpy()).all()
    assert states[2] == random.getstate()
    assert one.shape == x.shape
    assert one.dtype == x.dtype


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9])
def test_mask_hides_p_of_the_cells_and_changes_no_other(p):
    x = torch.ones(1000, 200)
    made, hit, _ = Mask(p)(x, torch.Generator().manual_seed(0))
    hidden = torch.isnan(made)
    assert torch.equal(hidden, hit)
    n = hidden.numel()
    assert abs(hidden.double().mean() - p) <= 4 * math.sqrt(p * (1 - p) / n)
    # a column and a row are hidden alike: cells are drawn one by one
    assert (abs(hidden.double().mean(0) - p) <= 5 * math.sqrt(p * (1 - p) / 1000)).all()
    assert (made[~hidden] == 1).all()


@pytest.mark.parametrize("scale", [0.1, 3.0])
def test_gaussian_has_its_scale(scale):
    x = torch.full((1000, 200), 5.0, dtype=torch.float64)
    noise = Gaussian(scale)(x, torch.Generator().manual_seed(0)).x - x
    n = noise.numel()
    assert abs(noise.mean()) <= 4 * scale / math.sqrt(n)
    assert abs(noise.std() / scale - 1) <= 4 / math.sqrt(2 * n)
    assert abs((noise**4).mean() / scale**4 - 3) <= 4 * math.sqrt(96 / n)  # the fourth moment of a Normal


# --- every schedule


@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
def test_schedules_are_finite_numbers_and_come_to_rest(schedule):
    values = [schedule.at(step) for step in (0, 1, 7.5, 1e6, 1e9, math.inf)]
    assert all(isinstance(value, float) and math.isfinite(value) for value in values)
    assert values[-1] == pytest.approx(values[-2])  # "inf" is the end, at which models are judged
    assert schedule.at(0) != schedule.at(math.inf) or getattr(schedule, "start", 0) == getattr(schedule, "end", 1)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
def test_a_schedule_multiplies_its_term(schedule):
    p = make_codec(ReLU())(rows())
    for step in (0, 1, math.inf):
        terms = (MSE() + schedule * L1())(p, step)
        torch.testing.assert_close(terms["L1"], schedule.at(step) * p.h.abs().sum(1).mean())


def test_schedules_are_their_formulas():
    assert [Warmup(0.5, 4).at(t) for t in (0, 1, 4, 9)] == [0, 0.125, 0.5, 0.5]
    assert [Cosine(3.0, 1.0, 6).at(t) for t in (0, 2, 3, 6, 9)] == pytest.approx([3, 2.5, 2, 1, 1])


# --- every constraint


@pytest.mark.parametrize("constraint", CONSTRAINTS, ids=name)
def test_constraints_project_once_and_step_along(constraint):
    draw = torch.Generator().manual_seed(9)
    v, g = (torch.randn(7, 4, dtype=torch.float64, generator=draw) for _ in range(2))
    constraint.project(v)
    once = v.clone()
    constraint.project(v)
    torch.testing.assert_close(v, once, rtol=1e-14, atol=1e-15)
    tangent = g.clone()
    constraint.tangent(v, tangent)
    again = tangent.clone()
    constraint.tangent(v, again)
    torch.testing.assert_close(again, tangent, rtol=1e-12, atol=1e-14)
    # a tangent step leaves Π to second order only
    for step in (1e-3, 1e-4):
        moved = v - step * tangent
        back = moved.clone()
        constraint.project(back)
        assert (back - moved).abs().max() <= 10 * step**2
    zero = torch.zeros(3, 2)
    constraint.project(zero)
    assert torch.isfinite(zero).all()


def test_unit_norm_is_unit_and_its_tangent_orthogonal():
    v = torch.randn(7, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(10))
    v[:, 2] = 0
    g = torch.ones_like(v)
    UnitNorm().project(v)
    UnitNorm().tangent(v, g)
    torch.testing.assert_close(v.norm(dim=0), torch.tensor([1, 1, 0, 1]).double())
    torch.testing.assert_close((v * g).sum(0), torch.zeros(4).double(), rtol=0, atol=1e-14)


@pytest.mark.parametrize("tied", [False, True])
def test_training_keeps_unit_norms(tied):
    x = rows(n=64).numpy()
    model = Autoencoder(3, hidden_layer_sizes=(), tied=tied, objective="MSE() + 0.01 * L1()", constraint="UnitNorm()",
                        batch_size=16, learning_rate_init=0.01, max_iter=3, random_state=0)  # fmt: skip
    norms = model.fit(x).codec_.dictionary().norm(dim=0)
    torch.testing.assert_close(norms, torch.ones(3), rtol=1e-5, atol=0)


@pytest.mark.parametrize("term", [L1(), Contractive()], ids=name)
def test_unit_rms_sees_no_scale(term):
    """h -> s h, undone by the decoder, costs the same; without the constraint it would be cheaper."""
    x, codec = rows(), make_codec(Identity(), squash="tanh")
    before, plain = term(run(term, codec, x, UnitRMS())).mean(), term(run(term, codec, x, Free())).mean()
    x_hat, scale = codec(x).x_hat, torch.tensor([0.01, 0.5, 30.0]).double()
    with torch.no_grad():
        last = codec.encoder.layers[-1]
        for weight in (last.own, codec.encoder.linear.own):
            weight *= scale[:, None]
        last.bias *= scale
        for weight in (codec.decoder.layers[0].own, codec.decoder.linear.own):
            weight /= scale
    torch.testing.assert_close(codec(x).x_hat, x_hat)
    torch.testing.assert_close(term(run(term, codec, x, UnitRMS())).mean(), before, rtol=1e-9, atol=0)
    assert not torch.isclose(term(run(term, codec, x, Free())).mean(), plain, rtol=0.1)


# --- definitions


def test_definitions_of_losses():
    codec, x = make_codec(Identity()), rows()
    x[0, 1] = x[4, 4] = float("nan")
    with torch.no_grad():
        p = codec(x)
    seen, made = ~np.isnan(x.numpy()), p.x_hat.detach().numpy()
    residual = (np.nan_to_num(x.numpy()) - made)[seen]
    terms = (MSE() + Huber(0.5) + BCE())(p)
    assert float(terms["MSE"]) == pytest.approx((residual**2).mean(), rel=1e-12)
    size = np.abs(residual)
    huber = np.where(size <= 0.5, size**2 / 2, 0.5 * (size - 0.25))
    assert float(terms["Huber"]) == pytest.approx(huber.mean(), rel=1e-12)
    s, t = 1 / (1 + np.exp(-made[seen])), x.numpy()[seen]
    assert float(terms["BCE"]) == pytest.approx(-(t * np.log(s) + (1 - t) * np.log(1 - s)).mean(), rel=1e-12)


def test_l1_is_the_mean_over_rows_of_the_sum_over_units():
    with torch.no_grad():
        p = make_codec(Tanh())(rows())
    assert float(L1()(p).mean()) == pytest.approx(np.abs(p.h.detach().numpy()).sum() / N, rel=1e-12)
    assert L1()(p).shape == (N,)


@pytest.mark.parametrize("linear_path", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_l2_counts_every_matrix_once_and_no_bias(tied, linear_path):
    codec = make_codec(Identity(), tied=tied, linear_path=linear_path)
    weights = [w for w in codec.parameters() if w.ndim == 2]
    assert len(weights) == (1 if tied else 2) * (3 if linear_path else 2)
    expected = sum(float((w.detach() ** 2).sum()) for w in weights) / 2
    assert float(L2()(codec(rows())).detach()) == pytest.approx(expected, rel=1e-12)


def test_kl_acts_on_the_batch_mean_and_refuses_other_codes():
    p = make_codec(Sigmoid())(rows())
    q, rho = p.h.detach().numpy().mean(0), 0.2
    expected = (rho * np.log(rho / q) + (1 - rho) * np.log((1 - rho) / (1 - q))).sum()
    assert float(KL(rho)(p).detach()) == pytest.approx(expected, rel=1e-12)
    for activation in ACTIVATIONS:
        low, high = activation.range
        if low < 0 or high > 1:
            with pytest.raises(ValueError, match=r"code in \(0, 1\).*Sigmoid"):
                KL().check(make_codec(activation))
    with pytest.raises(ValueError, match=r"code in \(0, 1\)"):
        Autoencoder(2, objective=MSE() + KL()).fit(rows().numpy())


@pytest.mark.parametrize("linear_path", [True, False])
@pytest.mark.parametrize("hidden", [(), (6,), (6, 4)])
@pytest.mark.parametrize("squash", ["relu", "tanh", "sigmoid"])
def test_contractive_is_the_true_jacobian_norm(squash, hidden, linear_path):
    for seed, activation in enumerate([Identity(), ReLU(), Sigmoid(), Tanh(), Softplus(), TopK(2)]):
        codec = make_codec(activation, hidden=hidden, squash=squash, linear_path=linear_path, seed=seed)
        x = rows(seed) * 4 - 2
        true = torch.stack([jacobian(codec.encode, row[None])[0, :, 0].square().sum() for row in x])
        value = Contractive()(codec(x))
        torch.testing.assert_close(value, true, rtol=1e-9, atol=1e-12)
        with torch.no_grad():  # in evaluation too
            silent = Contractive()(codec(x))
        torch.testing.assert_close(silent, true, rtol=1e-9, atol=1e-12)
        assert not silent.requires_grad
        # at the uncorrupted rows
        torch.testing.assert_close(Contractive()(codec(x, Corrupted(x + 1, x > 0))), true, rtol=1e-9, atol=1e-12)


# --- sums


def test_a_second_term_of_a_class_has_its_own_name():
    total = MSE() + 0.1 * L1() + 0.2 * L1() + L1()
    assert total.names == ["MSE", "L1", "L1_2", "L1_3"]
    terms = total(make_codec(ReLU())(rows()))
    assert list(terms) == total.names
    torch.testing.assert_close(terms["L1_2"], 2 * terms["L1"])


def test_sums_are_linear():
    p = make_codec(Sigmoid())(rows())
    one, other = MSE() + 0.5 * L1(), 0.1 * KL() + 3 * L2()
    both = 2 * (one + other)
    expected = [2 * value for part in (one, other) for value in part(p).values()]
    torch.testing.assert_close(torch.stack(list(both(p).values())), torch.stack(expected))
    assert both == one * 2 + other * 2
    assert sum([MSE(), L1()]) == MSE() + L1()


@pytest.mark.parametrize(
    "coefficient",
    [lambda step: 0.1, "0.1", None, (1, 2), True, MSE(), MSE() + L1(), 1j, torch.tensor(1.0)],
    ids=lambda value: type(value).__name__,
)
def test_a_coefficient_is_a_number_or_a_schedule(coefficient):
    with pytest.raises(TypeError, match=r"must be a number or a schedule"):
        L1() * coefficient
    with pytest.raises(TypeError, match=r"takes a number"):
        (MSE() + 2 * L1()) * coefficient


@pytest.mark.parametrize("coefficient", [math.nan, math.inf, -math.inf, 10**400], ids=["nan", "inf", "-inf", "huge"])
def test_a_coefficient_is_finite(coefficient):
    for sum_of_one_or_more in (L1(), MSE() + 0.5 * L1()):
        with pytest.raises(ValueError, match="finite"):
            sum_of_one_or_more * coefficient


def test_an_objective_needs_one_support():
    with pytest.raises(ValueError, match="no loss"):
        _ = (L1() + L2()).loss
    with pytest.raises(ValueError, match="supports differ"):
        _ = (MSE() + BCE()).loss
    assert (L1() + Huber() + MSE()).loss == Huber()


# --- parts of one's own


class Spread(Term):
    """Ω = Σ_k (rms(h_k) - target)²"""

    target: float = 1.0

    def __call__(self, p):
        return (p.h.square().mean(0).sqrt() - self.target).square().sum()


class Cube(Part):
    """h = a³ / s"""

    letter = "σ"
    range = (-math.inf, math.inf)
    sparse = False
    s: float

    def __call__(self, a):
        return a**3 / self.s


def test_own_parts_work_everywhere(tmp_path):
    total = MSE() + 0.5 * Spread(target=0.25)
    assert repr(total) == "MSE() + 0.5 * Spread(target=0.25)"
    assert parse(repr(total), parts=[Spread]) == total
    assert parse("Cube(2)", parts=[Cube]) == Cube(2)
    with pytest.raises(ValueError, match="Spread"):
        parse(repr(total))
    x = rows(n=60).numpy()
    model = Autoencoder(2, hidden_layer_sizes=(4,), objective=total, code_activation=Cube(2.0), max_iter=2,
                        batch_size=16, learning_rate_init=0.01, random_state=0).fit(x)  # fmt: skip
    assert len(model.history_["Spread"]) == model.n_iter_
    model.save(tmp_path / "model")
    again = retell.load(tmp_path / "model", parts=[Spread, Cube])
    assert again.objective_ == total
    assert (again.transform(x) == model.transform(x)).all()
    with pytest.raises(retell.ModelFileError):
        retell.load(tmp_path / "model", parts=[Cube])
