"""What people feed it: rows that must work, rows that must warn, and rows whose error names the cause."""

import datetime
import re
import warnings

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch

import retell
from retell import L1, MSE, Autoencoder, Mask, ModelFileError

N, D = 40, 5
RNG = np.random.RandomState(0)
ROWS = RNG.randn(N, 3) @ RNG.randn(3, D) + 0.1 * RNG.randn(N, D)
WHOLE = np.round(ROWS * 9)

SETTINGS = {
    "exact": {"hidden_layer_sizes": ()},
    "hidden": {"hidden_layer_sizes": (8,)},
    "sparse": {"code_activation": "TopK(1)", "objective": "MSE() + 0.01 * L1()"},
}


def make(setting="hidden", **given):
    return Autoencoder(**{"n_components": 2, "max_iter": 2, "random_state": 0, **SETTINGS[setting], **given})


def put(cell, value, rows=ROWS):
    rows = rows.copy()
    rows[cell] = value
    return rows


def read_only_map(folder):
    np.save(folder / "rows.npy", ROWS)
    return np.load(folder / "rows.npy", mmap_mode="r")


HOLES = np.where(np.random.RandomState(1).rand(N, D) < 0.2, np.nan, ROWS)

# name: rows, made in a folder
WORK = {
    "two rows": lambda _: ROWS[:2],
    "three rows": lambda _: ROWS[:3],
    "fewer rows than a batch": lambda _: ROWS[:7],
    "one column": lambda _: ROWS[:, :1],
    "two columns": lambda _: ROWS[:, :2],
    "more columns than rows": lambda _: RNG.randn(6, 50),
    "constant column": lambda _: put(np.s_[:, 2], 7.0),
    "constant at 1e8": lambda _: put(np.s_[:, 2], 1e8 + 0.1),
    "all columns constant": lambda _: np.ones((N, D)),
    "all zero": lambda _: np.zeros((N, D)),
    "duplicate rows": lambda _: np.repeat(ROWS[:3], 12, 0),
    "duplicate columns": lambda _: np.hstack([ROWS, ROWS]),
    "sorted rows": lambda _: ROWS[ROWS[:, 0].argsort()],
    "holes": lambda _: HOLES,
    "a column with no value": lambda _: put(np.s_[:, 1], np.nan),
    "a row with no value": lambda _: put(np.s_[3, :], np.nan),
    "a column with one value": lambda _: put(np.s_[1:, 1], np.nan),
    "half of the rows with no value": lambda _: put(np.s_[::2, :], np.nan),
    "float32": lambda _: ROWS.astype(np.float32),
    "float16": lambda _: ROWS.astype(np.float16),
    "big-endian": lambda _: ROWS.astype(">f8"),
    "long double": lambda _: ROWS.astype(np.longdouble),
    "int8": lambda _: WHOLE.astype(np.int8),
    "int16": lambda _: WHOLE.astype(np.int16),
    "int32": lambda _: WHOLE.astype(np.int32),
    "int64": lambda _: WHOLE.astype(np.int64),
    "uint8": lambda _: np.abs(WHOLE).astype(np.uint8),
    "uint64": lambda _: np.abs(WHOLE).astype(np.uint64),
    "bool": lambda _: ROWS > 0,
    "Fortran order": lambda _: np.asfortranarray(ROWS),
    "negative strides": lambda _: ROWS[::-1, ::-1],
    "every second row": lambda _: np.repeat(ROWS, 2, 0)[::2],
    "broadcast": lambda _: np.broadcast_to(ROWS[0], (N, D)),
    "read-only": lambda _: locked(ROWS),
    "read-only memory map": read_only_map,
    "list of lists": lambda _: ROWS.tolist(),
    "tuple of tuples": lambda _: tuple(map(tuple, ROWS)),
    "list of arrays": lambda _: list(ROWS),
    "list with None": lambda _: [[1.0, None, 2.0], [2.0, 3.0, 4.0], [0.0, 1.0, 1.0], [4.0, 1.0, 3.0]],
    "object array of numbers": lambda _: ROWS.astype(object),
    "object array with None": lambda _: put((0, 0), None, ROWS.astype(object)),
    "masked array without holes": lambda _: np.ma.masked_array(ROWS, False),
    "tensor with a gradient": lambda _: torch.tensor(ROWS, requires_grad=True),
    "tensor of float16": lambda _: torch.tensor(ROWS).half(),
    "tensor of bfloat16": lambda _: torch.tensor(ROWS).bfloat16(),
    "tensor of whole numbers": lambda _: torch.tensor(WHOLE),
    "pandas": lambda _: pd.DataFrame(ROWS, columns=list("abcde")),
    "pandas with numbers for names": lambda _: pd.DataFrame(ROWS),
    "pandas, mixed numbers": lambda _: pd.DataFrame({"a": ROWS[:, 0], "b": np.arange(N), "c": ROWS[:, 2] > 0}),
    "pandas, nullable integers": lambda _: nullable([1, None, 3, 4], "Int64"),
    "pandas, nullable floats": lambda _: nullable([1.5, pd.NA, 3, 4], "Float64"),
    "pandas, nullable bool": lambda _: nullable([True, pd.NA, False, True], "boolean"),
    "pandas, object numbers": lambda _: pd.DataFrame(ROWS, columns=list("abcde")).astype(object),
    "pandas, odd index": lambda _: pd.DataFrame(ROWS, columns=list("abcde"), index=[7] * N),
    "polars": lambda _: pl.DataFrame(ROWS, schema=list("abcde")),
    "polars with nulls": lambda _: pl.DataFrame({"a": [1, None, 3, 4] * 5, "b": ROWS[:20, 0], "c": [True, False] * 10}),
    "huge values": lambda _: ROWS * 1e30,
    "tiny values": lambda _: ROWS * 1e-30,
    "subnormal values": lambda _: ROWS * 1e-310,
    "far from zero": lambda _: ROWS + 1e9,
    "units of every size": lambda _: ROWS * 10.0 ** np.arange(-10, 15, 5),
    "an outlier": lambda _: put((0, 0), 1e9),
}  # fmt: skip


