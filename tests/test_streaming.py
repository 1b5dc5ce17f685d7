"""Rows that are read once, a block at a time: from memory or from a file, into the same model."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from threadpoolctl import threadpool_info, threadpool_limits

import retell.moments
import retell.rows.blocks
import retell.scaled
from retell import Autoencoder
from retell.moments import Moments
from retell.rows.blocks import blocks, release, take
from retell.scaled import Rows
from retell.scaling import Scaling
from retell.solvers.exact import Spectrum
from retell.solvers.sketch import sketch
from retell.spread import calm

LINEAR = {"hidden_layer_sizes": (), "random_state": 0}


def draw(n=3000, d=12, seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(n, d)) * np.linspace(3, 1, d) @ np.linalg.qr(rng.normal(size=(d, d)))[0] + rng.normal(
        size=d
    )
    return rows.astype(dtype)


def mapped(folder, rows, mode="r"):
    np.save(folder / "rows.npy", rows)
    return np.load(folder / "rows.npy", mmap_mode=mode)


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of a hundred rows or so, so that few rows are many blocks."""
    monkeypatch.setattr(retell.rows.blocks, "CELLS", 1200)


# --- moments


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_moments_are_numpys(small_blocks, dtype):
    rows = draw(dtype=dtype)
    rows[:, 3] = 7.0
    rows[:, 5] = np.sort(rows[:, 5]) * 50  # blocks whose means lie far apart
    keep = np.array([0, 99, 100, 1234, 2999])
    found = Moments.of(rows, keep)
    exact = rows.astype(np.float64)
    np.testing.assert_allclose(found.mean, exact.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.spread, exact.std(0), rtol=1e-11)
    np.testing.assert_allclose(found.S, np.cov(exact.T, bias=True), rtol=1e-10, atol=1e-12)
    np.testing.assert_array_equal(found.kept, rows[keep])
    np.testing.assert_array_equal([found.low, found.high], [rows.min(0), rows.max(0)])
    assert found.spread[3] == 0
    assert not found.holes


@pytest.fixture
def shared(monkeypatch):
    """For each stretch of rows that is looked at: whether other threads look at others meanwhile."""
    seen, real = [], retell.moments._Look.__init__

    def noted(self, *asked, shared):
        seen.append(shared)
        real(self, *asked, shared=shared)

    monkeypatch.setattr(retell.moments._Look, "__init__", noted)
    return seen


