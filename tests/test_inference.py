"""Rows through a fitted model: in blocks, on several threads, from and to files, in constant memory."""

import os
import platform
import subprocess
import sys
import threading
from copy import copy, deepcopy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

import retell.inference
from retell import Autoencoder
from retell.codec import Codec
from retell.inference import Inference, Run, Stack, has_onednn
from retell.networks import mirror, mlp
from retell.seeds import generator
from retell.spread import spread

D, K = 20, 3
SETTINGS = {
    "default": {"hidden_layer_sizes": (12,)},
    "plain": {"hidden_layer_sizes": (12,), "activation": "relu", "code_activation": "ReLU()", "linear_path": False},
    "exact": {"hidden_layer_sizes": ()},
    "top-k": {"n_components": 8, "code_activation": "TopK(2)"},
}


@pytest.fixture(scope="module")
def rows():
    draw = np.random.RandomState(0)
    return draw.randn(40_000, 4) @ draw.randn(4, D) + 0.1 * draw.randn(40_000, D) + 10 * draw.randn(D)


@pytest.fixture(scope="module", params=SETTINGS)
def model(request, rows):
    return Autoencoder(**{"n_components": K, "max_iter": 2, "random_state": 0, **SETTINGS[request.param]}).fit(
        rows[:400]
    )


def holed(rows):
    return np.where(np.random.RandomState(1).rand(*rows.shape) < 0.1, np.nan, rows)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize("alike", [True, False])
def test_many_rows_have_the_bits_of_few(model, rows, two_threads, monkeypatch, dtype, holes, alike):
    """Products of fewer rows, and packed ones of many, are used where they have the same bits."""
    used, fitted = set(), Stack.fitted
    monkeypatch.setattr(retell.inference, "MUCH", 2**20)
    monkeypatch.setattr(retell.inference, "ALIKE", set())
    monkeypatch.setattr(Stack, "fitted", lambda self, *n: (used.add((stack := fitted(self, *n)).block), stack)[1])
    if not alike:
        monkeypatch.setattr(Stack, "has_alike", lambda *_: False)
    x, model = (holed(rows) if holes else rows).astype(dtype), deepcopy(model)
    own = model._reader.own
    whole = {own.encoder.block, own.decoder.block}
    for method in (model.transform, model.reconstruct, model.score_samples):
        many = method(x)
        assert np.isfinite(many).all()
        for part in (slice(0, 1), slice(39_990, None), slice(8_191, 8_194), slice(7, 107), slice(20_000, 21_003)):
            assert method(x[part]).tobytes() == many[part].tobytes()
    packs = has_onednn() and own.dtype == np.float32
    assert (used <= whole) == (not alike)
    packed = own.encoder.packed, own.decoder.packed
    assert [it.block for it in packed] == [32] * 2 if alike and packs else list(packed) == [own.encoder, own.decoder]


def test_products_of_other_sizes_are_those_of_the_same_bits(model, monkeypatch):
    monkeypatch.setattr(retell.inference, "ALIKE", set())
    encoder = deepcopy(model)._reader.own.encoder
    for n, block in ((1, 32), (33, 64), (100, 128), (10**5, encoder.block)):
        other = copy(encoder)
        other.block = block
        assert encoder.fitted(n, n).block == (block if encoder.has_alike(other, (block,)) else encoder.block)
    packs = encoder.fitted(5, 10**8) is encoder.packed
    assert packs == (has_onednn() and encoder.like.dtype == torch.float32)
    few = encoder.sized(32)
    encoder.products[0].W[0, 0] = np.nan  # is equal to nothing
    assert not encoder.has_alike(few, (32,))
    retell.inference.ALIKE.clear()
    del encoder.packed
    assert encoder.packed is encoder


@pytest.mark.parametrize("linear_path", [True, False])
def test_wide_rows_are_read_as_they_lie_and_multiplied_by_packed_matrices(two_threads, monkeypatch, linear_path):
    draw = np.random.default_rng(0)
    x = (draw.standard_normal((9_000, 4)) @ draw.standard_normal((4, 304)) + draw.standard_normal(304)).astype("f")
    model = Autoencoder(K, hidden_layer_sizes=(256,), linear_path=linear_path, max_iter=2, random_state=0).fit(x[:300])
    encoder, methods = model._reader.own.encoder, (model.transform, model.reconstruct, model.score_samples)
    assert encoder.plain
    assert [product.packed is not None for product in encoder.products] == [has_onednn(), False] + [False] * linear_path
    run, wide = Run(encoder, len(x)), torch.from_numpy(x[: encoder.block])
    run(wide)
    assert run.read(encoder, wide) is wide
    x[5_000:, 7] = np.nan  # met while others are read as they lie
    kept = x.copy()
    for method in methods:
        many = method(x)
        for part in (slice(0, 1), slice(8_990, None), slice(4_990, 5_010), slice(1_000, 3_003)):
            assert method(x[part]).tobytes() == many[part].tobytes()
    assert np.array_equal(x, kept, equal_nan=True)
    monkeypatch.setattr(retell.inference, "PACKED", (2**62, 0))
    monkeypatch.setattr(retell.inference, "CLOSE", -1)
    monkeypatch.setattr(retell.inference, "ALIKE", set())
    other = deepcopy(model)
    others = other.transform, other.reconstruct, other.score_samples
    for method, same, most in zip(methods, others, (1e-5, 1e-5, 1e-3), strict=True):
        many = method(x)  # scores divide by what is left, which is little here
        assert np.abs(same(x) - many).max() < most * many.std()
    encoder = other._reader.own.encoder
    assert not encoder.plain
    assert not any(product.packed is not None for product in encoder.products)


