"""A fit of rows that come once: every row is trained on once, and the model is that of a fit."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.sparse import csr_array

import retell.estimator
import retell.streaming
from retell import Autoencoder, load
from retell.descend import Descent
from retell.rows.stream import arrays, beginning
from retell.solvers.dense import Dense

SPARSE = {"n_components": 12, "hidden_layer_sizes": (), "code_activation": "TopK(3)", "random_state": 0}
NET = {"n_components": 3, "hidden_layer_sizes": (8,), "random_state": 0, "batch_size": 32}


def draw(n=4000, d=8, seed=0, dtype=np.float32):
    mix = np.random.default_rng(1).normal(size=(12, d))
    rng = np.random.default_rng(seed)
    h = rng.exponential(size=(n, 12)) * (rng.random((n, 12)) < 0.25)
    return (h @ mix + 0.05 * rng.normal(size=(n, d)) + 3).astype(dtype)


def batches(rows, size=70):
    return (rows[i : i + size] for i in range(0, len(rows), size))


@pytest.fixture
def small_pool(monkeypatch):
    """Of 1,000 rows of eight float32; sections of 256."""
    monkeypatch.setattr(retell.estimator, "POOL", 32_000)
    monkeypatch.setattr(retell.streaming, "SECTION", 8192)


@pytest.fixture
def steps(monkeypatch):
    """The rows and the learning rate of every step."""
    taken = []
    for solver in (Descent, Dense):

        def step(self, x, noise, rate, real=solver.one_step):
            taken.append((x.clone(), rate))
            return real(self, x, noise, rate)

        monkeypatch.setattr(solver, "one_step", step)
    return taken


def lines_of(x):
    return sorted(row.tobytes() for row in np.asarray(x))


@pytest.mark.parametrize("settings", [SPARSE, NET], ids=["sparse", "net"])
@pytest.mark.parametrize("early_stopping", [False, True])
@pytest.mark.parametrize("n", [200, 1000, 3977])
def test_each_row_is_trained_on_once(small_pool, steps, settings, early_stopping, n):
    rows = draw(n)
    model = Autoencoder(**settings, early_stopping=early_stopping, scale=None).fit_stream(batches(rows))
    taken = torch.cat([x for x, _ in steps]).numpy()
    x = rows - model.scaling_.shift.astype(np.float32)
    trained = {row.tobytes() for row in x} & set(lines_of(taken))
    first = min(n, 1000)
    held_out = round(0.1 * first) if early_stopping and first >= 400 else (40 if early_stopping else 0)
    assert len(taken) == len(trained) == n - held_out
    assert model.n_iter_ == len(model.loss_curve_) > 0


@pytest.mark.parametrize("early_stopping", [False, True])
@pytest.mark.parametrize("n_rows", [None, 2000])
def test_a_threshold_is_settled_on_rows_when_the_stream_has_ended(small_pool, early_stopping, n_rows):
    """Not left at a mean over batches of a net that has changed since, which makes 3.4 to 3.7 of 3 units active."""
    rows, others = draw(2000), draw(4000, seed=5)
    settings = SPARSE | {"code_activation": "BatchTopK(3)", "early_stopping": early_stopping}
    model = Autoencoder(**settings).fit_stream(batches(rows), n_rows=n_rows)
    assert (model.transform(others) > 0).sum(1).mean() == pytest.approx(3, rel=0.05)


def test_a_target_is_settled_when_the_stream_has_ended(small_pool):
    rows, others = draw(12_000), draw(4000, seed=5)
    settings = SPARSE | {"code_activation": "BatchTopK(5)", "target_l0": 3.0}
    model = Autoencoder(**settings).fit_stream(batches(rows), n_rows=12_000)
    assert (model.transform(others) > 0).sum(1).mean() == pytest.approx(3, rel=0.05)
    assert "target_l0=3" in model.dialled_


@pytest.mark.parametrize("settings", [SPARSE, NET], ids=["sparse", "net"])
@pytest.mark.parametrize("known", [False, True])
def test_a_stream_makes_the_model_of_a_fit(small_pool, settings, known):
    """As good as a fit of the same number of steps, on rows that neither has seen."""
    rows, others = draw(40_000), draw(2000, seed=5)
    ours = Autoencoder(**settings).fit_stream(batches(rows), n_rows=40_000 if known else None)
    size = ours.get_params()["batch_size"]
    theirs = Autoencoder(**settings | {"batch_size": 64 if size == "auto" else size, "max_iter": 1}).fit(rows)
    assert 1 - ours.score(others) < 1.1 * (1 - theirs.score(others))
    judged = ours._model.fitted
    assert judged.score == pytest.approx(ours.score(others), abs=0.05)
    assert judged.train_score == pytest.approx(ours.score(others), abs=0.05)
    assert ours.transform(others).shape == (2000, ours.n_components_)
    assert np.isfinite(ours.score_samples(others)).all()
    assert np.isfinite(ours.reconstruct(np.where(others > 5, np.nan, others), keep_seen=True)).all()


def test_what_is_like_a_fit_afterwards(small_pool, tmp_path):
    rows = draw()
    model = Autoencoder(**SPARSE, verbose=0).fit_stream(batches(rows))
    model.save(tmp_path / "model")
    np.testing.assert_array_equal(load(tmp_path / "model").transform(rows), model.transform(rows))
    before = model.score(rows)
    for _ in range(3):
        model.partial_fit(rows)
    assert model.score(rows) > before - 0.01


def test_the_same_stream_gives_the_same_bits(small_pool):
    models = [Autoencoder(**SPARSE).fit_stream(batches(draw(), size)) for size in (70, 70, 1)]
    for model in models[1:2]:
        assert model.loss_curve_ == models[0].loss_curve_
        np.testing.assert_array_equal(model.components_, models[0].components_)
    assert models[2].score(draw()) == pytest.approx(models[0].score(draw()), abs=0.05)


def rates(steps):
    most = max(rate for _, rate in steps)
    return np.array([rate for _, rate in steps]) / most


def test_the_rate_of_a_known_number_of_rows_goes_up_and_down(small_pool, steps):
    Autoencoder(**SPARSE, batch_size=32, early_stopping=False).fit_stream(batches(draw()), n_rows=4000)
    shares = rates(steps)
    assert len(shares) == 125
    top = int(shares.argmax())
    assert 10 <= top <= 13
    assert (np.diff(shares[:top]) > 0).all()
    assert (np.diff(shares[top:]) < 0).all()
    assert shares[-1] < 0.02


def test_the_rate_of_an_unknown_number_of_rows_stays_until_the_end(small_pool, steps, monkeypatch):
    monkeypatch.setattr(retell.streaming, "WARM", 20)
    Autoencoder(**SPARSE, batch_size=32, early_stopping=False).fit_stream(batches(draw()))
    shares = rates(steps)
    assert len(shares) == 125
    assert (np.diff(shares[:20]) > 0).all()
    assert (shares[20:89] == 1).all()  # eleven sections of 256 rows went through the pool of a thousand
    assert (np.diff(shares[88:]) < 0).all()
    assert 0 < shares[-1] < 0.05


def test_a_stream_that_ends_early_ends_at_no_rate(small_pool, steps):
    Autoencoder(**SPARSE, batch_size=32).fit_stream(batches(draw()), n_rows=10**6)
    assert rates(steps)[-1] < 0.05


def test_an_endless_stream_ends_where_it_was_asked_to(small_pool, steps):
    taken = []

    def endless():
        while True:
            taken.append(len(taken))
            yield draw(64, seed=len(taken))

    Autoencoder(**SPARSE, early_stopping=False).fit_stream(endless(), n_rows=3000)
    assert sum(len(x) for x, _ in steps) == 3000
    assert len(taken) == 47


def test_memory_that_is_used_again_is_copied(small_pool):
    rows, room = draw(), np.empty((50, 8), np.float32)

    def reused():
        for some in batches(rows, 50):
            room[:] = some
            yield room
            room[:] = np.nan

    ours, theirs = Autoencoder(**SPARSE).fit_stream(reused()), Autoencoder(**SPARSE).fit_stream(batches(rows, 50))
    np.testing.assert_array_equal(ours.components_, theirs.components_)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_tensors_are_taken_as_arrays_are(small_pool, dtype):
    rows = torch.tensor(draw()).to(dtype).requires_grad_()
    plain = rows.detach().float() if dtype == torch.bfloat16 else rows.detach()
    ours, theirs = (Autoencoder(**SPARSE).fit_stream(batches(some)) for some in (rows, plain.numpy()))
    assert ours.loss_curve_ == theirs.loss_curve_


def test_holes_may_come_at_any_time(small_pool):
    rows = draw()
    rows[2000:] = np.where(np.random.default_rng(0).random((2000, 8)) < 0.1, np.nan, rows[2000:])
    for settings in (SPARSE, NET):
        model = Autoencoder(**settings).fit_stream(batches(rows))
        assert np.isfinite(model.components_).all()
        assert np.isfinite(model.loss_curve_).all()


def test_massive_rows_are_left_out_of_a_stream(small_pool, capsys):
    rows = draw()
    rows[::50] *= 100
    model = Autoencoder(**SPARSE, max_norm=10, verbose=1).fit_stream(batches(rows))
    assert model.n_left_out_ == 80
    assert "max_norm=10: 80 rows are left out" in capsys.readouterr().err
    others = np.delete(rows, np.arange(0, 4000, 50), 0)
    assert model.score(others) > 0.5


def spoiled(rows, number, change):
    for i, some in enumerate(batches(rows)):
        yield change(some) if i == number else some


BAD = {
    "another width": (lambda x: x[:, :5], r"batch 20 has 5 columns of float32, batch 0 8 of float32"),
    "another type": (lambda x: x.astype(np.float64), "batch 20 has 8 columns of float64, batch 0 8 of float32"),
    "three axes": (lambda x: x.reshape(7, 10, 8), r"batch 20 has shape \(7, 10, 8\).*reshape"),
    "infinity": (lambda x: np.where(np.arange(8) == 3, np.inf, x).astype(np.float32), "batch 20.*row 0, column 3"),
    "text": (lambda x: x.astype(str), "text|string"),
    "sparse": (csr_array, r"batch 20 is a csr_array.*toarray\(\)"),
    "rows and labels": (lambda x: (x, x[:, 0]), r"batch 20 is a tuple of 2.*batch\[0\] for batch"),
    "a loader's list": (lambda x: [torch.from_numpy(x)], r"batch 20 is a list of 1.*batch\[0\] for batch"),
    "a table of arrays": (lambda x: {"a": x}, r"batch 20 is a dict of 1.*batch\['a'\] for batch"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_batch_that_is_none_is_told_by_number(small_pool, name):
    change, message = BAD[name]
    model = Autoencoder(**SPARSE)
    with pytest.raises(ValueError, match=message):
        model.fit_stream(spoiled(draw(), 20, change))
    assert not hasattr(model, "codec_")


def test_what_is_no_stream_is_told():
    model = Autoencoder(**SPARSE)
    for some, n in ([], 0), ([draw(1)], 1):
        with pytest.raises(ValueError, match=f"the stream ended after {n} rows"):
            model.fit_stream(some)
    for n_rows in (1, 2.5, "all"):
        with pytest.raises(ValueError, match=f"n_rows={n_rows!r} is not possible"):
            model.fit_stream([draw()], n_rows=n_rows)
    with pytest.raises(ValueError, match=r"got the path 'rows\.npy': fit reads files"):
        model.fit_stream("rows.npy")
    with pytest.raises(ValueError, match=r"one path was expected, of a file or a folder of files, got 2, 'a\.npy'"):
        model.fit(["a.npy", "b.npy"])
    with pytest.raises(ValueError, match="more rows are to come"):
        Autoencoder(2, hidden_layer_sizes=(), solver="exact").fit_stream([draw()])
    with pytest.raises(ValueError, match=r"BCE\(\) needs values in \[0, 1\]"):
        Autoencoder(2, objective="BCE()").fit_stream([draw()])


def test_a_stream_that_diverges_is_told_and_the_last_good_weights_are_kept(small_pool):
    with pytest.warns(UserWarning, match="training diverged"):
        model = Autoencoder(**NET, learning_rate_init=1e20).fit_stream(batches(draw()), n_rows=10**6)
    assert not np.isfinite(model.loss_curve_[-1])
    assert np.isfinite(model.components_).all()
    assert model.n_iter_ < 16


def test_columns_of_frames_have_names():
    frame = pd.DataFrame(draw(), columns=list("abcdefgh"))
    model = Autoencoder(**NET).fit_stream(batches(frame))
    assert list(model.feature_names_in_) == list(frame.columns)
    assert model.components_.tobytes() == Autoencoder(**NET).fit_stream(batches(draw())).components_.tobytes()
    for other, said in ((frame[list("abcdehgf")], "'h' stands for 'f'"), (frame.to_numpy(), "None stands for 'a'")):
        with pytest.raises(ValueError, match=f"the columns of batch 1 are not those of batch 0: {said}"):
            Autoencoder(**NET).fit_stream([frame, other])
    with pytest.raises(ValueError, match=r"batch 1 has an infinite value \(inf\) in row 0, column 0 \('a'\)"):
        Autoencoder(**NET).fit_stream([frame, frame * np.inf])


def test_the_first_rows_are_no_more_than_asked_for():
    loss = Autoencoder()._settings()[1].objective.loss
    first, coming, ended = beginning(arrays(batches(draw()), None, loss), 32_000)
    rest = np.concatenate(list(coming))
    np.testing.assert_array_equal(np.concatenate([first, rest]), draw())
    assert (len(first), ended) == (1000, False)
    first, coming, ended = beginning(arrays(batches(draw(1000)), None, loss), 32_000)
    assert (len(first), ended, list(coming)) == (1000, False, [])
    first, coming, ended = beginning(arrays(batches(draw(999)), None, loss), 32_000)
    assert (len(first), ended, list(coming)) == (999, True, [])


BEFORE = """
rows = np.random.default_rng(0).normal(size=(8192, 256)).astype(np.float32)
model = Autoencoder(8, hidden_layer_sizes=(), code_activation="TopK(2)", batch_size=4096, random_state=0)
model.fit_stream([rows])
"""


def test_a_long_stream_stays_small(peak_of):
    """839 MB of rows; the first 134 MB are there thrice for a moment: as they came, together, and in the pool."""
    assert peak_of(BEFORE, "model.fit_stream((rows for _ in range(100)))") < 550
