"""Same seed, same bits; nothing global is touched; a row's result depends on the row alone."""

import itertools
import os
import random
import statistics
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits, load_wine
from sklearn.decomposition import PCA

import retell.inference
from retell import Autoencoder, Identity, Sigmoid, TopK, spread, training
from retell.codec import Codec
from retell.density import Density
from retell.inference import Inference, has_onednn
from retell.networks import mlp
from retell.seeds import generator

SETTINGS = {
    "exact": {"hidden_layer_sizes": ()},
    "linear descend": {"hidden_layer_sizes": (), "solver": "descend"},
    "hidden": {"hidden_layer_sizes": (8,)},
    "plain": {"hidden_layer_sizes": (8,), "linear_path": False},
    "random start": {"hidden_layer_sizes": (8,), "start": "random"},
    "tied": {"tied": True, "hidden_layer_sizes": (8,)},
    "float64": {"precision": "float64", "hidden_layer_sizes": (8,)},
    "sparse": {"objective": "MSE() + 0.001 * L1()", "code_activation": "ReLU()"},
    "top-k": {"code_activation": "TopK(2)", "n_components": 8},
    "gaussian": {"corruption": "Gaussian(0.1)", "solver": "descend"},
    "mask": {"corruption": "Mask(0.3)"},
    "contractive": {"objective": "MSE() + 0.1 * Contractive()"},
    "schedule": {"objective": "MSE() + Warmup(0.1, 20) * L1()"},
}


@pytest.fixture(scope="module")
def rows():
    return load_wine().data


def make(setting, **given):
    return Autoencoder(**{"n_components": 3, "max_iter": 3, "random_state": 0, **SETTINGS[setting], **given})


def bits(model):
    """Everything a fit has learned."""
    weights = [value.detach().numpy().tobytes() for value in model.codec_.state_dict().values()]
    density = [getattr(model.density_, name).tobytes() for name in Density.__dataclass_fields__]
    return weights, density, model.loss_curve_, model.validation_scores_, model.history_


@pytest.mark.parametrize("setting", SETTINGS)
def test_same_seed_same_bits(rows, setting):
    model = make(setting).fit(rows)
    first = bits(model)
    assert bits(make(setting).fit(rows)) == first
    assert bits(model.fit(rows)) == first, "a refit is a fit"
    holes = np.where(np.random.RandomState(0).rand(*rows.shape) < 0.1, np.nan, rows)
    model.fit(holes)
    assert bits(model.fit(rows)) == first, "nothing is left over from another fit"


@pytest.mark.parametrize("setting", sorted(SETTINGS.keys() - {"exact"}))
def test_another_seed_other_bits(rows, setting):
    assert bits(make(setting).fit(rows)) != bits(make(setting, random_state=1).fit(rows))


@pytest.mark.parametrize("setting", ["hidden", "mask", "gaussian", "exact"])
def test_no_seed_is_a_fresh_seed(rows, setting):
    split = [make(setting, random_state=None).fit(rows).density_.noise.tobytes() for _ in range(2)]
    assert split[0] != split[1]


def test_a_random_state_is_drawn_from(rows):
    model, again = (make("hidden", random_state=np.random.RandomState(5)).fit(rows) for _ in range(2))
    assert bits(model) == bits(again)
    first = bits(model)
    assert bits(model.fit(rows)) != first, "the second fit draws on"


def test_layout_and_container_do_not_matter(rows):
    first = bits(make("hidden").fit(rows))
    backwards = np.ascontiguousarray(rows[::-1])[::-1]
    for same in (np.asfortranarray(rows), backwards, rows.tolist(), rows.astype(">f8")):
        assert bits(make("hidden").fit(same)) == first


@pytest.mark.parametrize("pair", [("hidden", "mask"), ("gaussian", "top-k"), ("mask", "mask")])
def test_interleaved_fits_are_two_fits(rows, pair):
    apart = [bits(make(setting, random_state=seed).fit(rows)) for seed, setting in enumerate(pair)]
    models = [make(setting, random_state=seed) for seed, setting in enumerate(pair)]
    turns = [model.fit_epochs(rows) for model in models]
    while turns:
        turns = [turn for turn in turns if next(turn, None) is not None]
    assert [bits(model) for model in models] == apart


def test_interleaved_partial_fits_are_two(rows):
    def model(seed):
        return make("mask", random_state=seed)

    apart = [model(seed).partial_fit(rows).partial_fit(rows[::2]) for seed in (0, 1)]
    together = [model(seed) for seed in (0, 1)]
    for some in (rows, rows[::2]):
        for one in together:
            one.partial_fit(some)
    assert [bits(one) for one in together] == [bits(one) for one in apart]


def global_states():
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002  # the legacy generator is what is watched
    return random.getstate(), (kind, keys.tobytes(), *rest), torch.get_rng_state().numpy().tobytes()


