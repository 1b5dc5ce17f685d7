"""Metrics of codes and dictionaries, against their definitions written out and cases whose answer is known."""

from itertools import permutations

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from sklearn.metrics import precision_recall_fscore_support

from retell import Autoencoder, metrics
from retell.metrics import Detection, dead_share, fvu, l0, recovery, shrinkage, stability, uniqueness
from retell.recovery import twins

DRAW = np.random.default_rng(0)


def test_every_word_is_there():
    assert all(hasattr(metrics, word) for word in metrics.__all__)


# ------------------------------------------------------------------ codes


@pytest.mark.parametrize("kind", [np.asarray, sp.csr_array, sp.csc_matrix, sp.coo_array])
def test_activity(kind):
    h = np.array([[0.0, -2.0, 1.0, 0.0], [0.0, 0.0, 3.0, 0.0], [0.0, 1.0, 1.0, 0.0]])
    assert l0(kind(h)) == 5 / 3
    assert dead_share(kind(h)) == 0.5


def test_stored_zeros_are_not_active():
    h = sp.csr_array((np.array([0.0, 1.0]), np.array([0, 2]), np.array([0, 2])), shape=(1, 3))
    assert l0(h) == 1
    assert dead_share(h) == 2 / 3


@pytest.mark.parametrize("metric", [l0, dead_share])
@pytest.mark.parametrize(
    ("h", "got"),
    [
        (Autoencoder(), "got Autoencoder"),
        ("codes.npz", "got str"),
        ([1.0, 2.0], r"got shape \(2,\) of float64"),
        (np.zeros((0, 3)), r"got shape \(0, 3\) of float64"),
        ([["a"]], r"got shape \(1, 1\) of <U1"),
    ],
)
def test_what_is_no_code_is_told_of(metric, h, got):
    with pytest.raises(ValueError, match="h must be rows of numbers.* " + got):
        metric(h)


# ------------------------------------------------------------------ reconstructions


@pytest.mark.parametrize("metric", [fvu, metrics.explained_variance, shrinkage, metrics.row_errors])
def test_what_is_no_reconstruction_is_told_of(metric):
    x = DRAW.normal(size=(4, 3))
    with pytest.raises(ValueError, match=r"one shape, got \(4, 3\) and \(4, 2\)"):
        metric(x, x[:, :2])
    with pytest.raises(ValueError, match="x_hat must be rows of numbers"):
        metric(x, x[0])
    x_hat = x.copy()
    x_hat[2, 1] = np.nan
    with pytest.raises(ValueError, match="x_hat is NaN where x is not, in 1 cells, first in row 2, column 1"):
        metric(x, x_hat)
    assert np.isfinite(metric(x_hat, x_hat)).all()  # unseen in both
    with pytest.raises(ValueError, match="must be dense"):
        metric(sp.csr_array(x), x)
    tensors = torch.tensor(x, requires_grad=True), torch.tensor(x / 2)
    np.testing.assert_array_equal(metric(*tensors), metric(x, x / 2))


def test_fvu_is_of_all_cells_and_not_a_mean_of_rows():
    x = DRAW.normal(2, 1, (50, 3)) * [1, 5, 0.1]
    x_hat = x + DRAW.normal(size=x.shape)
    assert fvu(x, x_hat) == pytest.approx(((x - x_hat) ** 2).sum() / ((x - x.mean(0)) ** 2).sum(), rel=1e-12)


@pytest.mark.parametrize("c", [0.3, 1.0, 1.7])
def test_shrinkage_is_the_factor_that_was_lost(c):
    """Where what is left unexplained is at right angles, and whatever there is of it."""
    x_hat, rest = DRAW.normal(size=(40, 6)), DRAW.normal(size=(40, 6))
    rest -= x_hat * (x_hat * rest).sum(1, keepdims=True) / (x_hat**2).sum(1, keepdims=True)
    x = x_hat + 2 * rest
    assert shrinkage(x, c * x_hat) == pytest.approx(c, rel=1e-12)
    best = min(np.linspace(0.5 * c, 2 * c, 3001), key=lambda by: ((c * x_hat / by - x) ** 2).sum())
    assert best == pytest.approx(c, rel=2e-3)


def test_unseen_cells_do_not_shrink():
    x = DRAW.normal(size=(20, 4))
    holed = np.where(DRAW.random(x.shape) < 0.3, np.nan, x)
    assert shrinkage(holed, 0.5 * x) == pytest.approx(0.5, rel=1e-12)
    assert np.isnan(shrinkage(x, 0 * x))


# ------------------------------------------------------------------ dictionaries


def cosines(a, b):
    a, b = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (a, b))
    return np.abs(a @ b.T)


@pytest.mark.parametrize(("K", "F"), [(4, 6), (6, 4), (5, 5)])
def test_matching_is_the_best_of_all(K, F, monkeypatch):
    monkeypatch.setattr("retell.recovery.CELLS", 7)  # a row at a time
    a, b = DRAW.normal(size=(K, 3)), DRAW.normal(size=(F, 3))
    cos = cosines(a, b)
    wide = cos if K <= F else cos.T
    best = max(
        wide[np.arange(len(wide)), list(order)].mean() for order in permutations(range(wide.shape[1]), len(wide))
    )
    assert recovery(a, b).mcc == pytest.approx(best, rel=1e-12)
    matched = stability(a, b)
    assert matched.shape == (K,)
    assert matched.sum() / min(K, F) == pytest.approx(best, rel=1e-12)
    assert (matched == 0).sum() == max(0, K - F)
    for k in np.flatnonzero(matched):
        assert np.isclose(cos[k], matched[k], rtol=1e-12).any()
    np.testing.assert_allclose(stability(a, b, one_to_one=False), cos.max(1), rtol=1e-12)