@pytest.mark.parametrize("unit", [1.0, 1e6, 1e-6])
def test_few_rows_have_the_bits_of_many_whatever_their_unit(unit):
    """A bias beside products that are far smaller would hide what products of other sizes do."""
    x = (np.random.default_rng(0).standard_normal((600, 784)) * unit).astype("f")
    settings = {"hidden_layer_sizes": (16,), "linear_path": False, "max_iter": 1, "random_state": 0}
    model = Autoencoder(8, **settings).fit(x)
    h = model.transform(x)
    for n in (1, 20, 32, 50, 64, 100):
        assert model.transform(x[:n]).tobytes() == h[:n].tobytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("spread", [1.0, 1e-2, 1e-6])
def test_a_shift_is_in_the_biases_only_where_codes_lose_nothing_by_it(dtype, spread):
    draw = np.random.default_rng(0)
    x = draw.standard_normal((600, 4)) @ draw.standard_normal((4, 32)) + 0.1 * draw.standard_normal((600, 32))
    x = (1.0 + spread * x).astype(dtype)
    model = Autoencoder(K, scale=None, hidden_layer_sizes=(12,), max_iter=2, random_state=0).fit(x)
    with torch.no_grad():
        h = deepcopy(model.codec_).double().encode(torch.from_numpy(model.scaling_.to(x))).numpy()
    assert np.abs(model.transform(x) - h).max() < 5e-6 * h.std()
    assert model._reader.own.encoder.plain == (spread == 1)


def test_a_shift_that_adds_up_is_not_in_the_biases():
    codec = Codec(f := mlp([1024, 4]), lambda a: a, mirror(f), torch.zeros(1024))
    shift, factor = np.full(1024, 2.0), np.ones(1024)
    weight = f.layers[0].weight
    with torch.no_grad():
        weight.normal_(generator=generator(0))
        assert Inference(codec, shift, factor, 1.0).encoder.plain
        assert not Inference(codec, shift, factor).encoder.plain
        weight.abs_()
        assert not Inference(codec, shift, factor, 1.0).encoder.plain


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="packed matrices are known on x86")
def test_onednn_is_there_where_torch_brings_it():
    assert has_onednn() == torch.backends.mkldnn.is_available()
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        assert has_onednn.__wrapped__() == has_onednn()
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize(
    "calls", [{}, {"_reorder_linear_weight": lambda W, n: W, "_linear_pointwise": lambda *_: torch.zeros(64, 64)}]
)
def test_an_inner_call_that_is_gone_or_has_changed_is_not_used(monkeypatch, calls):
    monkeypatch.setattr(retell.inference, "ONEDNN", SimpleNamespace(**calls))
    assert not has_onednn.__wrapped__()


def test_thread_counts_do_not_change_bits(model, rows, two_threads):
    first = model.transform(rows)
    torch.set_num_threads(1)
    assert model.transform(rows).tobytes() == first.tobytes()


