"""Files of rows: every kind comes back as it went, and what is no file of numbers is refused with its reason."""

import datetime
import os
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from retell import Autoencoder
from retell.rows import files
from retell.rows.files import read_rows, write_rows

NAMES = ["height", "weight, kg", 'the "third"']
ROWS = np.array([[1.5, np.nan, -3.0], [0.1, 2e300, 7.0]])


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors", ".csv", ".parquet", ".CSV"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_each_kind_comes_back_as_it_went(tmp_path: Path, suffix: str, dtype: type) -> None:
    with np.errstate(over="ignore"):
        rows = np.where(ROWS > 1e38, 9.0, ROWS).astype(dtype)
    write_rows(tmp_path / f"x{suffix}", rows, NAMES)
    found = read_rows(tmp_path / f"x{suffix}")
    if suffix in (".csv", ".CSV", ".parquet"):
        assert found.column_names == NAMES
    back = np.asarray(found)
    np.testing.assert_array_equal(back.astype(dtype), rows)
    assert back.dtype == (np.float64 if suffix.lower() == ".csv" else dtype)
    assert [path.name for path in tmp_path.iterdir()] == [f"x{suffix}"]


def test_npy_is_mapped_and_read_only(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", ROWS)
    rows = read_rows(tmp_path / "x.npy")
    assert isinstance(rows, np.memmap)
    assert not rows.flags.writeable


def test_npz_with_several_arrays_needs_one_called_X(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", X=ROWS, y=ROWS[:, 0])
    np.testing.assert_array_equal(read_rows(tmp_path / "x.npz"), ROWS)
    np.savez(tmp_path / "x.npz", train=ROWS, test=ROWS)
    with pytest.raises(ValueError, match="holds the arrays train, test"):
        read_rows(tmp_path / "x.npz")


def test_empty_cells_and_nulls_are_unseen(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("a,b,c,d\n1,,NA,true\nnan,2,,false\n")
    np.testing.assert_array_equal(read_rows(tmp_path / "x.csv"), [[1, np.nan, np.nan, 1], [np.nan, 2, np.nan, 0]])
    parquet.write_table(pa.table({"a": pa.array([1, None], pa.int64()), "b": [None, True]}), tmp_path / "x.parquet")
    np.testing.assert_array_equal(read_rows(tmp_path / "x.parquet"), [[1, np.nan], [np.nan, 1]])


def test_whole_numbers_that_floats_do_not_hold_are_named(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("a,id\n1,9007199254740993\n2,\n")
    with pytest.warns(UserWarning, match=r"x\.csv: column 'id' holds whole numbers .* rounded"):
        read_rows(tmp_path / "x.csv")
    (tmp_path / "x.csv").write_text("a,id\n1,9007199254740992\n2,\n")
    read_rows(tmp_path / "x.csv")


def test_csv_without_header_is_an_array_and_pandas_numbers_are_a_header(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("1,2\n3,4\n")
    np.testing.assert_array_equal(read_rows(tmp_path / "x.csv"), [[1, 2], [3, 4]])
    (tmp_path / "x.csv").write_text("1.5,,3\n2,3,\n")
    np.testing.assert_array_equal(read_rows(tmp_path / "x.csv"), [[1.5, np.nan, 3], [2, 3, np.nan]])
    (tmp_path / "x.csv").write_text("0,1\n3,4\n")
    assert read_rows(tmp_path / "x.csv").column_names == ["0", "1"]


def test_the_index_of_a_frame_in_parquet_is_no_column(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": [1.0, 2.0], "b": [3.0, 4.0]}, index=[7, 3])
    for name, it in {"x": frame, "named": frame.rename_axis("i"), "range": frame.reset_index(drop=True)}.items():
        it.to_parquet(tmp_path / f"{name}.parquet")
        table = read_rows(tmp_path / f"{name}.parquet")
        assert table.column_names == ["a", "b"]
        np.testing.assert_array_equal(np.asarray(table), frame)


def write(path: Path, first: Iterable[Any], rows: np.ndarray) -> None:
    path.write_text("".join(",".join(map(str, row)) + "\n" for row in [first, *rows.tolist()]))


@pytest.mark.parametrize(
    ("text", "names", "rows"),
    [
        ("a;b\n1;2\n3;4\n", ["a", "b"], [[1, 2], [3, 4]]),
        ("a;b\n1;2,5\n-3,25;\n", ["a", "b"], [[1, 2.5], [-3.25, np.nan]]),
        ("1,5;2\n3;4\n", None, [[1.5, 2], [3, 4]]),
        ("a\tb\n1\t2.5\n", ["a", "b"], [[1, 2.5]]),
        ("a, b ,c\n1, 2,3\n", ["a", "b", "c"], [[1, 2, 3]]),
        ("height (cm; left),b\n1,2\n", ["height (cm; left)", "b"], [[1, 2]]),
    ],
)
def test_csv_separators(tmp_path: Path, text: str, names: Any, rows: Any) -> None:
    (tmp_path / "x.csv").write_text(text)
    table = read_rows(tmp_path / "x.csv")
    assert getattr(table, "column_names", None) == names
    np.testing.assert_array_equal(np.asarray(table), rows)


@pytest.mark.parametrize("first", [range(1990, 2020), np.arange(2500, 400, -4.25), [2020, 2021]], ids=str)
def test_csv_years_and_wavelengths_are_a_header(tmp_path: Path, first: Any) -> None:
    rows = np.random.default_rng(0).random((100, len(first)))
    write(tmp_path / "x.csv", first, rows)
    with pytest.warns(
        UserWarning, match=rf"x\.csv: its first row, {first[0]}, {first[1]}.* is taken for the columns' n"
    ):
        table = read_rows(tmp_path / "x.csv")
    assert table.column_names == [str(it) for it in first]
    np.testing.assert_array_equal(np.asarray(table), rows)


def test_csv_first_rows_that_may_be_rows_are_rows(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name, rows in {
        "quantiles": np.sort(rng.normal(size=(50, 6)), axis=1) - np.arange(50)[:, None],
        "all grow": np.arange(40.0)[:, None] * rng.random(5) + [0, 1, 2, 3, 4],
        "within": np.r_[[np.arange(6.0)], 10 * rng.normal(size=(50, 6))],
        "few": np.array([[2001.0, 2002.0], [3.0, 1.0]]),
        "one": np.array([[2001.0, 2002.0, 2003.0]]),
        "one column": np.array([[9.0], [3.0], [1.0]]),
    }.items():
        write(tmp_path / "x.csv", rows[0], rows[1:])
        np.testing.assert_array_equal(read_rows(tmp_path / "x.csv"), rows, err_msg=name)


def test_an_estimator_learns_the_names(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(30, 3))
    write_rows(tmp_path / "x.parquet", rows, NAMES)
    table = read_rows(tmp_path / "x.parquet")
    model = Autoencoder(1, max_iter=1, random_state=0).fit(table)
    assert list(model.feature_names_in_) == NAMES
    with pytest.raises(ValueError, match="feature names"):
        model.transform(table.rename_columns(["a", "b", "c"]))


TEXTS = {
    "empty.csv": ("", "is empty"),
    "header.csv": ("a,b\n", "has no rows"),
    "text.csv": ("a,city\n1,2\n2,Bern\n", "column 'city' holds text, 'Bern' in row 1"),
    "date.csv": ("a,when\n1,2020-01-31\n", "column 'when' holds date32.*'2020-01-31' in row 0"),
    "index.csv": (",a\n0,1\n", "column 0 has no name"),
    "pandas.csv": (",0,1\n0,3.5,4.5\n", "column 0 has no name"),
    "twice.csv": ("a,a\n0,1\n", "two columns are called 'a'"),
    "blanks.csv": ("a,city\n1,NA\n2,\n3,Bern\n", "column 'city' holds text, 'Bern' in row 2"),
    "thousands.csv": ("a\tb\n1\t1,234\n", "column 'b' holds text, '1,234' in row 0"),
    "points.csv": ("a;b\n1;1,5\n2;1.5\n", "column 'b' holds text, '1.5' in row 1"),
    "ragged.csv": ("a,b\n1,2\n3\n", "can't be read as .csv"),
    "marks.csv": ("a,b,c\n1,?,x\n2,3,y\n", r"column 'b' holds text, '\?' in row 0 \(nor are 'c' numbers\).*leave such"),
    "many.csv": ("a,b,c,d,e\nx,x,x,x,x\n", r"'a' .*\(nor are 'b', 'c', 'd', \.\.\. numbers\).*: encode it"),
    "binary.csv": ("a\n\x00\x01", "column 'a' holds text"),
    "text.npy": ("a,b\n1,2\n", "can't be read as .npy"),
    "text.npz": ("a,b\n1,2\n", "no .npz of numbers"),
    "text.parquet": ("a,b\n1,2\n", "can't be read as .parquet"),
    "text.xlsx": ("a", "ends in '.xlsx': one of .npy, .npz, .safetensors, .csv, .parquet was expected"),
    "text": ("a", "ends in 'nothing'"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_what_is_no_file_of_numbers_is_refused(tmp_path: Path, name: str) -> None:
    text, message = TEXTS[name]
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_rows(tmp_path / name)


def test_other_columns_of_parquet_are_named(tmp_path: Path) -> None:
    for value, what in [([1, 2], "list"), (datetime.datetime(2020, 1, 1), "timestamp"), ({"k": 1}, "struct")]:
        parquet.write_table(pa.table({"a": [1.0], "b": [value]}), tmp_path / "x.parquet")
        with pytest.raises(ValueError, match=f"column 'b' holds {what}"):
            read_rows(tmp_path / "x.parquet")


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_rows(tmp_path / "x.npy")
    (tmp_path / "x.npy").mkdir()
    with pytest.raises(ValueError, match="holds no files"):
        read_rows(tmp_path / "x.npy")
    os.mkfifo(tmp_path / "y.npy")
    with pytest.raises(ValueError, match="is not a file"):
        read_rows(tmp_path / "y.npy")


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    objects = np.array([[{}]], dtype=object)
    np.save(tmp_path / "x.npy", objects, allow_pickle=True)
    np.savez(tmp_path / "x.npz", X=objects)
    for name in ("x.npy", "x.npz"):
        with pytest.raises(ValueError, match="objects"):
            read_rows(tmp_path / name)


@pytest.mark.parametrize("cut", [3, 100, 200])
def test_truncated_files_are_refused(tmp_path: Path, cut: int) -> None:
    rows = np.random.default_rng(0).normal(size=(40, 3))
    for suffix in (".npy", ".npz", ".safetensors", ".parquet"):
        path = tmp_path / f"x{suffix}"
        write_rows(path, rows, NAMES)
        path.write_bytes(path.read_bytes()[:cut])
        with pytest.raises(ValueError, match=r"can't be read|no \.npz|is damaged"):
            read_rows(path)


def test_a_zip_without_arrays_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("readme.txt", "no array")
    with pytest.raises(ValueError, match="without arrays"):
        read_rows(tmp_path / "x.npz")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("old")
    with pytest.raises(ValueError, match="names"):
        write_rows(path, ROWS, ["too", "few"])
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.csv").write_text("a\n1\n")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.csv", None)
    with pytest.raises(ImportError, match=r"pip install 'retell\[files\]'"):
        read_rows(tmp_path / "x.csv")
    assert list(files.READERS) == list(files.WRITERS)