@pytest.mark.parametrize("seed", [0, None])
@pytest.mark.parametrize("setting", SETTINGS)
def test_global_generators_are_untouched(rows, setting, seed, tmp_path):
    before = global_states()
    model = make(setting, random_state=seed).fit(rows)
    h = model.transform(rows)
    model.inverse_transform(h)
    model.reconstruct(rows)
    model.reconstruct(np.where(rows > 500, np.nan, rows), keep_seen=True)
    model.score(rows)
    model.score_samples(rows)
    model.save(tmp_path / "model")
    make(setting, random_state=seed).partial_fit(rows).partial_fit(rows)
    assert global_states() == before


def test_global_seeds_do_not_matter(rows):
    first = bits(make("mask").fit(rows))
    np.random.seed(3)  # noqa: NPY002
    random.seed(3)
    torch.manual_seed(3)
    assert bits(make("mask").fit(rows)) == first


def random_codec(D, hidden, K, activation, code_activation, dtype, seed):
    codec = Codec(
        mlp([D, *hidden, K], activation), code_activation.bind(K), mlp([K, *hidden, D], activation), torch.zeros(D)
    ).to(dtype)
    draw = generator(seed)
    with torch.no_grad():
        for value in codec.parameters():
            value.normal_(generator=draw)
        codec.centre.normal_(generator=draw)
    return codec


def disagreements(inference, x):
    """The ways of batching that change a bit of any row's code or reconstruction."""
    whole = inference.encode(x)
    back = inference.decode(whole)
    order = np.random.RandomState(len(x)).permutation(len(x))
    wrong = []
    for name, rows in {
        "reversed": np.arange(len(x))[::-1],
        "shuffled": order,
        "one": order[:1],
        "seven": order[:7],
        "tail": np.arange(len(x))[-5:],
        "block and one": np.concatenate([order, order])[:257],
    }.items():
        h = inference.encode(x[rows])
        if h.tobytes() != whole[rows].tobytes():
            wrong.append(f"encode {name}")
        if inference.decode(whole[rows]).tobytes() != back[rows].tobytes():
            wrong.append(f"decode {name}")
    return wrong


NETS = [
    ((), "relu", Identity(), torch.float32),
    ((), "relu", Identity(), torch.float64),
    ((24,), "gelu", Sigmoid(), torch.float32),
    ((7, 33), "tanh", Identity(), torch.float64),
    ((20,), "sigmoid", TopK(1), torch.float32),
    ((9,), "silu", Sigmoid(), torch.float64),
]


def sweep(shapes):
    """Shapes whose rows depend on their batch, over K = 1 to 50 and D = 2 to 70 in turn."""
    found = {}
    for i, (K, D) in enumerate(shapes):
        x = np.random.RandomState(i).randn(130, D)
        # the linear nets at every shape; the deep kinds take turns
        for hidden, activation, squash, dtype in (*NETS[:2], NETS[2 + i % 4]):
            wrong = disagreements(Inference(random_codec(D, hidden, K, activation, squash, dtype, i)), x)
            if wrong:
                found[K, D, hidden, activation, str(dtype)] = wrong
    return found


ALL = [(K, D) for K in range(1, 51) for D in range(2, 71)]


@pytest.mark.parametrize("share", range(8))
def test_a_row_does_not_depend_on_its_batch(share):
    assert sweep(ALL[share::8]) == {}


def test_many_rows_by_packed_matrices_have_the_bits_of_few(monkeypatch):
    packed = 0
    for i, (K, D) in enumerate(ALL[::23]):
        x = np.random.RandomState(i).randn(130, D)
        for hidden, activation, squash in (net[:3] for net in NETS if net[3] == torch.float32):
            codec = random_codec(D, hidden, K, activation, squash, torch.float32, i)
            few = Inference(codec)
            h = few.encode(x)
            x_hat = few.decode(h)
            with monkeypatch.context() as patched:
                patched.setattr(retell.inference, "MUCH", 0)
                many = Inference(codec)
                assert many.encode(x).tobytes() == h.tobytes(), (K, D, hidden)
                assert many.decode(h).tobytes() == x_hat.tobytes(), (K, D, hidden)
            packed += (many.encoder.packed is not many.encoder) + (many.decoder.packed is not many.decoder)
    assert (packed > 0) == has_onednn()


