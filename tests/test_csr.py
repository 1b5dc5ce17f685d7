"""Sparse codes as compressed rows, and wide ones in bounded memory."""

import os
import subprocess
import sys

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from retell import Autoencoder, load, record
from retell.__main__ import main
from retell.codec import Codec
from retell.density import WIDE, Density, Tally
from retell.inference import MOST, Inference, Run
from retell.networks import mirror, mlp
from retell.rows.codes import read_codes, write_codes
from retell.rows.files import read_rows
from retell.seeds import generator

D = 12
CODES = {
    "TopK": {"code_activation": "TopK(4)"},
    "level": {"code_activation": "TopK(4, least=0.5)"},
    "BatchTopK": {"code_activation": "BatchTopK(4)"},
    "JumpReLU": {"code_activation": "JumpReLU(0.1)", "objective": "MSE() + 0.01 * L0()"},
    "ReLU": {"code_activation": "ReLU()", "objective": "MSE() + 0.01 * L1()"},
    "Gated": {"code_activation": "Gated()", "objective": "MSE() + 0.01 * GateL1() + GateMSE()"},
    "deep": {"code_activation": "TopK(4)", "hidden_layer_sizes": (8,)},
    "map": {"objective": "MSE() + 0.05 * L1()", "inference": "map", "n_components": 20},
}


@pytest.fixture(scope="module")
def rows():
    draw = np.random.RandomState(0)
    return draw.randn(6000, 4) @ draw.randn(4, D) + 0.1 * draw.randn(6000, D) + 10 * draw.randn(D)


def small(rows, **given):
    return Autoencoder(**{"n_components": 40, "max_iter": 1, "random_state": 0, **given}).fit(rows[:300])


@pytest.fixture(scope="module", params=CODES)
def model(request, rows):
    return small(rows, **CODES[request.param])


# ------------------------------------------------------------------ codes


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sparse_codes_have_the_bits_of_dense_ones(model, rows, two_threads, dtype):
    x = rows[: 200 if model.inference == "map" else None].astype(dtype)
    dense, few = model.transform(x), model.transform(x, sparse_output=True)
    assert isinstance(few, sp.csr_array)
    assert few.dtype == dense.dtype == dtype
    assert few.toarray().tobytes() == (dense + dtype(0)).tobytes()  # -0.0 of a code by optimisation is zero too
    assert few.nnz == (few.data != 0).sum() == (dense != 0).sum()
    assert sp.csr_array((few.data, few.indices, few.indptr)).has_canonical_format  # as it says of itself


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sparse_codes_are_decoded_like_dense_ones(model, rows, two_threads, dtype):
    x = rows[: 200 if model.inference == "map" else None].astype(dtype)
    few = model.transform(x, sparse_output=True)
    expected = model.inverse_transform(few.toarray())
    made = model.inverse_transform(few)
    assert made.dtype == dtype
    np.testing.assert_allclose(made, expected, rtol=0, atol=3e-6 * np.abs(expected).max())
    assert np.array_equal(model.inverse_transform(few[101:102]), made[101:102])


def test_float64_models_decode_sparse_codes_in_float64(rows):
    model = small(rows, code_activation="TopK(4)", precision="float64")
    few = model.transform(rows, sparse_output=True)
    expected = model.inverse_transform(few.toarray())
    np.testing.assert_allclose(model.inverse_transform(few), expected, rtol=1e-12)


KINDS = [sp.coo_array, sp.csc_array, sp.csr_matrix, sp.lil_array, sp.dok_array, sp.bsr_array]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_any_sparse_kind_is_read(rows, kind):
    model = small(rows, code_activation="TopK(4)")
    few = model.transform(rows[:50], sparse_output=True)
    assert model.inverse_transform(kind(few)).tobytes() == model.inverse_transform(few).tobytes()