def nullable(values, dtype):
    return pd.DataFrame({"a": pd.array(values * 5, dtype=dtype), "b": ROWS[:20, 0]})


def locked(rows):
    rows = rows.copy()
    rows.setflags(write=False)
    return rows


def columns_of(rows):
    return rows.shape[1] if hasattr(rows, "shape") else len(rows[0])


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("case", WORK)
@pytest.mark.filterwarnings("ignore:the code has .* nothing holds it back:UserWarning")
@pytest.mark.filterwarnings("ignore:1 of the 5 columns hold no value:UserWarning")
def test_works(case, setting, tmp_path):
    rows = WORK[case](tmp_path)
    D = columns_of(rows)
    n = len(rows)
    for early_stopping in (True, False):
        model = make(setting, n_components=min(2, D), early_stopping=early_stopping).fit(rows)
        codes = model.transform(rows)
        assert codes.shape == (n, model.n_components_)
        back = model.inverse_transform(codes)
        for result in (codes, back, model.reconstruct(rows), model.reconstruct(rows, keep_seen=True)):
            assert np.isfinite(result).all()
        assert back.shape == (n, D)
        assert model.score_samples(rows).shape == (n,)
        assert np.isfinite(model.score_samples(rows)).all()
        assert np.isfinite(model.score(rows))
        assert np.isfinite(model.transform(rows[:1])).all(), "one row is enough here"
        assert all(np.isfinite(np.asarray(values)).all() for values in model.history_.values())
        assert np.isfinite([model.best_loss_, model.pca_score_]).all()
    assert make(setting, n_components=1).partial_fit(rows).partial_fit(rows).transform(rows).shape == (n, 1)