def test_a_row_does_not_depend_on_its_batch_with_two_threads():
    code = (
        "import torch; torch.set_num_threads(2)\n"
        "from test_bits import ALL, sweep\n"
        "found = sweep(ALL[4::64])\n"
        "assert torch.get_num_threads() == 2\n"
        "assert found == {}, found"
    )
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(__file__)}
    environment.pop("OMP_NUM_THREADS", None)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"hidden_layer_sizes": ()},
        {"hidden_layer_sizes": (), "precision": "float32", "solver": "descend"},
        {"hidden_layer_sizes": (21,), "activation": "gelu"},
        {"hidden_layer_sizes": (21,), "activation": "sigmoid", "precision": "float64"},
        {"hidden_layer_sizes": (21,), "activation": "tanh", "tied": True},
        {"hidden_layer_sizes": (21,), "activation": "silu", "linear_path": False},
        {"code_activation": "TopK(3)", "n_components": 19},
        {"code_activation": "Sigmoid()", "n_components": 5},
        {"code_activation": "Softplus()", "n_components": 5},
        {"objective": "BCE()", "n_components": 7},
        {"n_components": 63, "hidden_layer_sizes": ()},
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_method_gives_a_row_its_own_bits(given, dtype):
    x = (load_digits().data[:300] / 16).astype(dtype)
    model = Autoencoder(**{"max_iter": 1, "random_state": 0, **given}).fit(x)
    holes = x.copy()
    holes[::3, 20:40] = np.nan
    order = np.random.RandomState(0).permutation(300)
    for name, rows in (
        ("transform", x),
        ("transform", holes),
        ("reconstruct", holes),
        ("score_samples", x),
        ("score_samples", holes),
        ("inverse_transform", model.transform(x)),
    ):
        method = getattr(model, name)
        whole = method(rows)
        assert method(rows[order]).tobytes() == whole[order].tobytes(), name
        assert method(np.asfortranarray(rows)).tobytes() == whole.tobytes(), name
        for i in (0, 1, 255, 256, 299):
            assert method(rows[i : i + 1]).tobytes() == whole[i : i + 1].tobytes(), name
        assert method(rows[3:260]).tobytes() == whole[3:260].tobytes(), name


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_completed_rows_have_their_own_bits(dtype):
    x = (load_digits().data[:300] / 16).astype(dtype)
    x[np.random.RandomState(0).rand(*x.shape) < 0.2] = np.nan
    model = Autoencoder(8, max_iter=1, random_state=0).fit(x)
    whole = model.reconstruct(x, keep_seen=True)
    order = np.random.RandomState(1).permutation(300)
    assert model.reconstruct(x[order], keep_seen=True).tobytes() == whole[order].tobytes()
    for i in range(0, 300, 29):
        assert model.reconstruct(x[i : i + 1], keep_seen=True).tobytes() == whole[i : i + 1].tobytes()


@pytest.mark.parametrize("given", [{}, {"hidden_layer_sizes": ()}, {"code_activation": "TopK(3)"}], ids=str)
def test_one_row_costs_as_much_as_five_of_pca(given):
    """Beside each other, for other processes may have the core."""
    x = load_digits().data
    model = Autoencoder(**{"n_components": 16, "max_iter": 1, "random_state": 0, **given}).fit(x)
    pca = PCA(16, random_state=0).fit(x)
    seconds: list[list[float]] = [[], []]
    for i in range(200):
        for it, taken in zip((model, pca), seconds, strict=True):
            before = time.perf_counter()
            it.transform(x[i : i + 1])
            taken.append(time.perf_counter() - before)
    ours, theirs = map(statistics.median, seconds)
    assert ours <= 5 * theirs


def test_threads_are_given_back(rows):
    model = make("hidden").fit(rows)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        model.transform(rows)
        with pytest.raises(ValueError, match="features"):
            model.transform(rows[:, :2])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("share", "threads", "said"), [(0.6, 2, True), (0.6, 1, False), (0.1, 2, False)])
def test_a_fit_says_that_other_processes_want_its_cores(rows, monkeypatch, share, threads, said):
    monkeypatch.setattr(training.Crowd, "share", lambda self: share)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            make("hidden").set_params(solver="descend", max_iter=1).fit(rows)
    finally:
        torch.set_num_threads(before)
    assert sum("the cores of this fit" in str(it.message) for it in caught) == said


def test_a_crowd_is_told_of_once(monkeypatch, tmp_path):
    file = tmp_path / "cpu"
    monkeypatch.setattr(spread, "PRESSURE", file)
    monkeypatch.setattr(spread.time, "monotonic", itertools.count(0.0, 1.5).__next__)
    assert spread.Crowd()._waited() == 0, "where there is no such file"
    file.write_text("some avg10=0.00 avg60=0.00 avg300=0.00 total=1000000\nfull avg10=0.00 total=0\n", "ascii")
    crowd = spread.Crowd()
    file.write_text("some avg10=0.00 avg60=0.00 avg300=0.00 total=2500000\nfull avg10=0.00 total=0\n", "ascii")
    assert [crowd.share() for _ in range(4)] == [0, 0.5, 0, 0]


def test_batching_itself_warns_of_nothing(rows):
    model = make("hidden").fit(rows)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.transform(rows[:1])
        model.score_samples(rows[:1])