def test_codes_are_those_of_the_codec(model, rows):
    x = torch.from_numpy(model.scaling_.to(rows[:500])).to(model.codec_.centre.dtype)
    with torch.no_grad():
        expected = model.codec_.encode(x).numpy()
    for dtype in (np.float32, np.float64):
        h = model.transform(rows[:500].astype(dtype))
        assert h.dtype == dtype
        np.testing.assert_allclose(h, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("linear_path", [False, True])
@pytest.mark.parametrize(
    ("shift", "factor"),
    [(0.0, 1.0), (1e6, 1.0), (0.0, 1e12), (1e-200, 1e-200), (1e250, 1e250)],
    ids=["plain", "far", "large", "tiny", "huge"],
)
def test_scaling_inside_the_matrices_is_scaling(linear_path, shift, factor):
    f = mlp([D, 12, K], "gelu", linear_path=linear_path)
    codec = Codec(f, lambda a: a, mirror(f), torch.zeros(D)).double()
    draw = generator(0)
    with torch.no_grad():
        for value in (*codec.parameters(), codec.centre):
            value.normal_(generator=draw)
        if linear_path:
            for name, value in {"low": -1.0, "high": 0.8, "into": 0.7, "out": 1.9}.items():
                getattr(f, name).fill_(value)
    x = holed(np.random.RandomState(0).randn(100, D))
    own = x * factor + shift
    x = (own - shift) / factor  # with the rounding that rows in their own units have
    with torch.no_grad():
        expected = codec.encode(torch.from_numpy(x)).numpy()
    whole = np.full(D, shift), np.full(D, factor)
    np.testing.assert_allclose(Inference(codec, *whole).encode(own), expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(Inference(codec.float(), *whole).encode(own), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["transform", "reconstruct", "inverse_transform"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_out_is_written_and_given_back(model, rows, method, dtype, tmp_path):
    given = model.transform(rows) if method == "inverse_transform" else rows
    expected = getattr(model, method)(given)
    shape = expected.shape
    for out in (np.empty(shape, dtype), np.lib.format.open_memmap(tmp_path / "out.npy", "w+", dtype, shape)):
        assert getattr(model, method)(given, out=out) is out
        assert out.tobytes() == expected.astype(dtype).tobytes()
    del out
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), expected.astype(dtype))


def test_out_that_does_not_fit_is_refused(model, rows):
    shape = (50, model.n_components_)
    locked = np.empty(shape)
    locked.flags.writeable = False
    for out in (np.empty((49, shape[1])), np.empty(shape, int), locked, [1.0], "codes.npy"):
        with pytest.raises(ValueError, match=r"out must be a writeable array .* of shape \(50, \d\), got"):
            model.transform(rows[:50], out=out)


@pytest.mark.parametrize("method", ["transform", "reconstruct", "score", "score_samples"])
@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_the_first_infinity_is_named(model, rows, two_threads, method, value):
    x = rows.copy()
    x[31_234, 7] = x[17_001, 5] = x[39_999, 0] = value
    before = threading.active_count()
    with pytest.raises(ValueError, match="row 17001, column 5"):
        getattr(model, method)(x)
    assert threading.active_count() == before
    assert torch.get_num_threads() == 2


def test_the_first_bad_code_is_named(model, rows):
    h = model.transform(rows)
    h[20_001, 1] = np.inf
    with pytest.raises(ValueError, match=r"H has an infinite value .* row 20001, column 1"):
        model.inverse_transform(h)
    h[11_111, 2] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        model.inverse_transform(h)


def test_every_block_is_worked_once_and_the_first_failure_is_raised(two_threads):
    seen = np.zeros(1000, int)

    def count(i, j):
        seen[i:j] += 1

    spread(lambda: count, 1000, 7)
    assert (seen == 1).all()

    def fail(i, j):
        if i >= 210:
            raise ValueError(f"block {i}")

    for _ in range(20):
        with pytest.raises(ValueError, match=r"^block 210$"):
            spread(lambda: fail, 1000, 7)
    assert torch.get_num_threads() == 2


def test_threads_do_not_linger(model, rows, two_threads):
    before = threading.active_count()
    model.transform(rows)
    assert threading.active_count() == before
    counts = []
    late = threading.Thread(target=lambda: counts.append(torch.get_num_threads()))
    late.start()
    late.join()
    assert (torch.get_num_threads(), counts) == (2, [2])


def test_a_model_may_be_used_by_several_threads(model, rows):
    expected = model.transform(rows)
    found = [None] * 4

    def use(i):
        found[i] = model.transform(rows[i::4])

    users = [threading.Thread(target=use, args=(i,)) for i in range(4)]
    for user in users:
        user.start()
    for user in users:
        user.join()
    for i in range(4):
        assert found[i].tobytes() == expected[i::4].tobytes()


def test_rows_are_left_as_they_are(model, rows):
    x = holed(rows[:3000])
    before = x.tobytes()
    x.flags.writeable = False
    model.transform(x)
    model.score_samples(x)
    assert x.tobytes() == before


MEMORY = """
import resource, sys
import numpy as np
from retell import load

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

model = load("model")
x = np.load("x.npy", mmap_mode="r")
model.transform(x[:20_000])
model.score_samples(x[:20_000])
before = peak()
codes = np.lib.format.open_memmap("codes.npy", "w+", x.dtype, (len(x), model.n_components_))
model.transform(x, out=codes)
print(peak() - before)
rows = np.lib.format.open_memmap("rows.npy", "w+", x.dtype, x.shape)
model.inverse_transform(codes, out=rows)
print(peak() - before)
assert np.isfinite(model.score_samples(x)).all()
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kB on Linux")
def test_files_larger_than_they_may_be_in_memory(tmp_path):
    model = Autoencoder(16, hidden_layer_sizes=(32,), max_iter=1, random_state=0).fit(load_digits().data)
    model.save(tmp_path / "model")
    x = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, (600_000, 64))
    for i in range(0, len(x), 20_000):
        x[i : i + 20_000] = np.random.RandomState(i).rand(20_000, 64)
    del x
    done = subprocess.run(
        [sys.executable, "-c", MEMORY], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    added = [float(line) for line in done.stdout.split()]
    assert max(added) < 40, f"{added} MB beside 150 MB of rows, 40 MB of codes and 150 MB of reconstructions"