def test_nearest_and_unique_are_as_defined(monkeypatch):
    monkeypatch.setattr("retell.recovery.CELLS", 100)
    a, b = DRAW.normal(size=(30, 4)), DRAW.normal(size=(17, 4))
    cos, found = cosines(a, b), recovery(a, b)
    assert np.array_equal(found.nearest, cos.argmax(1))
    np.testing.assert_allclose(found.cosines, cos.max(1), rtol=1e-12)
    assert found.uniqueness == uniqueness(a, b) == len(set(cos.argmax(1))) / 30
    assert found.precision is found.recall is found.f1 is None


def test_a_dictionary_recovers_itself_in_any_order_sign_and_length():
    truth = DRAW.normal(size=(40, 16))
    order = DRAW.permutation(40)
    learned = truth[order] * DRAW.choice([-2.0, 0.5], (40, 1))
    found = recovery(learned.astype(np.float32), truth)
    assert found.mcc == pytest.approx(1, abs=1e-6)
    assert found.uniqueness == 1
    assert np.array_equal(found.nearest, order)
    np.testing.assert_allclose(stability(learned, truth), 1, rtol=1e-12)


def test_dead_features_recover_nothing():
    learned = np.eye(4)
    learned[2:] = 0
    found = recovery(learned, np.eye(4))
    assert found.mcc == 0.5
    assert np.array_equal(found.cosines, [1, 1, 0, 0])


@pytest.mark.parametrize("kind", [np.asarray, sp.csr_array, sp.coo_array])
def test_detection_is_scikit_learns(kind, monkeypatch):
    h = DRAW.random((60, 5)) * (DRAW.random((60, 5)) < 0.3)
    fired = DRAW.random((60, 8)) < 0.4
    h[:, 4], nearest = 0, np.array([3, 0, 0, 7, 2])
    p, r, f, _ = precision_recall_fscore_support(fired[:, nearest], h != 0, average=None, zero_division=0)
    for cells in (2**22, 16):
        monkeypatch.setattr("retell.recovery.CELLS", cells)
        told = Detection(nearest)
        for i in (0, 17):
            told.add(kind(h[i : i + 17 + 26 * (i > 0)]), kind(fired[i : i + 17 + 26 * (i > 0)].astype(float)))
        for name, expected in (("precision", p), ("recall", r), ("f1", f)):
            np.testing.assert_allclose(getattr(told, name), expected, rtol=1e-12)


def test_codes_of_what_is_there_detect_it():
    truth = np.eye(6)
    fired = DRAW.random((50, 6)) * (DRAW.random((50, 6)) < 0.3)
    found = recovery(truth[::-1], truth, fired[:, ::-1], fired)
    assert (found.f1 == 1).all()


def test_what_can_not_be_compared_is_refused():
    with pytest.raises(ValueError, match="features of 3 and of 4 columns"):
        recovery(np.eye(3), np.eye(4))
    with pytest.raises(ValueError, match="give both h and fired"):
        recovery(np.eye(3), np.eye(3), h=np.eye(3))
    with pytest.raises(ValueError, match=r"h has shape \(2, 3\): \(5, 3\)"):
        recovery(np.eye(3), np.eye(3), np.zeros((2, 3)), np.zeros((5, 3)))
    for wrong, shape in ((np.eye(3)[0], r"\(3,\)"), (np.array([["a"]]), r"\(1, 1\) of <U1")):
        with pytest.raises(ValueError, match=f"array .features, columns. of numbers, got shape {shape}"):
            recovery(wrong, np.eye(3))
    with pytest.raises(ValueError, match="of 0 and of 3 features can't be compared"):
        recovery(np.eye(3)[:0], np.eye(3))
    with pytest.raises(ValueError, match="feature 1 of a dictionary is not finite"):
        stability([[1.0, 0.0], [np.nan, 1.0]], np.eye(2))
    with pytest.raises(ValueError, match="features 0 to 5 are to be detected, fired has 3"):
        Detection([0, 5]).add(np.ones((2, 2)), np.ones((2, 3)))


@pytest.mark.parametrize("cells", [2**22, 9])
def test_twins_point_one_way(cells, monkeypatch):
    monkeypatch.setattr("retell.recovery.CELLS", cells)
    V = DRAW.normal(size=(6, 20))
    V[4], V[2], V[5] = 3 * V[1], -V[0], 0
    assert list(twins(V, 0.99, signed=False)) == [-1, 4, -1, -1, 1, -1]
    assert list(twins(V, 0.99, signed=True)) == [2, 4, 0, -1, 1, -1]
    assert len(twins(V[:0], 0.99, signed=True)) == 0


def test_models_are_compared_by_their_dictionaries():
    X = DRAW.normal(size=(200, 6))
    a, b = (Autoencoder(3, hidden_layer_sizes=hidden, max_iter=2, random_state=0).fit(X) for hidden in ((), (8,)))
    assert np.array_equal(stability(a, b), stability(a.components_, b.components_))
    assert recovery(a, np.eye(6)).mcc == recovery(a.components_, np.eye(6)).mcc
    with pytest.raises(AttributeError, match="deep decoder without linear path"):
        stability(a, Autoencoder(3, linear_path=False, max_iter=1, random_state=0).fit(X))


def test_half_floats_are_summed_in_wider_ones():
    x = (100 * DRAW.normal(size=(5000, 8))).astype(np.float16)
    x_hat = (x + DRAW.normal(size=x.shape)).astype(np.float16)
    assert fvu(x, x_hat) == pytest.approx(fvu(x.astype(float), x_hat.astype(float)), rel=1e-3)