@pytest.mark.parametrize("setting", ["exact", "hidden"])
@pytest.mark.parametrize("n", [300, 30_000])
@pytest.mark.parametrize("value", [0.1, 1.7123456789e12, -1e14 / 3, 1e20, 1e300])
def test_a_constant_column_of_any_size_changes_nothing(value, n, setting):
    rows = np.tile(ROWS, (-(-n // N), 1))[:n]
    whole = np.insert(rows, 2, value, axis=1)
    scores = [make(setting, n_components=2, max_iter=3).fit(some).score(some) for some in (rows, whole)]
    assert scores[1] > scores[0] - 0.01  # a net of six columns starts otherwise than one of five
    assert make(setting, n_components=2).fit(np.full((50, 4), value)).score(np.full((50, 4), value)) == 1.0


@pytest.mark.parametrize("value", [0.1, 1e12, 1e20])
def test_rounding_counts_for_nothing(value):
    """What is computed in two ways differs in its last digits."""
    column = np.where(ROWS[:, 0] > 0, value, np.nextafter(value, 0))
    model = make("exact", n_components=2).fit(np.insert(ROWS, 2, column, axis=1))
    assert model.score(np.insert(ROWS, 2, column, axis=1)) == pytest.approx(
        make("exact").fit(ROWS).score(ROWS), abs=1e-6
    )


def test_a_narrow_column_far_from_zero_is_no_constant():
    """Nanoseconds since 1970, of one millisecond: 1e-12 of their mean apart."""
    rows = np.insert(ROWS, 2, 1.7e18 + 1e6 * ROWS[:, 0], axis=1)
    model = make("exact", n_components=3).fit(rows)
    assert model.scaling_.factor[2] == pytest.approx(1e6 * ROWS[:, 0].std(), rel=1e-3)
    assert model.score(rows) == pytest.approx(
        make("exact", n_components=3)
        .fit(np.insert(ROWS, 2, ROWS[:, 0], axis=1))
        .score(np.insert(ROWS, 2, ROWS[:, 0], axis=1)),
        abs=1e-2,
    )


def test_input_is_not_changed(tmp_path):
    for case, rows in (("array", ROWS), ("holes", HOLES), ("fortran", np.asfortranarray(HOLES))):
        copy = rows.copy()
        model = make().fit(rows)
        for method in (model.transform, model.reconstruct, model.score, model.score_samples, model.partial_fit):
            method(rows)
        model.reconstruct(rows, keep_seen=True)
        codes = model.transform(rows)
        again = codes.copy()
        model.inverse_transform(codes)
        assert rows.tobytes() == copy.tobytes(), case
        assert codes.tobytes() == again.tobytes(), case


def test_the_type_of_floats_is_kept():
    for given, expected in ((np.float32, np.float32), (np.float64, np.float64), (np.int32, np.float64)):
        rows = WHOLE.astype(given)
        model = make().fit(rows)
        assert model.transform(rows).dtype == expected
        assert model.reconstruct(rows).dtype == expected
        assert model.inverse_transform(model.transform(rows)).dtype == expected


def test_masked_cells_are_holes():
    """A mask says "unseen", as NaN does; to read what lies under it would be to make values up."""
    masked = np.ma.masked_array(np.nan_to_num(HOLES, nan=777.0), np.isnan(HOLES))
    assert make().fit(masked).transform(masked).tobytes() == make().fit(HOLES).transform(HOLES).tobytes()
    whole = np.ma.masked_array(np.nan_to_num(HOLES, nan=777.0).round().astype(int), np.isnan(HOLES))
    assert make().fit(whole).transform(whole).tobytes() == make().fit(HOLES.round()).transform(HOLES.round()).tobytes()


def test_a_tensor_is_the_array_that_it_holds():
    x = torch.tensor(ROWS, dtype=torch.bfloat16).requires_grad_()
    array = x.detach().float().numpy()
    assert make().fit(x).transform(x).tobytes() == make().fit(array).transform(array).tobytes()


def test_a_hole_is_a_hole_however_it_is_written():
    expected = make().fit(HOLES).transform(HOLES)
    nested = [[None if np.isnan(cell) else cell for cell in row] for row in HOLES]
    columns = {name: [row[j] for row in nested] for j, name in enumerate("abcde")}
    for same in (
        nested,
        np.array(nested, dtype=object),
        pd.DataFrame(HOLES, columns=list("abcde")),
        pd.DataFrame({name: pd.array(values, dtype="Float64") for name, values in columns.items()}),
        pl.DataFrame(columns),
    ):
        assert make().fit(same).transform(same).tobytes() == expected.tobytes()


def test_seen_cells_are_kept_and_holes_are_filled():
    for rows in (HOLES, HOLES.astype(np.float32)):
        model = make().fit(rows)
        whole = model.reconstruct(rows, keep_seen=True)
        seen = ~np.isnan(rows)
        assert np.array_equal(whole[seen], rows[seen])
        assert np.isfinite(whole).all()


def test_a_column_without_values_stays_out_of_it():
    rows = put(np.s_[:, 1], np.nan)
    with pytest.warns(UserWarning, match=r"1 of the 5 columns hold no value \(column 1\)"):
        model = make("exact").fit(rows)
    assert np.abs(model.reconstruct(rows)[:, 1]).max() < 1e-9, "what is known of it is nothing: its centre, 0"
    rest = np.delete(rows, 1, 1)
    assert model.score(rows) == pytest.approx(make("exact").fit(rest).score(rest), abs=0.02)


@pytest.mark.parametrize("setting", SETTINGS)
def test_rows_without_any_value_are_refused(setting):
    for method in (make(setting).fit, make(setting).partial_fit):
        with pytest.raises(ValueError, match="no cell of the rows holds a value"):
            method(np.full((N, D), np.nan))


def test_a_row_without_values_gets_the_centre():
    model = make("exact").fit(ROWS)
    nothing = np.full((1, D), np.nan)
    assert model.reconstruct(nothing, keep_seen=True)[0] == pytest.approx(model.mean_)
    assert model.reconstruct(nothing)[0] == pytest.approx(model.mean_)


# --- must warn

EXTREME = ROWS * np.array([1e300, 1.0, 1e-3, 1e150, 1e200])


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("scale", ["auto", "standard"])
def test_spreads_of_1e300_warn_and_work(setting, scale):
    model = make(setting, scale=scale)
    with pytest.warns(UserWarning, match=r"column 0 .*standard deviation.*e\+(299|300)"):
        model.fit(EXTREME)
    for result in (model.transform(EXTREME), model.reconstruct(EXTREME), model.score_samples(EXTREME)):
        assert np.isfinite(result).all()
    assert np.isfinite(model.score(EXTREME))
    plain = make(setting, scale="standard").fit(ROWS)
    assert model.score(EXTREME) == pytest.approx(plain.score(ROWS), abs=1e-3)


@pytest.mark.parametrize("n", range(2, 9))
def test_no_single_row_judges(n):
    model = make(n_components=1).fit(ROWS[:n])
    assert len(model.validation_scores_) == (n > 7) * model.n_iter_
    assert model.pca_score_ != 0


def test_spreads_of_1e100_are_as_any_other():
    assert make().fit(1e100 * ROWS).score(1e100 * ROWS) == pytest.approx(make().fit(ROWS).score(ROWS), abs=1e-6)


def test_too_much_decay_is_called_by_its_name():
    with pytest.warns(UserWarning, match="training diverged .* lower weight_decay"):
        make(weight_decay=1e9).fit(ROWS)


def test_one_column_has_no_fewer_units():
    with pytest.warns(UserWarning, match=r"the code has 1 unit for 1 column and .* nothing else\. Add a penalty"):
        make(n_components="auto").fit(ROWS[:, :1])


WIDE = np.array([[2**53 + 1, 1], [2**53 + 3, 2], [2**53 + 5, 4]])


@pytest.mark.parametrize("as_rows", [np.array, pd.DataFrame, lambda X: pd.DataFrame(X).astype("Int64"), pl.DataFrame])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.filterwarnings("ignore:X does not have valid feature names:UserWarning")
def test_whole_numbers_that_floats_do_not_hold_warn(as_rows, sign):
    with pytest.warns(UserWarning, match=r"column .?(0|column_0).? holds whole numbers from .* rounded"):
        model = make(n_components=1).fit(as_rows(sign * WIDE))
    with pytest.warns(UserWarning, match="rounded"):
        model.reconstruct(as_rows(sign * WIDE), keep_seen=True)
    make(n_components=1).fit(as_rows(sign * (WIDE - [2**53, 0])))


@pytest.mark.parametrize("K", [5, 7, None])
def test_as_many_units_as_columns_warn(K):
    for method in (make(n_components=K).fit, make(n_components=K).fit_transform, make(n_components=K).partial_fit):
        with pytest.warns(UserWarning, match=r"the code has \d units for 5 columns.*identity"):
            method(ROWS)


@pytest.mark.parametrize(
    "given",
    [
        {"objective": MSE() + 0.1 * L1()},
        {"corruption": Mask(0.1)},
        {"code_activation": "TopK(2)"},
        {"n_components": 4},
        {"n_components": 0.99},
    ],
    ids=str,
)
def test_what_is_held_back_does_not_warn(given):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make("exact", **{"n_components": 5, **given}).fit(ROWS)


def test_more_active_units_than_units_warn():
    with pytest.warns(UserWarning, match=r"TopK\(3\) keeps all 2 units.*lower k or raise n_components"):
        make(code_activation="TopK(3)").fit(ROWS)


# --- must be refused, by name

DATES = pd.to_datetime(["2020-01-01"] * N)
ZONED = DATES.tz_localize("UTC")

# name: rows, words of the error
REFUSED = {
    "inf": (put((3, 2), np.inf), r"infinite.*row 3, column 2"),
    "-inf": (put((39, 4), -np.inf), r"infinite.*row 39, column 4"),
    "inf among holes": (put((3, 2), np.inf, HOLES), r"infinite.*row 3, column 2"),
    "inf and -inf": (put(([1, 2], [1, 1]), [np.inf, -np.inf]), r"infinite.*row 1, column 1"),
    "inf in float32": (put((3, 2), np.inf).astype(np.float32), r"infinite.*row 3, column 2"),
    "inf in a list": (put((3, 2), np.inf).tolist(), r"infinite.*row 3, column 2"),
    "inf in a frame": (pd.DataFrame(put((3, 2), np.inf), columns=list("abcde")), r"row 3, column 2 \('c'\)"),
    "inf in polars": (pl.DataFrame(put((3, 2), np.inf), schema=list("abcde")), r"row 3, column 2 \('c'\)"),
    "no rows": (np.empty((0, D)), r"0 sample\(s\)"),
    "no columns": (np.empty((N, 0)), r"0 feature\(s\)"),
    "empty list": ([], r"[Ee]mpty|1D array"),
    "empty frame": (pd.DataFrame(), r"0 (sample|feature)|at least one"),
    "1-D": (ROWS[:, 0], r"Expected 2D array, got 1D array"),
    "list of numbers": ([1.0, 2.0, 3.0], r"Expected 2D array, got 1D array"),
    "3-D": (ROWS.reshape(N, D, 1), r"3"),
    "a number": (3.0, r"Expected 2D array, got scalar array"),
    "None": (None, r"None|scalar"),
    "a string": ("rows", r"there is no file or folder rows"),
    "a dict": ({"a": [1, 2]}, r"dict"),
    "a series": (pd.Series(ROWS[:, 0]), r"Expected a? ?2[- ]?[dD]"),
    "ragged": ([[1.0, 2.0], [3.0]], r"row 1|inhomogeneous|ragged"),
    "strings": (ROWS.astype(str).astype(object), r"could not convert string to float: '.*' in row 0, column 0"),
    "text": (np.array([["a", "b"]] * N), r"could not convert string to float.*text"),
    "bytes": (np.array([[b"a", b"b"]] * N), r"bytes"),
    "list of strings": ([["1", "x"]] * N, r"text|could not convert"),
    "complex": (ROWS * 1j, r"Complex data not supported"),
    "list of complex": ((ROWS * 1j).tolist(), r"[Cc]omplex"),
    "datetimes": (np.full((N, D), np.datetime64("2020-01-01")), r"dates"),
    "durations": (np.full((N, D), np.timedelta64(3, "s")), r"durations"),
    "list of datetimes": ([[datetime.datetime(2020, 1, 1)] * D] * N, r"datetime|dates"),
    "records": (np.zeros(N, dtype=[("a", float), ("b", float)]), r"records"),
    "objects": (np.array([[object()] * D] * N), r"object"),
    "a column of dates": (pd.DataFrame({"a": ROWS[:, 0], "when": DATES}), r"'when' holds dates"),
    "a column of zoned dates": (pd.DataFrame({"a": ROWS[:, 0], "when": ZONED}), r"'when' holds dates"),
    "a column of text": (pd.DataFrame({"a": ROWS[:, 0], "who": ["x"] * N}), r"'who'.*text|string.*'who'"),
    "a column of categories": (pd.DataFrame({"a": ROWS[:, 0], "kind": pd.Categorical(["x"] * N)}), r"'kind'"),
    "a column of complex": (pd.DataFrame({"a": ROWS[:, 0], "z": ROWS[:, 1] * 1j}), r"'z' holds complex"),
    "polars text": (pl.DataFrame({"a": ROWS[:, 0], "who": ["x"] * N}), r"'who'"),
    "polars dates": (pl.DataFrame({"a": ROWS[:, 0], "when": [datetime.date(2020, 1, 1)] * N}), r"'when'"),
}  # fmt: skip


@pytest.fixture(scope="module")
def fitted():
    return {
        "array": make().fit(ROWS),
        "pandas": make().fit(pd.DataFrame(ROWS, columns=list("abcde"))),
    }


def other_methods(model):
    return [model.transform, model.reconstruct, model.score, model.score_samples]


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.filterwarnings("ignore:X (has|does not have) .*feature names:UserWarning")
def test_refused_with_the_cause(case, fitted):
    rows, words = REFUSED[case]
    kinds = FileNotFoundError if case == "a string" else (ValueError, TypeError)
    for method in (make().fit, make("exact").fit, make().fit_transform, make().partial_fit):
        with pytest.raises(kinds, match=words):
            method(rows)
    for method in other_methods(fitted["array"]):
        if isinstance(rows, pd.DataFrame | pl.DataFrame):
            # a model of an array knows no names, and frames of another width are refused for that first
            words = (
                words.replace(r" \('c'\)", "") if "infinite" in words or r"\('c'\)" in words else rf"{words}|features"
            )
        with pytest.raises(kinds, match=words):
            method(rows)


@pytest.mark.parametrize("case", ["inf", "-inf", "no rows", "1-D", "3-D", "strings", "complex", "datetimes", "ragged",
                                  "text", "None", "a number", "objects", "empty list", "list of complex"])  # fmt: skip
def test_codes_are_refused_too(case, fitted):
    codes = REFUSED[case][0]
    if isinstance(codes, np.ndarray) and codes.ndim >= 2:
        codes = codes[:, 2:4] if case == "inf" else codes[:, -2:]  # two columns, as codes have
    words = {"inf": "row 3, column 0", "-inf": "row 39, column 1", "3-D": "3"}.get(case, REFUSED[case][1])
    with pytest.raises((ValueError, TypeError), match=words):
        fitted["array"].inverse_transform(codes)


def test_holes_in_codes_are_refused(fitted):
    with pytest.raises(ValueError, match=r"H.*NaN|NaN.*H"):
        fitted["array"].inverse_transform([[1.0, np.nan]])


def test_codes_of_a_wrong_width(fitted):
    with pytest.raises(ValueError, match="H has 3 columns, this model's codes have 2"):
        fitted["array"].inverse_transform(np.zeros((4, 3)))


def test_one_row_is_too_few_to_fit_and_enough_for_the_rest(fitted):
    for method in (make().fit, make("exact").fit, make().partial_fit):
        with pytest.raises(ValueError, match=r"1 sample\(s\).*minimum of 2"):
            method(ROWS[:1])
    for method in other_methods(fitted["array"]):
        assert np.isfinite(method(ROWS[:1])).all()
    make().fit(ROWS).partial_fit(ROWS[:1])


def test_wrong_width(fitted):
    for rows in (ROWS[:, :4], np.hstack([ROWS, ROWS])):
        for method in other_methods(fitted["array"]):
            with pytest.raises(ValueError, match=rf"X has {rows.shape[1]} features.*expecting 5 features"):
                method(rows)


@pytest.mark.parametrize("library", [pd, pl])
def test_wrong_names(fitted, library):
    def frame(names):
        return library.DataFrame(dict(zip(names, ROWS.T, strict=True)))

    for names, words in (
        ("abcdx", r"unseen at fit time:\n- x"),
        ("edcba", "same order"),
        ("abcd", "seen at fit time, yet now missing:\n- e"),
    ):
        rows = frame(names) if len(names) == 5 else frame("abcde")[list(names)]
        for method in other_methods(fitted["pandas"]):
            with pytest.raises(ValueError, match=words):
                method(rows)


def test_mixed_names_are_refused():
    with pytest.raises(TypeError, match="feature names"):
        make().fit(pd.DataFrame(ROWS, columns=["a", "b", 3, 4, 5]))


def test_codes_by_name_keep_their_order():
    model = make().fit(ROWS)
    codes = pd.DataFrame(model.transform(ROWS), columns=model.get_feature_names_out())
    for kind in (lambda frame: frame, pl.from_pandas, pa.Table.from_pandas):
        assert np.array_equal(model.inverse_transform(kind(codes)), model.inverse_transform(codes.to_numpy()))
        with pytest.raises(ValueError, match=r"codes are in another order: column 0 is 'autoencoder1'"):
            model.inverse_transform(kind(codes[codes.columns[::-1]]))
    model.inverse_transform(codes.set_axis(["b", "a"], axis=1))


def test_not_fitted_yet():
    for name in ("transform", "inverse_transform", "reconstruct", "score", "score_samples"):
        with pytest.raises(Exception, match="not fitted") as caught:
            getattr(make(), name)(ROWS)
        assert type(caught.value).__name__ == "NotFittedError"
    with pytest.raises(Exception, match="not fitted"):
        make().save("nowhere")


def test_sparse_matrices_are_refused_by_name():
    sparse = pytest.importorskip("scipy.sparse")
    with pytest.raises(TypeError, match=r"[Ss]parse"):
        make().fit(sparse.csr_matrix(ROWS))


# --- parameters

PARAMETERS = {
    "n_components": [0, -1, 1.5, 0.0, 1.0, -0.5, "all", "mle", True, np.nan, np.inf, [3], (3,), 2 + 1j],
    "hidden_layer_sizes": [0, 8, (0,), (-3,), (8, 0), (8.5,), "big", None, ("a",), [[8]]],
    "decoder_hidden_layer_sizes": ["same", (0,), 3, None],
    "activation": ["ReLU", "softmax", None, 3, len],
    "linear_path": ["yes", 2, None],
    "tied": ["yes", 2, None],
    "constraint": [None, 3, "unit", "UnitNorm", "MSE()"],
    "scale": ["minmax", True, 3],
    "solver": ["adam", None, "lbfgs"],
    "start": ["pca", None],
    "batch_size": [0, -1, 2.5, "all", None],
    "learning_rate_init": [0, -1e-3, "fast", np.nan, np.inf, None],
    "max_iter": [0, -1, 2.5, None, np.inf],
    "max_time": [0, -1.0, "1h", np.nan],
    "early_stopping": ["yes", None, 3],
    "validation_fraction": [0, 1, 1.5, -0.1, None, np.nan],
    "n_iter_no_change": [0, -1, 2.5],
    "tol": [-1e-4, None, "small", np.nan],
    "max_norm": [1, 0.5, -2.0, np.nan, np.inf, "big"],
    "device": [3, None, "gpu", "tpu:0", "cuda:x"],
    "precision": ["float16", "double", 32, None],
    "random_state": [-1, 1.5, "seed", [1]],
    "verbose": [-1, "loud", None],
    "objective": [None, 3, "", "MES()", "MSE", "L1()", "0.1 * L1()", "MSE() + 0.1 * L3()", "MSE() + ", "MSE() - L1()",
                  "MSE() + TopK(3)", MSE, len, "inf * MSE()", "MSE() + BCE()", "TopK(2)", "MSE().mean",
                  "(lambda: 1)()"],
    "corruption": [None, "Noise(3)", "Mask(1.5)", "Mask(-1)", "Mask()", "Mask(p=0.1, q=2)", "MSE()", Mask, 0.3,
                   "Gaussian(-1)", "Mask('a')"],
    "code_activation": [None, "relu", "TopK", "TopK(0)", "TopK(1.5)", "Topk(3)", "L1()", "TopK(k=[1])"],
}  # fmt: skip


@pytest.mark.parametrize("name", PARAMETERS)
def test_impossible_parameters_are_refused_by_name(name):
    for value in PARAMETERS[name]:
        model = make().set_params(**{name: value})
        with pytest.raises((ValueError, TypeError)) as caught:
            model.fit(ROWS)
        text = str(caught.value)
        assert name in text or (isinstance(value, str) and value.split("(")[0] in text), (value, text)
        assert len(text) < 600, (value, text)
        assert not hasattr(model, "codec_")


@pytest.mark.parametrize(
    ("given", "allowed"),
    [
        ({"solver": "adam"}, "'auto', 'exact', 'sparse', 'dense' or 'descend' was expected"),
        ({"scale": "none"}, "'auto', 'standard' or None was expected"),
        ({"n_components": "3"}, r"an int from 1 on, a number in \(0, 1\), 'auto' or None was expected"),
        ({"hidden_layer_sizes": 16}, r"a tuple of ints from 1 on, such as .*\(16,\)"),
        ({"tol": -1}, "a finite number from 0 on was expected"),
        ({"tied": "yes"}, "True or False was expected"),
        ({"device": "gpu"}, "'auto', 'cpu'"),
    ],
    ids=str,
)
def test_what_is_possible_is_said(given, allowed):
    (name, value) = next(iter(given.items()))
    with pytest.raises(ValueError, match=re.escape(f"{name}={value!r} is not possible: ") + allowed):
        make(**given).fit(ROWS)


@pytest.mark.parametrize("objective", ["-1 * MSE()", "MSE() + -0.1 * L1()", "MSE() + Cosine(0.1, -0.1, 9) * L1()"])
def test_what_is_minimised_has_no_negative_part(objective):
    with pytest.raises(ValueError, match=r"the coefficient of (MSE|L1)\(\) is .*: a negative one rewards"):
        make(objective=objective).fit(ROWS)


def test_an_unknown_part_is_answered_with_a_near_one():
    with pytest.raises(ValueError, match=r"no part called 'MES'; did you mean MSE"):
        make(objective="MES()").fit(ROWS)
    with pytest.raises(ValueError, match=r"no part called 'Topk'; did you mean TopK"):
        make(code_activation="Topk(3)").fit(ROWS)
    with pytest.raises(ValueError, match=r"no part called 'xyz'; known are .*MSE"):
        make(objective="xyz()").fit(ROWS)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"objective": "MSE() + 0.1 * KL()"}, r"KL\(\) needs a code in \(0, 1\).*Sigmoid"),
        ({"solver": "exact", "hidden_layer_sizes": (8,)}, r"no closed form.*hidden layers"),
        ({"solver": "exact", "objective": "Huber()", "hidden_layer_sizes": ()}, r"no closed form.*Huber"),
        ({"solver": "exact", "hidden_layer_sizes": "auto", "code_activation": "Sigmoid()"}, r"no closed form.*Sigmoid"),
        ({"tied": True, "decoder_hidden_layer_sizes": (3,)}, r"tied=True needs a decoder that mirrors"),
        ({"objective": "BCE()"}, r"BCE\(\) needs values in \[0, 1\].*row 0, column 0"),
        ({"objective": "MSE() + BCE()"}, r"supports differ"),
    ],
    ids=str,
)
def test_impossible_combinations_say_what_to_do(given, words):
    with pytest.raises(ValueError, match=words):
        make(**given).fit(ROWS)


