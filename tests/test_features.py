"""`features`: every figure as its definition written out, whatever the blocks and threads."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from retell import Autoencoder, features
from retell.inference import Inference

X, Y = load_digits(return_X_y=True)
CODES = {
    "TopK": {"code_activation": "TopK(4)"},
    "ReLU": {"code_activation": "ReLU()", "objective": "MSE() + 0.01 * L1()"},
    "signed": {"objective": "MSE() + 0.05 * L1()", "inference": "map"},
    "linear path": {"n_components": 10, "hidden_layer_sizes": (16,), "code_activation": "Sigmoid()"},
}


def small(**given):
    return Autoencoder(**{"n_components": 30, "max_iter": 2, "random_state": 0, **given}).fit(X[:500])


@pytest.fixture(scope="module", params=CODES)
def case(request):
    model = small(**CODES[request.param])
    x = X[: 300 if model.inference == "map" else None]
    with torch.no_grad():  # a dead unit, and two that are one
        dictionary = model.codec_.dictionary()
        dictionary[:, 3] = 2 * dictionary[:, 4]
    model._become(model._model)
    return model, x, model.transform(x)


def test_figures_are_as_defined(case):
    model, x, h = case
    found = model.features(x, top=3, neighbours=2)
    assert found.n_rows == len(x)
    assert len(found) == h.shape[1]
    active = h != 0
    np.testing.assert_allclose(found.rate, active.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.mean, np.abs(h).sum(0) / np.maximum(active.sum(0), 1), rtol=1e-6)
    np.testing.assert_allclose(found.max, np.abs(h).max(0), rtol=1e-6)
    V = model.codec_.dictionary().detach().double().numpy()
    told = np.abs(h) * np.linalg.norm(V, axis=0)
    shares = told / np.maximum(told.sum(1, keepdims=True), 1e-300)
    for k in range(h.shape[1]):
        order = np.argsort(-np.abs(h[:, k]), kind="stable")[:3]
        order = order[h[order, k] != 0]
        n = len(order)
        assert np.array_equal(found.rows[k], [*order, *[-1] * (3 - n)])
        np.testing.assert_allclose(found.values[k], [*h[order, k], *[0] * (3 - n)], rtol=1e-6)
        np.testing.assert_allclose(found.shares[k], [*shares[order, k], *[0] * (3 - n)], rtol=1e-5)
    alike = np.abs(found.cosines[:, 0]).clip(0, 1)
    np.testing.assert_allclose(found.clarity, (1 - found.rate) * found.shares.sum(1) / 3 * (1 - alike), rtol=1e-6)


def test_neighbours_are_the_nearest(case, monkeypatch):
    model, x, _ = case
    unit = model.codec_.dictionary().detach().double().numpy()
    unit = unit / np.linalg.norm(unit, axis=0)
    cos = unit.T @ unit
    near = np.abs(cos) if model.codec_.code_activation.range[0] < 0 else cos.copy()
    np.fill_diagonal(near, -np.inf)
    for cells in (2**22, 50):
        monkeypatch.setattr(features, "CELLS", cells)
        found = model.features(x, neighbours=3)
        np.testing.assert_allclose(np.take_along_axis(near, found.neighbours, 1), -np.sort(-near, 1)[:, :3], atol=1e-6)
        np.testing.assert_allclose(found.cosines, np.take_along_axis(cos, found.neighbours, 1), atol=1e-6)
    assert found.neighbours[3, 0] == 4
    assert found.clarity[3] == pytest.approx(0, abs=1e-6)


def test_blocks_and_threads_change_no_bit(monkeypatch, two_threads):
    model = small(code_activation="TopK(4)")
    x = np.tile(X, (20, 1))[:30_000]
    monkeypatch.setattr(Inference, "size", lambda *_: 64)
    first = model.features(x)
    assert np.array_equal(first.rows[:, 0], model.features(X).rows[:, 0])  # of equal rows the first
    torch.set_num_threads(1)
    for entries in (features.ENTRIES, 5000):
        monkeypatch.setattr(features, "ENTRIES", entries)
        again = model.features(x)
        for name in ("rate", "rows", "values", "shares", "neighbours", "cosines"):
            assert getattr(again, name).tobytes() == getattr(first, name).tobytes(), name
        if entries == features.ENTRIES:
            np.testing.assert_allclose(again.mean, first.mean, rtol=1e-12)


def test_the_same_blocks_give_the_same_bits(monkeypatch, two_threads):
    model = small(code_activation="TopK(4)")
    monkeypatch.setattr(Inference, "size", lambda *_: 64)
    assert len({model.features(X).mean.tobytes() for _ in range(5)}) == 1


def test_planted_features_are_the_clearest():
    """Ten directions of which a row has one or two, among 20 units that are noise."""
    draw = np.random.default_rng(0)
    truth = np.linalg.qr(draw.normal(size=(40, 10)))[0].T
    fired = draw.random((2000, 10)) < 0.12
    x = 10 * fired @ truth + 0.05 * draw.normal(size=(2000, 40))
    model = Autoencoder(30, code_activation="ReLU()", hidden_layer_sizes=(), scale=None, max_iter=1).fit(x)
    random = draw.normal(size=(20, 40)) / 40
    with torch.no_grad():
        both = torch.from_numpy(np.concatenate([truth, random])).float()
        model.codec_.encoder.last.weight.copy_(both)
        model.codec_.encoder.last.bias.copy_(both @ torch.from_numpy(model.scaling_.shift).float())
        model.codec_.encoder.last.bias[:10] -= 3
        model.codec_.dictionary().copy_(both.T)
    model._become(model._model)
    found = model.features(x)
    assert set(found.clearest[:10]) == set(range(10))
    assert found.clarity[:10].min() > 4 * found.clarity[10:].max()
    for k in range(10):
        assert fired[found.rows[k], k].all()


def test_dead_units_and_few_rows():
    model = small(code_activation="TopK(4)")
    with torch.no_grad():
        model.codec_.encoder.last.bias[5] = -1e4
    model._become(model._model)
    found = model.features(X[:6], top=10, neighbours=100)
    assert found.rows.shape == found.values.shape == (30, 6)
    assert found.neighbours.shape == (30, 29)
    assert (found.rows[5] == -1).all()
    assert found.rate[5] == found.mean[5] == found.max[5] == found.clarity[5] == 0
    assert found.log_rate[5] == -np.inf
    assert found.log_rate[found.rate > 0].min() >= np.log10(1 / 6) - 1e-12
    assert found.called(5) == []


def test_it_prints_as_a_table_of_80_columns():
    model = small(code_activation="TopK(4)")
    labels = [f"digit {y}" for y in Y]
    text = str(model.features(X, labels))
    lines = text.splitlines()
    assert len(lines) == 11
    assert max(map(len, lines)) <= 80
    assert "digit" in text
    found = model.features(X, labels, neighbours=0)
    assert int(found.table(3).splitlines()[1].split()[0]) == found.clearest[0]
    assert found.called(found.clearest[0])[0] == labels[found.rows[found.clearest[0], 0]]
    assert found.cosines.shape == (30, 0)


def test_one_unit_has_no_neighbours():
    found = small(n_components=1, code_activation="ReLU()").features(X)
    assert found.neighbours.shape == (1, 0)
    assert "-" in str(found)


def test_what_can_not_be_told_is_refused():
    model = small(code_activation="TopK(4)")
    with pytest.raises(ValueError, match=r"labels has shape \(3,\): one for each of the 10 rows"):
        model.features(X[:10], labels=["a", "b", "c"])
    with pytest.raises(ValueError, match="top must be at least 1"):
        model.features(X[:10], top=0)
    deep = small(n_components=4, hidden_layer_sizes=(8,), linear_path=False, code_activation="ReLU()")
    with pytest.raises(ValueError, match="no direction of its own"):
        deep.features(X)
    with pytest.raises(ValueError, match="row 7, column 2"):
        model.features(np.where((np.arange(10)[:, None] == 7) & (np.arange(64) == 2), np.inf, X[:10]))
