"""Rows of massive norm: what `max_norm` leaves out of a fit, and that it says so."""

import numpy as np
import pytest

from retell import Autoencoder, load
from retell.__main__ import main
from retell.rows.massive import Limit
from retell.rows.shards import Shards

SETTINGS = {
    "exact": {"hidden_layer_sizes": ()},
    "dense": {"hidden_layer_sizes": (8,), "max_iter": 3},
    "sparse": {"hidden_layer_sizes": (), "code_activation": "TopK(2)", "max_iter": 3},
}
EVERY = 100  # rows from one first token to the next


def draw(n=1600, d=8, seed=0):
    """Rows, and the same with a massive one in every hundred."""
    rng = np.random.default_rng(seed)
    rows = (rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + 5 * rng.normal(size=d)).astype(np.float32)
    with_massive = rows.copy()
    with_massive[::EVERY, 3] = 300 + rng.normal(size=len(rows[::EVERY]))
    return np.delete(rows, np.arange(0, n, EVERY), 0), with_massive


def test_a_limit_is_a_multiple_of_the_median_distance_from_the_medians():
    rows = draw()[1].astype(float)
    limit = Limit.of(rows, 10.0)
    distances = np.linalg.norm(rows - np.median(rows, 0), axis=1)
    assert limit.median == pytest.approx(np.median(distances), rel=1e-12)
    np.testing.assert_allclose(limit.norms(rows), distances, rtol=1e-12)
    np.testing.assert_array_equal(limit.beyond(rows), np.flatnonzero(distances > 10 * np.median(distances)))
    np.testing.assert_array_equal(limit.beyond(rows), np.arange(0, 1600, EVERY))
    moved = rows + 1e3
    np.testing.assert_array_equal(Limit.of(moved, 10.0).beyond(moved), limit.beyond(rows))


def test_holes_count_as_seen_cells_do():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(2000, 50))
    holed = np.where(rng.random(rows.shape) < 0.3, np.nan, rows)
    holed[:, 7] = np.nan
    holed[5] = np.nan
    holed[9] = 100.0
    limit = Limit.of(holed, 3.0)
    assert limit.median == pytest.approx(np.sqrt(50), rel=0.05)
    assert limit.norms(holed)[5] == 0
    np.testing.assert_array_equal(limit.beyond(holed), [9])


def test_first_tokens_at_the_pace_of_a_sample_are_found(monkeypatch):
    """Evenly spaced rows of these are all massive."""
    monkeypatch.setattr("retell.rows.massive.MOST", 16)
    _, rows = draw()
    np.testing.assert_array_equal(Limit.of(rows, 10.0).beyond(rows), np.arange(0, 1600, EVERY))


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("file", [False, True])
def test_a_fit_is_that_of_the_other_rows(tmp_path, name, file):
    others, rows = draw()
    settings = {"n_components": 3, "random_state": 0, "max_norm": 10, **SETTINGS[name]}
    given = rows
    if file:
        (tmp_path / "x").mkdir()
        for i, part in enumerate(np.split(rows, 4)):
            np.save(tmp_path / "x" / f"{i}.npy", part)
        given = tmp_path / "x"
    ours, theirs, without = (
        Autoencoder(**settings | {"max_norm": most}).fit(X) for most, X in ((10, given), (None, others), (None, rows))
    )
    assert (ours.n_left_out_, theirs.n_left_out_) == (16, 0)
    assert ours.loss_curve_ == pytest.approx(theirs.loss_curve_, rel=1e-6)
    np.testing.assert_allclose(ours.mean_, theirs.mean_, rtol=1e-9)
    np.testing.assert_allclose(ours.transform(others), theirs.transform(others), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(ours.density_.noise, theirs.density_.noise, rtol=1e-4)
    assert ours.transform(given).shape == (1600, 3)
    assert np.isfinite(ours.reconstruct(given)).all()
    errors = [((model.reconstruct(others) - others) ** 2).mean() for model in (ours, without)]
    assert errors[0] < 0.9 * errors[1]


@pytest.mark.parametrize("name", SETTINGS)
def test_where_no_row_is_massive_nothing_changes(name):
    others, _ = draw()
    settings = {"n_components": 3, "random_state": 0, **SETTINGS[name]}
    ours, theirs = (Autoencoder(**settings, max_norm=most).fit(others) for most in (10.0, None))
    assert ours.loss_curve_ == theirs.loss_curve_
    np.testing.assert_array_equal(ours.transform(others), theirs.transform(others))
    assert ours.n_left_out_ == 0


def test_how_many_were_left_out_is_told(tmp_path, capsys):
    _, rows = draw()
    model = Autoencoder(3, max_norm=10, verbose=1, **SETTINGS["exact"]).fit(rows)
    assert "max_norm=10: 16 of 1,600 rows are left out" in capsys.readouterr().err
    model.save(tmp_path / "model")
    assert load(tmp_path / "model").n_left_out_ == 16
    np.save(tmp_path / "x.npy", rows)
    given = ["--hidden-layer-sizes", "()", "--max-norm", "10"]
    assert main(["fit", str(tmp_path / "x.npy"), "-o", str(tmp_path / "again"), *given]) == 0
    assert "left out   16 rows by max_norm = 10" in " ".join(capsys.readouterr().out.split("\n"))


def test_the_limit_of_the_first_rows_is_that_of_all_later_ones():
    others, rows = draw()
    model = Autoencoder(3, max_norm=10, random_state=0, **SETTINGS["dense"]).partial_fit(others[:400])
    for some in (rows[:400], rows[400:800]):
        model.partial_fit(some)
    assert model.n_left_out_ == 8
    with pytest.raises(ValueError, match="all of the 4 rows are beyond max_norm=10"):
        model.partial_fit(rows[::EVERY][:4])


def test_an_infinity_is_an_error_and_not_a_massive_row():
    _, rows = draw()
    rows[1234, 5] = np.inf
    with pytest.raises(ValueError, match=r"infinite value \(inf\) in row 1234, column 5"):
        Autoencoder(3, max_norm=10, **SETTINGS["exact"]).fit(rows)


def test_rows_that_are_mostly_the_same_have_no_such_limit():
    rows = np.zeros((100, 4))
    rows[:20] = np.random.default_rng(0).normal(size=(20, 4))
    with pytest.raises(ValueError, match="more than half of the rows are the same"):
        Autoencoder(2, max_norm=10).fit(rows)


def test_shards_without_rows_of_their_own_are_told():
    with pytest.raises(ValueError, match="2 rows or more were expected, got 0"):
        Autoencoder(2).fit(Shards.of(np.zeros((3, 4), np.float32)).without(np.arange(3)))