# --- bad input never costs finished work


@pytest.mark.parametrize("bad", ["inf in a frame", "3-D", "no rows", "a column of text", "complex"])
@pytest.mark.parametrize("kind", ["array", "pandas"])
@pytest.mark.filterwarnings("ignore:X (has|does not have) .*feature names:UserWarning")
def test_a_failed_refit_leaves_the_old_model(bad, kind):
    rows = ROWS if kind == "array" else pd.DataFrame(ROWS, columns=list("abcde"))
    model = make().fit(rows)
    before, state = model.transform(rows), set(vars(model))
    for method in (model.fit, model.partial_fit, model.transform):
        with pytest.raises((ValueError, TypeError)):
            method(REFUSED[bad][0])
    assert set(vars(model)) == state
    assert model.transform(rows).tobytes() == before.tobytes()


@pytest.mark.parametrize("given", [{"solver": "exact"}, {"code_activation": "TopK(0)"}, {"n_components": 0},
                                   {"objective": "BCE()"}, {"objective": "MES()"}], ids=str)  # fmt: skip
def test_an_impossible_refit_leaves_the_old_model(given):
    """Also where the error comes after the rows were read, and the new rows are of another width."""
    model = make().fit(pd.DataFrame(ROWS, columns=list("abcde")))
    before = model.transform(pd.DataFrame(ROWS, columns=list("abcde")))
    model.set_params(**given)
    with pytest.raises(ValueError, match=r"."):
        model.fit(ROWS[:, :4])
    assert model.n_features_in_ == 5
    assert model.transform(pd.DataFrame(ROWS, columns=list("abcde"))).tobytes() == before.tobytes()


