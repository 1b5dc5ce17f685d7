"""Every combination of the letters is either trained or refused with a sentence, and none has code of its own.

The members come from the vocabulary, so that a new class is crossed with all others without a new line here:
each class with its defaults, with every word that it knows, a `Likelihood` and a `Prior` of every density.
Crossed in full are activations x losses x penalties (or none) x tied x hidden layers. Each of these 18,720
cells takes one of the 24 pairs corruption x constraint, drawn so that every activation and loss meets every
pair, and any three letters all their values. `RETELL_PAIRS=24` takes all pairs: 450,000 combinations, some 25
minutes on one core.
The summary of the run (conftest.py) prints what was legal, what was refused, and why.
"""

import dataclasses
import functools
import itertools
import math
import os
import random
import re
from collections import Counter
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

import retell
from retell import MSE, Autoencoder, Free, Identity, Mask
from retell.descend import Descent, Recipe
from retell.grammar import vocabulary
from retell.plan import Parts, build_codec
from retell.seeds import generator
from retell.settings import Settings
from retell.start import fill_start

N, D, K = 12, 4, 3
PAIRS = int(os.environ.get("RETELL_PAIRS", "1"))
HIDDEN = {"linear": ((), True), "deep": ((5,), True), "plain": ((5,), False)}  # layers, a linear path beside them
NUMBERS = {"int": 2, "float": 0.25, "bool": True, "tuple[int, ...]": (1,)}
WORDS = ("weights", "reconstruction", "exact", "projection")
FITS = 50
CLEARLY = 5.0  # standard errors of the rows' falls; or the fall is a tenth of the start
ADVICE = r"\b(use|add|set)\b"


def choices(field, inner):
    """What the values of a class hold in one of its fields."""
    kinds, optional = field.type.split(" | "), field.default is not dataclasses.MISSING
    if field.type in inner:
        return inner[field.type]
    if not optional or field.default is None:
        given = [NUMBERS[kind] for kind in kinds if kind in NUMBERS]
        return [None, *given] if optional else given
    return [field.default, *(WORDS if field.type == "str" else ())]


def values(part, inner):
    """The values of a class, and the sentences with which its constructor refuses others."""
    made, refused = [], []
    for arguments in itertools.product(*(choices(field, inner) for field in dataclasses.fields(part))):
        try:
            made.append(part(*arguments))
        except ValueError as error:
            refused.append(str(error))
    return made, refused


CLASSES = list(vocabulary().values())
DENSITIES = [
    value
    for part in CLASSES
    if part.letter == "p" or (part.letter in "LΩ" and hasattr(part, "at"))  # some terms serve as densities
    for value in values(part, {})[0]
]
INNER = {"Part": DENSITIES, "Term": [MSE()]}


def of(letter, inner=INNER):
    return [value for part in CLASSES if part.letter == letter for value in values(part, inner)[0]]


ACTIVATIONS, LOSSES, PENALTIES, CORRUPTIONS, CONSTRAINTS = of("σ"), of("L"), [None, *of("Ω")], of("C"), of("Π")
NESTED = [loss for loss in of("L", {**INNER, "Term": LOSSES}) if loss not in LOSSES]
SUMMED = [*LOSSES, *NESTED]


class Combination(NamedTuple):
    """One value of each letter."""

    activation: Any
    loss: Any
    penalty: Any
    tied: bool
    hidden: str
    corruption: Any
    constraint: Any

    @property
    def objective(self):
        return 1.0 * self.loss if self.penalty is None else self.loss + 0.01 * self.penalty

    @property
    def parts(self):
        return Parts(self.objective, self.corruption, self.activation, self.constraint)

    def build(self):
        layers, path = HIDDEN[self.hidden]
        settings = Settings(tied=self.tied, linear_path=path)
        return build_codec(settings, self.parts, D, K, (layers, layers[::-1]), torch.float32)

    def refusal(self):
        """Why the parts can't work with each other, or None."""
        try:
            self.build()
        except ValueError as error:
            return str(error)
        return None


def combinations(activation, loss):
    """All combinations of an activation and a loss, the corruption and the constraint drawn from their pairs."""
    draw = random.Random(f"{activation!r} {loss!r}")
    pairs = list(itertools.product(CORRUPTIONS, CONSTRAINTS))
    hand = []
    for cell in itertools.product(PENALTIES, (False, True), HIDDEN):
        taken = []
        while len(taken) < min(PAIRS, len(pairs)):
            hand = hand or draw.sample(pairs, len(pairs))  # all pairs are dealt before any is dealt again
            pair = hand.pop()
            if pair not in taken:
                taken.append(pair)
        yield from (Combination(activation, loss, *cell, *pair) for pair in taken)