@pytest.fixture
def count_threads():
    """Sets how many threads there are, for a test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_moments_do_not_depend_on_the_number_of_threads(small_blocks, shared, count_threads, dtype):
    rows, found = draw(dtype=dtype) + dtype(3), []
    for count in (1, 2, 3):
        count_threads(count)
        found.append(Moments.of(rows, np.arange(7), products=dtype))
    assert shared == [True] * 8 * 3
    for other in found[1:]:
        np.testing.assert_array_equal(found[0].S, other.S)
        np.testing.assert_array_equal(found[0].mean, other.mean)
    np.testing.assert_array_equal(found[0].S, found[0].S.T)


def test_wide_rows_are_left_to_the_threads_of_the_algebra_where_those_are_more(small_blocks, shared, count_threads):
    rows, found = draw(300, 520), []
    for count in (4, 5):
        count_threads(count)
        found.append(Moments.of(rows, np.arange(0)).S)
    assert shared == [True] * 4 + [False]
    np.testing.assert_allclose(*found, rtol=1e-10, atol=1e-12)


def test_an_infinite_cell_is_named_whichever_thread_finds_it(small_blocks):
    rows = draw()
    rows[[1200, 2900], [3, 1]] = np.inf
    with pytest.raises(ValueError, match="row 1200, column 3"):
        Moments.of(rows, np.arange(0))


@pytest.mark.parametrize("every", [7, 250])
def test_correlations_of_some_rows_with_the_variances_of_all(small_blocks, every):
    rows = draw(30_000)
    rows[:, 3], rows[:, 5] = 7.0, 0.0
    rows[1, 5] = 1.0  # constant in the rows that are looked at
    found, whole = (Moments.of(rows, np.arange(0), every=some) for some in (every, 1))
    np.testing.assert_allclose(found.mean, whole.mean, rtol=1e-12)
    np.testing.assert_allclose(found.spread, whole.spread, rtol=1e-9)
    np.testing.assert_allclose(np.diag(found.S), whole.spread**2, rtol=1e-9)
    varied = [i for i in range(12) if i not in (3, 5)]
    some = np.corrcoef(rows[::every, varied].T)
    np.testing.assert_allclose(found.S[varied][:, varied] / np.outer(*[found.spread[varied]] * 2), some, atol=1e-9)


def test_products_in_float32_are_right_to_their_digits(small_blocks):
    rows = draw(dtype=np.float32) + np.float32(3)
    rows[:, 5] = np.sort(rows[:, 5]) * 50
    found, exact = (Moments.of(rows, np.arange(0), products=p) for p in (np.float32, np.float64))
    scale = np.outer(exact.spread, exact.spread)
    assert 0 < np.abs((found.S - exact.S) / scale).max() < 2e-6


@pytest.mark.parametrize("power", [-310, -200, -30, 30, 150, 300])
@pytest.mark.parametrize("every", [1, 2])
def test_moments_of_extreme_values(small_blocks, power, every):
    rows = np.repeat(draw(), every, axis=0) * 10.0**power
    found = Moments.of(rows, np.arange(0), every=every)
    with np.errstate(all="ignore"):
        scaling = Scaling(found.mean, found.spread, np.zeros(12))
    expected = np.corrcoef(draw().T)
    tolerance = 1e-4 if power == -310 else 1e-9  # subnormal numbers have few digits
    np.testing.assert_allclose(found.scaled(rows, scaling), expected, atol=tolerance)


def test_moments_of_rows_with_holes_are_those_of_the_seen_cells(small_blocks):
    rows = np.where(np.random.default_rng(1).random((3000, 12)) < 0.1, np.nan, draw())
    rows[:500] = draw()[:500]  # the first blocks have none
    found = Moments.of(rows, np.arange(0))
    assert found.holes
    assert found.S is None
    np.testing.assert_allclose(found.mean, np.nanmean(rows, 0), rtol=1e-11)
    np.testing.assert_allclose(found.spread, np.nanstd(rows, 0), rtol=1e-11)
    np.testing.assert_array_equal([found.low, found.high], [np.nanmin(rows, 0), np.nanmax(rows, 0)])


@pytest.mark.parametrize(("steep", "passes"), [(False, 1), (True, 2)])
def test_float32_products_are_taken_only_where_the_spectrum_allows(monkeypatch, steep, passes):
    rows = draw(dtype=np.float32)
    rows = (rows[:, :3] @ rows[:3, :3] @ rows[:3] + 1e-4 * rows).astype(np.float32) if steep else rows
    types, real = [], Moments.of.__func__
    monkeypatch.setattr("retell.survey.LONG", 1)
    monkeypatch.setattr(
        Moments, "of", classmethod(lambda cls, *a, **k: types.append(k.get("products")) or real(cls, *a, **k))
    )
    model = Autoencoder(5, scale=None, **LINEAR).fit(rows)
    assert len(types) == passes
    assert types[0] == np.float32
    expected = PCA(5).fit(rows.astype(np.float64))
    x = rows.astype(np.float64) - expected.mean_
    errors = [((x - x @ V.T @ V) ** 2).sum() for V in (model.components_, expected.components_)]
    assert errors[0] == pytest.approx(errors[1], rel=1e-6)


def test_few_axes_are_those_of_the_whole_decomposition():
    S = np.cov(draw(500, 60).T, bias=True)
    S[7], S[:, 7] = 0.0, 0.0
    whole, few = Spectrum.of(S), Spectrum.of(S, 5)
    np.testing.assert_allclose(few.values, whole.values[:5], rtol=1e-12)
    np.testing.assert_allclose(few.axes, whole.axes[:, :5], atol=1e-10)
    np.testing.assert_allclose(few.times(few.axes @ np.eye(5, 2)), S @ few.axes[:, :2], atol=1e-10)


# --- rows, scaled when they are taken


@pytest.mark.parametrize("given", [np.float32, np.float64])
@pytest.mark.parametrize("wanted", [torch.float32, torch.float64])
@pytest.mark.parametrize("shift", [0.0, 5.0, 1e7])
@pytest.mark.parametrize("file", [False, True])
@pytest.mark.parametrize("few", [0, 2**22])
def test_rows_are_the_scaled_rows(tmp_path, monkeypatch, given, wanted, shift, file, few):
    rows = (draw(2500) + shift).astype(given)
    rows[3, 4] = np.nan
    scaling = Scaling.fit(rows, "standard")
    held = mapped(tmp_path, rows) if file else rows
    numbers = np.random.default_rng(0).permutation(2500)[:2100]
    rounding = 1e-12 if wanted == torch.float64 else 1e-5
    for some, x in ((None, scaling.to(rows)), (numbers, scaling.to(rows[numbers]))):
        monkeypatch.setattr(retell.scaled, "FEW", few)
        ours = Rows(held, scaling, torch.zeros(0, dtype=wanted), some)
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
        assert (len(ours), ours.shape, ours.dtype, ours.device.type) == (len(x), x.shape, wanted, "cpu")
        for index in (order, slice(10, 20), slice(None), slice(2000, 5000)):
            taken = ours[index] if isinstance(index, slice) else ours.take(index)
            assert taken.dtype == wanted
            np.testing.assert_allclose(taken.numpy(), x[index], rtol=rounding, atol=rounding)
        np.testing.assert_array_equal(np.concatenate(list(ours.blocks(700))), x)
    np.testing.assert_array_equal(held, rows)


def test_a_start_from_few_rows_is_pca_of_all(monkeypatch):
    """A sample's mean is not that of all rows, and must not move the biases."""
    rows = np.random.default_rng(0).lognormal(sigma=1.5, size=(3000, 12))
    for module in ("survey", "plan", "record"):
        monkeypatch.setattr(f"retell.{module}.enough", lambda _: 40)
    settings = {"hidden_layer_sizes": (8,), "learning_rate_init": 1e-9, "max_iter": 1, "scale": None, "random_state": 0}
    made = Autoencoder(3, **settings).fit(rows).reconstruct(rows)
    pca = PCA(3).fit(rows)
    np.testing.assert_allclose(made, pca.inverse_transform(pca.transform(rows)), atol=1e-4 * rows.std())