def test_partial_fit_after_fit_goes_on_from_that_fit():
    """Not from the state that an older partial_fit has left."""
    model = make().partial_fit(ROWS).fit(ROWS)
    expected = make().fit(ROWS)
    assert model.partial_fit(ROWS).transform(ROWS).tobytes() == expected.partial_fit(ROWS).transform(ROWS).tobytes()


def test_load_names_what_is_wrong_with_the_place(tmp_path):
    for path in (tmp_path / "nothing", str(tmp_path / "nothing"), tmp_path / "no" / "such"):
        with pytest.raises(ModelFileError, match=r"there is no model at .*no"):
            retell.load(path)
    np.save(tmp_path / "rows.npy", ROWS)
    with pytest.raises(ModelFileError, match=r"rows\.npy is not a model: a folder with model\.toml was expected"):
        retell.load(tmp_path / "rows.npy")
    make().fit(ROWS).save(tmp_path / "model")
    with pytest.raises(ModelFileError, match=r"is not a model: a folder"):
        retell.load(tmp_path / "model" / "model.toml")


def test_rows_that_come_once_are_sent_to_fit_stream_and_those_that_are_there_to_fit():
    X = np.random.default_rng(0).normal(size=(178, 13))
    with pytest.raises(TypeError, match=r"rows \(N, D\) were expected, got generator, which .* to fit_stream"):
        Autoencoder(2).fit(row for row in X)
    with pytest.raises(TypeError, match=r"rows \(N, D\) were expected, got NoneType$"):
        Autoencoder(2).fit(None)
    for rows in (X, pd.DataFrame(X), torch.tensor(X)):
        with pytest.raises(ValueError, match=r"got one \w+ of shape \(178, 13\): give it to fit, or as \[X\]"):
            Autoencoder(2).fit_stream(rows)