ROWS = torch.rand(N, D, generator=torch.Generator().manual_seed(0)) * 0.9 + 0.05  # in every loss's support
AXES = torch.linalg.svd(ROWS.double() - ROWS.double().mean(0))[2][:K].T


def train(combination):
    """One step from the start that the rows suggest; the names of the objective's terms are those of its parts."""
    codec, objective = combination.build(), combination.objective
    codec.centre = ROWS.mean(0)
    fill_start(codec, ROWS, AXES, objective.loss, generator(0, 0))
    codec.idle[0] = math.inf  # a unit that was never active, for what revives such units
    recipe = Recipe(objective, combination.corruption, combination.constraint, N, 0.01, 1, 0.4, 10, 1e-4, 0.0)
    descent = Descent(codec.train(), recipe, 0)
    before = numbers(codec)
    values = descent.one_step(ROWS, generator(0, 1), 0.01)
    after = numbers(codec)
    given = [type(term).__name__ for term in (combination.loss, combination.penalty) if term is not None]
    assert [name.removesuffix("_2") for name in objective.names] == given, combination
    assert len(values) == len(given), combination
    assert all(value.ndim == 0 and torch.isfinite(value) for value in values), (combination, values)
    assert torch.isfinite(after).all(), combination
    assert not torch.equal(before, after), combination
    if codec.dictionary() is not None:
        once = codec.dictionary().detach().clone()
        combination.constraint.project(once)
        torch.testing.assert_close(codec.dictionary().detach(), once, msg=str(combination))


def numbers(codec):
    return torch.cat([parameter.detach().flatten() for parameter in codec.parameters()])


def check_sentence(sentence, combination):
    """It begins with what was given."""
    given = (combination.loss, combination.penalty, combination.corruption, combination.activation)
    begins = (*map(repr, given), f"constraint={combination.constraint!r}", f"tied={combination.tied!r}")
    assert sentence.startswith(begins), sentence
    assert len(sentence) > 30, sentence


def in_letters(sentence, combination):
    """The sentence with a letter for each of this combination's parts, so that like ones count as one."""
    for letter, part in (("L", combination.loss), ("Ω", combination.penalty), ("C", combination.corruption),
                         ("σ", combination.activation), ("Π", combination.constraint)):  # fmt: skip
        sentence = re.sub(rf"(?<!\w){re.escape(repr(part))}", letter, sentence)
    return re.sub(r"codes in \((-?\w+), (-?\w+)\)", "codes in (low, high)", sentence)


# --- each value


@pytest.mark.parametrize("part", CLASSES, ids=lambda part: part.__name__)
def test_every_class_has_values_and_refuses_others_with_a_sentence(part):
    made, refused = values(part, {**INNER, "Term": [*LOSSES, *NESTED]})
    assert made
    assert all(retell.parse(repr(value)) == value for value in made)
    for sentence in refused:
        assert part.__name__ in sentence or any(repr(density) in sentence for density in DENSITIES), sentence
        assert len(sentence) > 30, sentence


# --- every combination, one step


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=repr)
def test_a_combination_trains_or_is_refused_with_a_sentence(activation, loss, record_property):
    counts, reasons = Counter(), Counter()
    for combination in combinations(activation, loss):
        kind = "none" if combination.penalty is None else type(combination.penalty).__name__
        sentence = combination.refusal()
        if sentence is None:
            train(combination)
            counts[kind, "trained"] += 1
        else:
            check_sentence(sentence, combination)
            assert re.search(ADVICE, sentence), sentence
            counts[kind, "refused"] += 1
            reasons[in_letters(sentence, combination)] += 1
    assert counts.total() == len(PENALTIES) * 2 * len(HIDDEN) * min(PAIRS, len(CORRUPTIONS) * len(CONSTRAINTS))
    for (kind, verdict), count in counts.items():
        record_property("combinations", [kind, type(activation).__name__, verdict, count])
    for reason, count in reasons.items():
        record_property("refusals", [reason, count])