@pytest.mark.parametrize("width", [8, 4096])
def test_the_threads_of_algebra_are_given_back(width):
    def counts():
        return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]

    before = counts()
    with calm(width):
        assert counts() == ([1] * len(before) if width == 8 else before)
    assert counts() == before


def test_who_goes_last_gives_the_threads_of_algebra_back():
    with threadpool_limits(2, user_api="blas"):
        first, second = calm(8), calm(8)
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"} == {1}
        second.__exit__(None, None, None)
        assert {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"} == {2}


# --- fits of files


@pytest.mark.parametrize("settings", [{}, {"early_stopping": False}, {"corruption": "Gaussian(0.3)"}], ids=str)
def test_a_closed_form_reads_its_rows_once(tmp_path, monkeypatch, small_blocks, settings):
    rows = draw(dtype=np.float32)
    expected = Autoencoder(4, **LINEAR, **settings).fit(rows)
    file, read = mapped(tmp_path, rows), []
    real = retell.rows.blocks.blocks

    def counted(rows, *where):
        for start, block in real(rows, *where):
            read.append(block.size)
            yield start, block

    for module in ("moments", "survey", "scaling", "scaled", "training"):
        monkeypatch.setattr(f"retell.{module}.blocks", counted)
    for module in ("survey", "scaled"):
        monkeypatch.setattr(f"retell.{module}.take", lambda *_: pytest.fail("rows are read again, by number"))
    model = Autoencoder(4, **LINEAR, **settings).fit(file)
    assert sum(read) == rows.size
    assert model.solver_ == "exact"
    np.testing.assert_allclose(model.components_, expected.components_, atol=1e-10)
    np.testing.assert_allclose(model.density_.noise, expected.density_.noise, rtol=1e-10)
    assert model.pca_score_ == pytest.approx(expected.pca_score_, rel=1e-10)
    assert model.best_loss_ == pytest.approx(expected.best_loss_, rel=1e-10)


@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize("settings", [{}, {"start": "random", "linear_path": False}, {"objective": "BCE()"}], ids=str)
def test_a_net_learns_the_same_from_a_file(tmp_path, settings, holes):
    rows = draw(600, 6)
    rows = 1 / (1 + np.exp(-rows)) if "objective" in settings else rows
    rows = np.where(np.random.default_rng(1).random(rows.shape) < 0.1, np.nan, rows) if holes else rows
    given = {"hidden_layer_sizes": (8,), "max_iter": 3, "random_state": 0, **settings}
    ours, theirs = (Autoencoder(2, **given).fit(x) for x in (mapped(tmp_path, rows), rows))
    assert ours.loss_curve_ == pytest.approx(theirs.loss_curve_, rel=1e-10)
    np.testing.assert_allclose(ours.transform(rows), theirs.transform(rows), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("value", [np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_an_infinity_in_the_middle_of_a_file_is_named(tmp_path, small_blocks, value, dtype):
    rows = draw(dtype=dtype)
    rows[:50, 2] = np.nan
    rows[1717, 8] = value
    with pytest.raises(ValueError, match=r"infinite value \(inf\) in row 1717, column 8"):
        Autoencoder(4, **LINEAR).fit(mapped(tmp_path, rows))


def test_a_cell_outside_the_support_is_named(tmp_path, small_blocks):
    rows = np.random.default_rng(0).random((3000, 12))
    rows[1717, 8] = 1.5
    with pytest.raises(ValueError, match=r"BCE\(\) needs values in \[0, 1\], but row 1717, column 8 is 1.5"):
        Autoencoder(4, objective="BCE()", **LINEAR).fit(mapped(tmp_path, rows))


def test_what_was_written_to_a_private_map_is_kept(tmp_path):
    """A copy-on-write map holds the only copy of what was written to it."""
    file = mapped(tmp_path, draw(), mode="c")
    file[5] = 3.0
    Autoencoder(4, **LINEAR).fit(file)
    assert (file[5] == 3.0).all()
    changed = mapped(tmp_path, draw(), mode="r+")
    changed[5] = 3.0
    Autoencoder(4, **LINEAR).fit(changed)
    assert (changed[5] == 3.0).all()


def test_blocks_and_take_give_pages_back(tmp_path):
    rows = draw(5000, 40)
    file = mapped(tmp_path, rows)
    np.testing.assert_array_equal(np.concatenate([block for _, block in blocks(file, 700)]), rows)
    numbers = np.random.default_rng(0).permutation(5000)
    np.testing.assert_array_equal(take(file, numbers), rows[numbers])
    for some in (file, file[3:7], file[::2], rows, file[:0]):
        before = some.copy()
        release(some)
        np.testing.assert_array_equal(some, before)


MEMORY = """
import resource, sys
import numpy as np
from retell import Autoencoder
small = np.random.default_rng(0).normal(size=(500, 256)).astype(np.float32)
settings = {"hidden_layer_sizes": (), "random_state": 0}
Autoencoder(8, **settings).fit(small)
X = np.load(sys.argv[1], mmap_mode="r")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
Autoencoder(8, **settings).fit(X)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def test_a_fit_of_a_large_file_stays_small(tmp_path):
    """300 MB on disk."""
    file = np.lib.format.open_memmap(tmp_path / "large.npy", "w+", np.float32, (300_000, 256))
    block = draw(10_000, 256, dtype=np.float32)
    for i in range(0, len(file), len(block)):
        file[i : i + len(block)] = block
    file.flush()
    ran = subprocess.run(
        [sys.executable, "-c", MEMORY, tmp_path / "large.npy"], capture_output=True, text=True, timeout=120, check=True
    )
    assert float(ran.stdout) < 100


# --- randomised axes


def test_randomised_axes_are_within_one_percent_of_pca():
    rng = np.random.default_rng(0)
    n, d, k = 2000, 400, 10
    rows = rng.normal(size=(n, d)) * np.arange(1, d + 1) ** -0.5 @ np.linalg.qr(rng.normal(size=(d, d)))[0]
    scaling = Scaling.fit(rows, "standard")
    x = scaling.to(rows)
    like = torch.zeros(0, dtype=torch.float64)
    ours = sketch(Rows(rows, scaling, like), scaling.centre, x.var(0), k, torch.Generator().manual_seed(0))
    total, best = (x**2).sum(), PCA(k).fit(x).singular_values_
    found = ((x @ ours.axes) ** 2).sum()
    assert total - found <= 1.01 * (total - (best**2).sum())
    np.testing.assert_allclose(ours.axes.T @ ours.axes, np.eye(k), atol=1e-12)
    np.testing.assert_allclose(ours.images, np.cov(x.T, bias=True) @ ours.axes, atol=1e-10)


SPARSE = {"code_activation": "TopK(4)", "max_iter": 1, "hidden_layer_sizes": (), "random_state": 0}


@pytest.mark.parametrize(
    ("settings", "some"),
    [({**SPARSE, "n_components": 320}, True), ({**SPARSE, "n_components": 20}, False), ({"n_components": 20}, False),
     ({"n_components": 0.9}, False), ({**SPARSE, "n_components": 0.99, "code_activation": "TopK(1)"}, False)],
    ids=["wide and sparse", "sparse", "linear", "share", "sparse share"],
)  # fmt: skip
def test_a_covariance_of_some_rows_where_only_factors_are_made_of_it(monkeypatch, settings, some):
    rows = draw(4000, 3) @ draw(3, 300) + 0.3 * draw(4000, 300, seed=1)
    asked, real = [], Moments.of.__func__
    monkeypatch.setattr("retell.survey.SAMPLE", 1000)
    monkeypatch.setattr(
        Moments, "of", classmethod(lambda cls, *a, **k: asked.append(k.get("every")) or real(cls, *a, **k))
    )
    model = Autoencoder(**{"hidden_layer_sizes": (), "random_state": 0, **settings}).fit(rows)
    assert asked == [4 if some else 1]
    monkeypatch.setattr("retell.survey.SAMPLE", 10**9)
    whole = Autoencoder(**{"hidden_layer_sizes": (), "random_state": 0, **settings}).fit(rows)
    np.testing.assert_array_equal(model.components_, whole.components_)
    assert model.pca_score_ == whole.pca_score_
    if some:
        assert model.pca_score_ == 1
        x = model.scaling_.to(rows) - model.scaling_.centre
        holed = np.where(np.random.default_rng(0).random(x.shape) < 0.1, np.nan, x)
        errors = [np.square(one._factors.complete(holed) - x).mean() for one in (model, whole)]
        assert errors[0] <= 1.05 * errors[1]
        assert errors[1] < 0.1 * np.square(x).mean()


def test_many_columns_are_fitted_without_their_covariance(monkeypatch):
    monkeypatch.setattr("retell.survey.WIDE", 100)
    rows = draw(800, 300)
    wide = Autoencoder(5, **LINEAR).fit(rows)
    monkeypatch.undo()
    narrow = Autoencoder(5, **LINEAR).fit(rows)
    assert 1 - wide.score(rows) <= 1.01 * (1 - narrow.score(rows))
    assert wide.pca_score_ == pytest.approx(narrow.pca_score_, abs=0.01)
    assert np.isfinite(wide.score_samples(rows)).all()
