"""`inspect`: figures as defined; every finding has a planted case, and healthy rows have none."""

import json

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_breast_cancer, load_digits, load_wine

from retell import inspect
from retell.__main__ import main
from retell.rows.files import write_rows

WINE, DIGITS = load_wine().data, load_digits().data


def normal(n=400, d=20, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d))


def names(X):
    return inspect(X).findings.names


@pytest.mark.parametrize("X", [WINE, load_breast_cancer().data, normal(), normal(5, 3), normal(30, 200)])
def test_ordinary_rows_are_healthy(X):
    found = inspect(X)
    assert found.findings.names == []
    assert str(found).endswith("\nhealthy: nothing found")
    assert len(found.massive) == len(found.duplicates) == len(found.constant) == len(found.unseen) == 0


def test_figures_are_as_defined():
    found = inspect(WINE)
    assert (found.n_rows, found.n_columns, found.holes) == (178, 13, 0)
    assert found.norm == pytest.approx(np.median(np.linalg.norm(WINE, axis=1)), rel=1e-12)
    assert found.mean_to_spread == pytest.approx(np.linalg.norm(WINE.mean(0)) / np.linalg.norm(WINE.std(0)), rel=1e-9)
    z = (WINE - WINE.mean(0)) / WINE.std(0)
    far = np.linalg.norm(z, axis=1)
    assert found.largest == pytest.approx(far.max() / np.median(far), rel=1e-9)
    shares = np.linalg.eigvalsh(np.cov(z.T))
    shares /= shares.sum()
    assert found.effective_rank == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-9)
    spread = WINE.std(0)
    assert f"they differ {spread.max() / spread.min():.3g} times" in found.scaling


@pytest.mark.parametrize("shape", [(300, 40), (30, 400)])
def test_effective_rank_is_that_of_equal_directions(shape):
    basis = np.linalg.qr(normal(max(shape), 7))[0]
    n, d = shape
    codes = np.linalg.qr(normal(n, 8) - normal(n, 8).mean(0))[0][:, :7]
    codes -= codes.mean(0)
    codes = np.linalg.qr(codes)[0]
    x = codes @ np.linalg.qr(basis[:d, :7])[0].T
    assert inspect(3 * x + 2).effective_rank == pytest.approx(7, abs=0.2)


def test_massive_rows_are_named_and_do_not_hide_the_rank():
    x = normal(1000, 50)
    whole = inspect(x).effective_rank
    x[[3, 500]] = 400
    found = inspect(x)
    assert found.findings.names == ["massive rows"]
    assert list(found.massive) == [3, 500]
    (finding,) = found.findings
    assert finding.figures["rows"] == 2
    assert finding.figures["share"] > 0.9
    assert found.effective_rank == pytest.approx(whole, rel=0.02)
    assert names(np.delete(x, found.massive, axis=0)) == []


def test_rows_far_from_the_origin_are_off_centre():
    assert names(normal() + 50) == ["off centre"]
    assert names(normal() + 5) == []


def test_columns_that_hold_nothing_new():
    x = normal()
    x[:, 3], x[:, 7] = 2.5, np.nan
    x[:, 11], x[:, 12], x[:, 13] = 5 - 3 * x[:, 0], x[:, 0], x[:, 1] + 0.2 * x[:, 2]
    found = inspect(x)
    assert found.findings.names == ["constant columns", "unseen columns", "duplicate columns"]
    assert (list(found.constant), list(found.unseen)) == ([3], [7])
    assert {tuple(pair) for pair in found.duplicates} <= {(11, 0), (12, 0), (12, 11)}
    assert sorted(found.duplicates[:, 0]) == [11, 12]
    assert found.holes == pytest.approx(1 / 20)


def test_constant_columns_far_from_zero_repeat_nothing():
    x = normal()
    x[:, 4], x[:, 5] = 1e9, 0.1
    assert names(x) == ["off centre", "constant columns"]


def test_borders_of_pictures_are_constant_columns():
    found = inspect(DIGITS)
    assert list(found.constant) == list(np.flatnonzero(DIGITS.std(0) == 0))
    assert found.findings.names == ["constant columns"]
    assert "3 of the 64 columns hold one value (column 0, column 32, column 39)" in " ".join(str(found).split())


def test_columns_are_called_by_their_names():
    frame = pd.DataFrame(WINE, columns=load_wine().feature_names).assign(alcohol=1.0)
    assert "'alcohol'" in str(inspect(frame))


def test_many_holes():
    x = np.where(np.random.default_rng(1).random((400, 20)) < 0.7, np.nan, normal())
    found = inspect(x)
    assert "many holes" in found.findings.names
    assert found.holes == pytest.approx(np.isnan(x).mean())
    assert np.isfinite([found.norm, found.largest, found.effective_rank]).all()


def test_scaling_is_what_auto_does():
    assert inspect(normal()).scaling.startswith("one factor for all columns")
    assert inspect(normal() * np.logspace(0, 3, 20)).scaling.startswith("each column by its own spread")
    assert inspect(np.ones((9, 3))).scaling == "nothing to scale: no column varies"


def test_mapped_rows_are_read_in_blocks(tmp_path):
    x = normal(50_000, 30).astype(np.float32)
    file = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", x.dtype, x.shape)
    file[:] = x
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert inspect(mapped).figures == inspect(x).figures


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_folder_of_shards_is_told_as_its_rows(tmp_path, capsys, dtype):
    rows = load_digits().data.astype(dtype)
    for i, some in enumerate(np.array_split(rows, 3)):
        np.save(tmp_path / f"{i}.npy", some)
    assert str(inspect(tmp_path)) == str(inspect(rows.astype(np.float32)))
    assert main(["inspect", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{inspect(tmp_path)}\n"


def test_extremes_overflow_nothing():
    with pytest.warns(UserWarning, match="standard deviation"):
        found = inspect(normal() * 1e200)
    assert np.isfinite([found.largest, found.mean_to_spread, found.effective_rank]).all()


def test_what_is_no_number_is_refused():
    x = normal()
    x[17, 4] = np.inf
    with pytest.raises(ValueError, match="row 17, column 4"):
        inspect(x)
    with pytest.raises(ValueError, match="text"):
        inspect(np.array([["a", "b"]]))
    with pytest.raises(ValueError, match="2 or more were expected, got 1"):
        inspect(x[:1])


def test_the_command_says_what_the_library_says(tmp_path, capsys):
    x = normal(100, 4)
    x[:, 2] = 1
    for suffix in ("npy", "csv"):
        file = tmp_path / f"x.{suffix}"
        write_rows(file, x, ["a", "b", "c", "d"])
        assert main(["inspect", str(file)]) == 0
        said = capsys.readouterr().out
        assert "constant columns: 1 of the 4 columns hold one value" in said
        assert max(map(len, said.splitlines())) <= 80
        assert main(["inspect", str(file), "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert told["n_rows"] == 100
        assert told["constant"] == [2]
        assert [finding["name"] for finding in told["findings"]] == ["constant columns"]
    assert main(["inspect", str(tmp_path / "none.npy")]) == 3