def test_entries_given_twice_or_out_of_order_are_summed_and_left_alone(rows):
    model = small(rows, code_activation="TopK(4)")
    twice = sp.csr_array((np.array([1.0, 0.5, 1.5]), np.array([7, 3, 7]), np.array([0, 3, 3])), shape=(2, 40))
    for some in (twice.data, twice.indices, twice.indptr):
        some.flags.writeable = False
    once = np.zeros((2, 40))
    once[0, 7], once[0, 3] = 2.5, 0.5
    np.testing.assert_allclose(model.inverse_transform(twice), model.inverse_transform(once), rtol=1e-6)
    assert twice.nnz == 3
    whole = sp.csr_array(once.astype(int))
    assert model.inverse_transform(whole).tobytes() == model.inverse_transform(whole.astype(float)).tobytes()


def test_rows_without_activity_are_the_decoders_bias(rows):
    model = small(rows, code_activation="TopK(4)")
    silent = model.inverse_transform(sp.csr_array((3, 40)))
    np.testing.assert_allclose(silent, model.inverse_transform(np.zeros((3, 40))), rtol=1e-6)


def test_codes_go_where_they_are_told(rows):
    model = small(rows, code_activation="TopK(4)")
    few = model.transform(rows, sparse_output=True)
    out = np.empty(rows.shape, np.float32)
    assert model.inverse_transform(few, out=out) is out
    assert out.tobytes() == model.inverse_transform(few).astype(np.float32).tobytes()
    with pytest.raises(ValueError, match=r"leave out=\.\.\. or sparse_output=True out"):
        model.transform(rows, out=np.empty((len(rows), 40)), sparse_output=True)


def test_bad_codes_are_refused(rows):
    model = small(rows, code_activation="TopK(4)")
    with pytest.raises(ValueError, match="H has 39 columns, this model's codes have 40"):
        model.inverse_transform(sp.csr_array((3, 39)))
    with pytest.raises(ValueError, match="rows of real numbers were expected"):
        model.inverse_transform(sp.csr_array((3, 40), dtype=complex))
    for unit in (-1, 40, 47, 48):  # the matrices are wider than the code, by zeros
        one = sp.csr_array(np.eye(40)[:1])
        one.indices[0] = unit
        with pytest.raises(ValueError, match=f"H names unit {unit}, this model's codes have units 0 to 39"):
            model.inverse_transform(one)
    bad = sp.lil_array((3, 40))
    for value, word in ((np.nan, "NaN"), (np.inf, "infinity")):
        bad[1, 2] = value
        with pytest.raises(ValueError, match=word):
            model.inverse_transform(bad)


def test_infinite_rows_are_named(rows):
    model = small(rows, code_activation="TopK(4)")
    x = rows.copy()
    x[4321, 5] = np.inf
    with pytest.raises(ValueError, match="row 4321, column 5"):
        model.transform(x, sparse_output=True)


# ------------------------------------------------------------------ wide codes


@pytest.mark.parametrize("K", [5_000, 40_000, 100_003])
def test_what_a_run_holds_is_bounded_and_a_row_is_coded_alone(rows, K):
    f = mlp([D, K])
    codec = Codec(f, lambda a: a, mirror(f), torch.zeros(D))
    with torch.no_grad():
        for value in codec.parameters():
            value.normal_(generator=generator(0))
    through = Inference(codec)
    for stack in (through.encoder, through.decoder):
        run = Run(stack, stack.block)
        y, _ = run(torch.zeros(stack.block, stack.products[0].shape[0]).double())
        held = {some.data_ptr(): some.nbytes for some in (*run.held.values(), y)}
        assert sum(held.values()) <= MOST
    x = rows[:70].astype(np.float32)
    h = through.encode(x)
    assert through.encode(x[33:34]).tobytes() == h[33:34].tobytes()
    assert through.decode(h[33:34]).tobytes() == through.decode(h)[33:34].tobytes()
    with torch.no_grad():
        np.testing.assert_allclose(h, codec.encode(torch.from_numpy(x)).numpy(), rtol=1e-4, atol=1e-4)


