"""What makes a row odd is the cell that was made odd, more often than residuals say."""

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_digits, load_wine

import retell.surprise
from retell import Autoencoder


@pytest.fixture(scope="module")
def wine():
    return load_wine(as_frame=True).data


@pytest.fixture(scope="module")
def model(wine):
    return Autoencoder(4, random_state=0).fit(wine)


@pytest.mark.parametrize("load", [load_breast_cancer, load_digits], ids=["cancer", "digits"])
@pytest.mark.parametrize(("corruption", "gain"), [("Nothing()", 0.1), ("Mask(0.2)", -0.05)])
def test_the_planted_cell_is_found_more_often_than_by_residuals(load, corruption, gain):
    """Cells of other rows, more than a standard deviation away: no value is odd in itself.

    A net that has learned to do without cells reconstructs them from the others, so its residuals say the same.
    """
    rows, draw = load().data, np.random.default_rng(0)
    rows = draw.permutation(rows[:, rows.std(0) > 0])
    known, odd = rows[:-150], rows[-150:].copy()
    place, cell = np.arange(len(odd)), draw.integers(0, rows.shape[1], len(odd))
    others = known[draw.integers(0, len(known), len(odd)), cell]
    clear = np.abs(others - odd[place, cell]) > known.std(0)[cell]
    odd[place, cell] = others
    odd, cell = odd[clear], cell[clear]
    model = Autoencoder(random_state=0, corruption=corruption, max_iter=20).fit(known)
    found = model.surprise(odd).nats.argmax(1) == cell
    off = model.scaling_.to(odd) - model.scaling_.to(model.reconstruct(odd))
    residuals = (np.abs(off) / np.sqrt(model.density_.noise)).argmax(1) == cell
    assert found.mean() > residuals.mean() + gain
    assert found.mean() > 0.5


def test_nats_are_what_the_row_gains(model, wine):
    odd = wine.iloc[:3].copy()
    odd.iloc[1, 6] = 0.5
    found = model.surprise(odd)
    assert found.log_density.tobytes() == model.score_samples(odd).tobytes()
    for row, column in [(0, 0), (1, 6), (2, 12)]:
        other = odd.copy()
        other.iloc[row, column] = np.nan
        filled = model.reconstruct(other, keep_seen=True)
        assert found.expected[row, column] == pytest.approx(filled[row, column])
        other.iloc[row, column] = found.expected[row, column]
        gain = model.score_samples(other)[row] - model.score_samples(odd)[row]
        assert found.nats[row, column] == pytest.approx(gain, abs=1e-4)


def test_unseen_cells_are_expected_and_no_surprise(model, wine):
    holed = wine.iloc[:5].copy()
    holed.iloc[2, 3] = np.nan
    found = model.surprise(holed)
    assert np.argwhere(np.isnan(found.nats)).tolist() == [[2, 3]]
    assert found.expected[2, 3] == pytest.approx(model.reconstruct(holed, keep_seen=True)[2, 3])
    assert "nan" not in found.table(5, 20)


def test_a_row_does_not_depend_on_the_others(model, wine, monkeypatch):
    whole = model.surprise(wine).nats
    assert model.surprise(wine.iloc[70:71]).nats.tobytes() == whole[70:71].tobytes()
    monkeypatch.setattr(retell.surprise, "CELLS", 13 * 50)  # sets of 50 cells end within a row
    assert model.surprise(wine).nats.tobytes() == whole.tobytes()


def test_the_table_tells_of_the_oddest(model, wine):
    odd = wine.copy()
    odd.loc[11, "hue"] = 4.0
    found = model.surprise(odd)
    header, first, *others = found.table(4, cells=1).splitlines()
    assert header.split() == ["row", "log", "density", "cells:", "given", "(expected,", "nats)"]
    assert first.split()[0] == "11"
    assert first.split()[2:4] == ["hue", "4"]
    assert len(others) == 3
    assert (len(found), str(found)) == (178, found.table(5, 3))
    assert found.columns[3] == "alcalinity_of_ash"


def test_files_and_arrays_without_names(tmp_path, wine):
    np.save(tmp_path / "x.npy", wine.to_numpy(np.float16)[:20])
    model = Autoencoder(3, random_state=0, max_iter=2).fit(wine.to_numpy())
    found = model.surprise(tmp_path / "x.npy")
    assert found.columns[:2] == ["x0", "x1"]
    np.testing.assert_array_equal(found.given, wine.to_numpy(np.float16)[:20])