def test_any_three_letters_meet_in_all_their_values():
    """And so do activation, loss, corruption and constraint, all four."""
    letters = [ACTIVATIONS, LOSSES, PENALTIES, (False, True), list(HIDDEN), CORRUPTIONS, CONSTRAINTS]
    number = [{repr(value): i for i, value in enumerate(of_letter)} for of_letter in letters]
    met = np.array([[number[i][repr(value)] for i, value in enumerate(one)] for one in everything()])
    for some in [*itertools.combinations(range(len(letters)), 3), (0, 1, 5, 6)]:
        assert len(np.unique(met[:, some], axis=0)) == math.prod(len(letters[i]) for i in some), some


@functools.cache
def everything():
    return [one for pair in itertools.product(ACTIVATIONS, LOSSES) for one in combinations(*pair)]


@pytest.mark.parametrize("first", SUMMED, ids=repr)
def test_two_losses_train_or_are_refused_with_a_sentence(first):
    """A sum of two losses, each alone, over prefixes of the code or over hidden cells only; in either order."""
    trained = 0
    for second in SUMMED:
        both, turned = (Combination(Identity(), *two, False, "linear", Mask(0.25), Free())
                        for two in ((first, second), (second, first)))  # fmt: skip
        sentence = both.refusal()
        assert (turned.refusal() is None) == (sentence is None), both
        if sentence is None:
            train(both)
            trained += 1
        else:
            check_sentence(sentence, both)
    assert trained


# --- some combinations, whole fits


@functools.cache
def drawn(legal):
    """`FITS` combinations, drawn from the legal ones or from the others."""
    order = random.Random(0).sample(everything(), len(everything()))
    return list(itertools.islice((one for one in order if (one.refusal() is None) == legal), FITS))


@functools.cache
def planted():
    """Rows around three parts that add up, in (0, 1) and so in every loss's support."""
    draw = np.random.default_rng(0)
    rows = draw.random((200, K)) ** 2 @ draw.random((K, 8)) ** 2
    return np.clip(0.05 + 0.85 * rows / rows.max() + 0.02 * draw.standard_normal(rows.shape), 0.01, 0.99)


def fit(one, **given):
    layers, path = HIDDEN[one.hidden]
    settings = {"max_iter": 20, "batch_size": 25, "learning_rate_init": 0.02, **given}
    return Autoencoder(K, hidden_layer_sizes=layers, linear_path=path, tied=one.tied, code_activation=one.activation,
                       objective=one.objective, corruption=one.corruption, constraint=one.constraint, start="random",
                       solver="descend", early_stopping=False, random_state=0, **settings).fit(planted())  # fmt: skip


def objective_by_row(model, one):
    """As it is trained, the same noise each time."""
    draw = torch.Generator().manual_seed(1)
    x = torch.from_numpy(model.scaling_.to(planted())).float()
    with torch.no_grad():
        p = model.codec_.train()(x, one.corruption(x, draw), draw)
        rows = model.objective_.by_row(p._replace(unit=one.constraint.unit(p.h)))
    model.codec_.train(False)
    return rows.double().numpy()


@pytest.mark.filterwarnings("ignore:reconstructions are farther")  # Poisson's, of a start that learns nothing
@pytest.mark.parametrize("number", range(FITS))
def test_a_fit_lowers_its_objective_clearly_and_survives_its_file(number, tmp_path, record_property):
    """From a random start. Many likelihoods have a floor far from zero: the rows' falls say what is clear."""
    one = drawn(legal=True)[number]
    start, model = fit(one, max_iter=1, learning_rate_init=1e-30), fit(one)
    before, after = objective_by_row(start, one), objective_by_row(model, one)
    fall = before - after
    error = fall.std(ddof=1) / math.sqrt(len(fall))
    assert fall.mean() >= min(CLEARLY * error, 0.1 * abs(before.mean())) > 0, one
    assert model.loss_curve_[-1] < model.loss_curve_[0], one
    record_property("falls", [float(fall.mean() / size) for size in (error, abs(before.mean()))])
    assert list(model.history_) == one.objective.names, one
    model.save(tmp_path / "model")
    again = retell.load(tmp_path / "model")
    assert again.objective_ == one.objective, one
    for made, read in ((model.transform, again.transform), (model.reconstruct, again.reconstruct)):
        assert np.isfinite(made(planted())).all(), one
        assert made(planted()).tobytes() == read(planted()).tobytes(), one


@pytest.mark.parametrize("number", range(FITS))
def test_a_fit_is_refused_in_the_same_words(number):
    one = drawn(legal=False)[number]
    with pytest.raises(ValueError, match=f"^{re.escape(one.refusal())}$"):
        fit(one)