MEMORY = """
import resource
import numpy as np
from retell import Autoencoder, load, record

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

model, x = load("model"), np.random.RandomState(0).rand(4000, 12)
model.inverse_transform(model.transform(x[:40], sparse_output=True))
model.score_samples(x[:40])
before = peak()
codes = model.transform(x, sparse_output=True)
print(peak() - before)
model.inverse_transform(codes)
print(peak() - before)
model.score_samples(x)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kB on Linux")
def test_dense_codes_are_never_held(rows, tmp_path):
    small(rows, n_components=40_000, code_activation="TopK(4)").save(tmp_path / "model")
    done = subprocess.run(
        [sys.executable, "-c", MEMORY], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    added = [float(line) for line in done.stdout.split()]
    assert max(added) < 60, f"{added} MB beside dense codes of 640 MB"


# ------------------------------------------------------------------ codes on disk


def coded(folder, model, rows, *flags):
    """The command line's codes of rows, and what it decodes them to."""
    model.save(folder / "model")
    np.save(folder / "x.npy", rows)
    it, x, h, y = (str(folder / name) for name in ("model", "x.npy", "h.npz", "y.npy"))
    assert main(["encode", it, x, "-o", h, "-q", *flags]) == 0
    assert main(["decode", it, h, "-o", y, "-q"]) == 0
    return np.load(y)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_command_line_writes_and_reads_sparse_codes(model, rows, tmp_path, dtype):
    x = rows[:500].astype(dtype)
    decoded = coded(tmp_path, model, x, "--sparse")
    H = sp.load_npz(tmp_path / "h.npz")
    assert H.format == "csr"
    assert H.dtype == dtype
    np.testing.assert_array_equal(H.toarray(), model.transform(x))
    np.testing.assert_array_equal(decoded, model.inverse_transform(H))
    np.testing.assert_array_equal(decoded, model.inverse_transform(tmp_path / "h.npz"))
    held = H.data.nbytes + H.indices.nbytes + H.indptr.nbytes
    assert held < os.path.getsize(tmp_path / "h.npz") < held + 2000


def test_dense_codes_are_written_whole(model, rows, tmp_path):
    decoded = coded(tmp_path, model, rows[:50])
    np.testing.assert_array_equal(np.load(tmp_path / "h.npz")["X"], model.transform(rows[:50]))
    np.testing.assert_array_equal(decoded, model.inverse_transform(model.transform(rows[:50])))


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("kind", [sp.csr_array, sp.csr_matrix])
def test_codes_that_scipy_writes_are_read(tmp_path, kind, compressed):
    H = kind(np.diag([1.0, 0.0, 2.0]))
    sp.save_npz(tmp_path / "h.npz", H, compressed=compressed)
    found = read_codes(tmp_path / "h.npz")
    assert isinstance(found, sp.csr_array)
    np.testing.assert_array_equal(found.toarray(), H.toarray())


def test_damaged_codes_are_refused(tmp_path):
    """What decodes trusts their numbers: a unit that is not there would be read from beyond the dictionary."""
    H = sp.csr_array(np.eye(4, 6))
    fine = {"format": b"csr", "shape": H.shape, "data": H.data, "indices": H.indices, "indptr": H.indptr}
    for change, words in (
        ({"indices": np.array([0, 1, 2, 6])}, "indices"),
        ({"indices": np.array([0, 1, 2, -1])}, "indices"),
        ({"indptr": np.array([0, 1, 9, 3, 4])}, "ind"),
        ({"indptr": np.array([0, 1])}, "ind"),
        ({"format": b"magic"}, "magic"),
        ({"data": np.array([None] * 4)}, "allow_pickle"),
    ):
        np.savez(tmp_path / "h.npz", **(fine | change))
        with pytest.raises(ValueError, match=words) as error:
            read_codes(tmp_path / "h.npz")
        assert "h.npz" in str(error.value)
    sp.save_npz(tmp_path / "h.npz", sp.csc_array(H))
    with pytest.raises(ValueError, match=r"h\.npz .* 'csc': compressed rows were expected"):
        read_codes(tmp_path / "h.npz")
    np.savez(tmp_path / "h.npz", **{name: value for name, value in fine.items() if name != "indices"})
    with pytest.raises(ValueError, match="indices"):
        read_codes(tmp_path / "h.npz")
    (tmp_path / "h.npz").write_text("no zip")
    with pytest.raises(ValueError, match=r"h\.npz"):
        read_codes(tmp_path / "h.npz")


def test_sparse_codes_are_no_rows_and_go_to_npz(tmp_path):
    write_codes(tmp_path / "h.npz", sp.csr_array(np.eye(D)))
    with pytest.raises(ValueError, match="holds a sparse matrix"):
        read_rows(tmp_path / "h.npz")
    with pytest.raises(ValueError, match=r"written to \.npz"):
        write_codes(tmp_path / "h.npy", sp.csr_array(np.eye(D)))
    assert [path.name for path in tmp_path.iterdir()] == ["h.npz"]


# ------------------------------------------------------------------ their density


def test_codes_in_blocks_are_tallied_as_one():
    draw = np.random.default_rng(0)
    for K in (7, WIDE + 3):
        h = draw.normal(3, 2, (500, K))
        whole, parts = Tally(K), Tally(K)
        whole.add(h)
        for some in np.split(h, [1, 40, 41, 333]):
            parts.add(some)
        covariance = np.cov(h.T, bias=True)
        np.testing.assert_allclose(whole.covariance, covariance if K == 7 else np.diag(covariance), rtol=1e-12)
        for name in ("mean", "covariance", "mean_square"):
            np.testing.assert_allclose(getattr(parts, name), getattr(whole, name), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(whole.mean_square, (h**2).mean(0), rtol=1e-12)


def test_wide_codes_count_as_independent():
    draw = np.random.default_rng(0)
    residuals, h = draw.normal(size=(50, 3)), draw.normal(1, 2, (80, WIDE + 1))
    h[:, 5] = 0.25  # a unit that does not vary
    density = Density.fit(residuals, h)
    assert density.diagonal
    assert density.whiten.shape == (WIDE + 1,)
    variance = np.maximum(h.var(0), 1e-6 * h.var(0).max())
    codes = -0.5 * ((h[:9] - h.mean(0)) ** 2 / variance + np.log(2 * np.pi * variance)).sum(1)
    cells = -0.5 * (residuals[:9] ** 2 / density.noise + np.log(2 * np.pi * density.noise)).sum(1)
    np.testing.assert_allclose(density.log_rows(residuals[:9], h[:9]), codes + cells, rtol=1e-10)


def test_narrow_codes_keep_their_covariance():
    h = np.random.default_rng(0).normal(size=(80, WIDE))
    assert Density.fit(h[:, :3], h).whiten.shape == (WIDE, WIDE)


def test_wide_models_are_saved_and_read(rows, tmp_path):
    model = small(rows, n_components=WIDE + 1, code_activation="TopK(4)")
    assert model.density_.diagonal
    again = (model.save(tmp_path / "model"), load(tmp_path / "model"))[1]
    assert again.density_.whiten.tobytes() == model.density_.whiten.tobytes()
    assert again.score_samples(rows[:9]).tobytes() == model.score_samples(rows[:9]).tobytes()


def test_the_closed_form_keeps_the_covariance_of_wide_codes(tmp_path):
    draw = np.random.default_rng(0)
    x = draw.normal(size=(60, WIDE + 20))
    model = Autoencoder(WIDE + 2, hidden_layer_sizes=(), solver="exact", objective="MSE() + 0.1 * L2()").fit(x)
    assert not model.density_.diagonal
    model.inference = "map"  # what a model is set to when it is saved says nothing of its fit
    model.save(tmp_path / "model")
    again = load(tmp_path / "model")
    assert again.density_.whiten.shape == (WIDE + 2, WIDE + 2)


def test_what_is_told_of_a_fit_does_not_depend_on_how_many_rows_are_looked_at_together(rows, monkeypatch):
    whole = small(rows, code_activation="TopK(4)")
    monkeypatch.setattr(record, "WIDE", 10)
    monkeypatch.setattr(record, "rows_a_block", lambda width: 7)
    parts = small(rows, code_activation="TopK(4)")
    fitted, again = whole._model.fitted, parts._model.fitted
    assert (fitted.score, fitted.train_score, fitted.filler) == (again.score, again.train_score, again.filler)
    np.testing.assert_allclose(whole.codec_.rms, parts.codec_.rms, rtol=1e-6)
    np.testing.assert_allclose(whole.score_samples(rows[:50]), parts.score_samples(rows[:50]), rtol=1e-6)
