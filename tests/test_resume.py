"""A fit that is killed and resumed ends in the bits of the fit that was not."""

import contextlib
import hashlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_wine

import retell.training
from retell import Autoencoder
from retell.store import read_checkpoint

KILLS = int(os.environ.get("RETELL_KILLS", "50"))

SETTINGS = {
    "hidden": {"hidden_layer_sizes": (8,)},
    "mask": {"corruption": "Mask(0.3)", "early_stopping": False},
    "schedule": {"objective": "MSE() + Warmup(0.1, 50) * L1()", "code_activation": "TopK(2)", "batch_size": 16},
    "astray": {"hidden_layer_sizes": (8,), "learning_rate_init": 1.0},
    "no seed": {"random_state": None, "tied": True, "hidden_layer_sizes": (8,)},
}


def make(setting, max_iter=12):
    # tol=0 and much patience: every fit is long enough to be killed
    given = {"n_components": 3, "max_iter": max_iter, "random_state": 0, "n_iter_no_change": max_iter, "tol": 0.0}
    return Autoencoder(**{**given, **SETTINGS[setting]})


def print_of(model):
    """A digest of all that the fit has learned and recorded."""
    digest = hashlib.sha256()
    for name, value in sorted(model.codec_.state_dict().items()):
        digest.update(name.encode() + value.numpy().tobytes())
    record = [model.loss_curve_, model.validation_scores_, model.history_, model.best_loss_, model.n_iter_]
    record.append(model.best_iter_)
    return digest.hexdigest() + json.dumps(record)


@pytest.fixture(autouse=True)
def every_epoch(monkeypatch):
    monkeypatch.setattr(retell.training, "EVERY", 0.0)


@pytest.fixture(scope="module")
def rows():
    return load_wine().data


# The server imports torch once; each fit is a fork of it that can be killed. The fork tells of every epoch through
# a pipe, so that the kills come at random moments of the work however busy the machine is. A fit that ends writes
# its digest.
SERVER = """
import os, signal, sys, tempfile, time
sys.path.insert(0, {tests!r})
import test_resume as t
import retell.training
retell.training.EVERY = 0.0
rows = t.load_wine().data
for setting in t.SETTINGS:  # what is imported when it is first needed is imported once, here
    with tempfile.TemporaryDirectory() as folder:
        t.make(setting, 1).fit(rows, checkpoint=folder)
for line in sys.stdin:
    setting, folder, out, epochs, delay = line.rstrip("\\n").split("\\t")
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        model = t.make(setting)
        for epoch in model.fit_epochs(rows, checkpoint=folder):
            os.write(writer, b".")
        with open(out + ".new", "w") as file:
            file.write(t.print_of(model))
        os.rename(out + ".new", out)
        os._exit(0)
    os.close(writer)
    if int(epochs) >= 0:
        while int(epochs) > 0 and os.read(reader, 1):
            epochs = int(epochs) - 1
        time.sleep(float(delay))
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    os.close(reader)
    print(-os.waitstatus_to_exitcode(status), flush=True)
"""


@pytest.fixture(scope="module")
def server():
    """A function that runs a fit in its own process, killed `delay` seconds after so many epochs; what ended it."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # no thread pool, so that a fork is a whole process
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER.format(tests=os.path.dirname(__file__))],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip

    def fit(setting, folder, out, epochs=-1, delay=0.0):
        process.stdin.write(f"{setting}\t{folder}\t{out}\t{epochs}\t{delay}\n")
        process.stdin.flush()
        return int(process.stdout.readline())

    yield fit
    process.stdin.close()
    assert process.wait(timeout=20) == 0
    process.stdout.close()


def test_killed_and_resumed_fits_end_in_the_same_bits(server, tmp_path):
    draw = random.Random(0)
    settings = [name for name in SETTINGS if name != "no seed"]
    whole = {}
    for setting in settings:
        assert server(setting, tmp_path / f"whole {setting}", tmp_path / setting) == 0
        whole[setting] = (tmp_path / setting).read_text()
    kills, reached, turn = 0, set(), 0
    while kills < KILLS:
        setting = settings[turn % len(settings)]
        folder, out = tmp_path / f"{turn}", tmp_path / f"{turn}.txt"
        tries = 0
        while not out.exists():
            tries += 1
            # now and then before the first epoch; else somewhere in the epoch after the next ones, or in its write
            epochs = draw.choice([0, 1, 1, 2, 3, 4]) if tries < 10 else -1
            ended = server(setting, folder, out, epochs, 0.05 * draw.random())
            assert ended in (0, signal.SIGKILL)
            kills += ended == signal.SIGKILL
            if (folder / "checkpoint.retell").exists():
                reached.add(int(read_checkpoint(folder)[1]["numbers"][0]))
            assert set(os.listdir(folder)) <= {"checkpoint.retell", ".checkpoint.new"} if folder.exists() else True
        assert out.read_text() == whole[setting], (setting, turn)
        turn += 1
    assert len(reached) >= min(6, KILLS // 4), "the kills came at different epochs"


def test_killed_in_the_middle_of_writing(rows, tmp_path, monkeypatch):
    """Half of a new state beside the old one: the old one counts."""
    whole = print_of(make("hidden").fit(rows))
    real = retell.store._write

    def half(file, content):
        file.write_bytes(content[: len(content) // 2])
        raise KeyboardInterrupt

    for n_before in range(1, 12, 3):
        folder = tmp_path / str(n_before)
        turns = make("hidden").fit_epochs(rows, checkpoint=folder)
        for _ in range(n_before):
            next(turns)
        monkeypatch.setattr(retell.store, "_write", half)
        monkeypatch.setattr(os, "unlink", lambda *_, **__: None)  # a killed process cleans nothing up
        with pytest.raises(KeyboardInterrupt):
            next(turns)
        monkeypatch.undo()
        monkeypatch.setattr(retell.training, "EVERY", 0.0)
        assert retell.store._write is real
        assert ".checkpoint.new" in os.listdir(folder)
        assert print_of(make("hidden").fit(rows, checkpoint=folder)) == whole
        assert os.listdir(folder) == ["checkpoint.retell"]


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("stop", [1, 2, 7, 11, 12])
def test_resumed_at_any_epoch(rows, tmp_path, setting, stop):
    model = make(setting)
    turns = model.fit_epochs(rows, checkpoint=tmp_path)
    for _ in range(stop):
        next(turns)
    seed = read_checkpoint(tmp_path)[0]["seed"]
    turns.close()
    assert not hasattr(model, "codec_"), "a fit that has not ended is not a fitted model"
    resumed = make(setting).fit(rows, checkpoint=tmp_path)
    assert resumed.n_iter_ == 12
    whole = make(setting).set_params(random_state=seed).fit(rows)
    assert print_of(resumed) == print_of(whole)


@pytest.mark.parametrize("given", [{}, {"corruption": "Mask(0.2)"}], ids=str)
def test_killed_after_the_stopping_rule_has_spoken(rows, tmp_path, given):
    """The last state of a fit that stopped early adds no epoch when it is taken up."""

    def stops_early():
        return make("hidden", max_iter=200).set_params(n_iter_no_change=2, tol=0.05, **given)

    whole = stops_early().fit(rows)
    assert whole.n_iter_ < 200
    for epoch in stops_early().fit_epochs(rows, checkpoint=tmp_path):
        if epoch.finished:
            break
    assert print_of(stops_early().fit(rows, checkpoint=tmp_path)) == print_of(whole)
    assert print_of(stops_early().fit(rows, checkpoint=tmp_path)) == print_of(whole), "a finished fit is taken as it is"


@pytest.mark.parametrize("name", ["one_step", "judging"])
def test_an_interrupt_keeps_the_last_finished_epoch(rows, tmp_path, monkeypatch, name):
    """Between two writes too: with a long EVERY, the interrupt itself writes."""
    whole = print_of(make("hidden").set_params(batch_size=16).fit(rows))
    monkeypatch.setattr(retell.training, "EVERY", 1e9)
    for when in (40, 55, 62):
        folder = tmp_path / str(when)
        calls = itertools.count()
        real = getattr(retell.solvers.dense.Dense, name)
        # judging is called once an epoch, one_step eleven times
        last = when if name == "one_step" else when // 11

        def interrupted(self, *args, real=real, calls=calls, last=last, **kwargs):
            if next(calls) == last:
                raise KeyboardInterrupt
            return real(self, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(retell.solvers.dense.Dense, name, interrupted)
            seen = []
            with pytest.raises(KeyboardInterrupt):
                seen.extend(make("hidden").set_params(batch_size=16).fit_epochs(rows, checkpoint=folder))
        config, state = read_checkpoint(folder)
        done = int(state["numbers"][0])
        assert done == len(config["history"]) >= 2
        resumed = make("hidden").set_params(batch_size=16).fit(rows, checkpoint=folder)
        assert resumed.n_iter_ == 12
        assert print_of(resumed) == whole


def test_an_error_in_the_callers_loop_keeps_the_last_epoch(rows, tmp_path, monkeypatch):
    monkeypatch.setattr(retell.training, "EVERY", 1e9)
    with contextlib.suppress(ZeroDivisionError):
        for epoch in make("hidden").fit_epochs(rows, checkpoint=tmp_path):
            if epoch.number == 5:
                1 / 0  # noqa: B018
    # the generator is closed when the loop's frame lets go of it
    assert int(read_checkpoint(tmp_path)[1]["numbers"][0]) == 5


@pytest.mark.parametrize("solver", ["descend", "dense"])
def test_a_clock_ends_an_epoch_between_two_steps_and_the_fit_goes_on_from_the_one_before(
    rows, tmp_path, monkeypatch, solver
):
    monkeypatch.setattr(retell.training, "EVERY", 1e9)
    steps = []
    kind = retell.solvers.dense.Dense if solver == "dense" else retell.descend.Descent
    real = kind.one_step

    def counted(self, *args):
        steps.append(1)
        return real(self, *args)

    model = make("hidden").set_params(batch_size=16, solver=solver)
    whole = print_of(clone(model).fit(rows))
    with monkeypatch.context() as patch:
        patch.setattr(retell.training.time, "monotonic", lambda: float(len(steps)))
        patch.setattr(kind, "one_step", counted)
        stopped = clone(model).set_params(max_time=40).fit(rows, checkpoint=tmp_path)
    n = len(steps)
    assert n == 40, "the clock has ended an epoch, of nine steps of 138 rows, before its end"
    assert stopped.n_iter_ == n // 9 + 1 == len(stopped.loss_curve_) == len(stopped.validation_scores_)
    assert int(read_checkpoint(tmp_path)[1]["numbers"][0]) == n // 9
    assert print_of(model.fit(rows, checkpoint=tmp_path)) == whole


def test_no_checkpoint_is_written_without_being_asked(rows, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make("hidden").fit(rows)
    assert os.listdir(tmp_path) == []


def test_a_closed_form_needs_no_checkpoint(rows, tmp_path):
    model = Autoencoder(3, hidden_layer_sizes=(), random_state=0).fit(rows, checkpoint=tmp_path)
    assert model.solver_ == "exact"
    assert print_of(model) == print_of(Autoencoder(3, hidden_layer_sizes=(), random_state=0).fit(rows))


def test_an_interrupted_refit_leaves_the_old_model(rows, monkeypatch):
    model = make("hidden").fit(rows)
    before, codes = print_of(model), model.transform(rows)
    turns = model.fit_epochs(np.hstack([rows, rows]))
    next(turns)
    assert model.transform(rows).tobytes() == codes.tobytes(), "while the refit is under way"
    turns.close()
    assert print_of(model) == before
    assert model.transform(rows).tobytes() == codes.tobytes()


@pytest.mark.parametrize(
    "settings",
    [
        {"code_activation": "BatchTopK(3)", "objective": "MSE() + 0.1 * AuxK(4, 200)"},
        {"code_activation": "JumpReLU()", "objective": "MSE() + 0.001 * L0()", "corruption": "Swap(0.2)"},
        {"code_activation": "Sample()", "objective": "Likelihood(Normal()) + Warmup(1.0, 30) * ToNormal()"},
        {"code_activation": "Gated()", "objective": "MSE() + 0.01 * GateL1() + GateMSE()"},
        {"objective": "MSE() + 0.1 * Contractive(method='projection')", "corruption": "SaltAndPepper(0.2)"},
    ],
    ids=lambda settings: settings.get("code_activation", "projection"),
)
def test_what_parts_learn_count_and_draw_is_taken_up(settings, tmp_path):
    """Thresholds, idle rows and noise, too, are those of the uninterrupted fit."""
    X = load_wine().data
    model = Autoencoder(12, hidden_layer_sizes=(), max_iter=6, random_state=0, **settings)
    whole = clone(model).fit(X)
    for epoch in model.fit_epochs(X, checkpoint=tmp_path / "state"):
        if epoch.number == 3:
            break
    resumed = clone(model).fit(X, checkpoint=tmp_path / "state")
    assert resumed.n_iter_ == whole.n_iter_ == 6
    for name, value in whole.codec_.state_dict().items():
        assert torch.equal(resumed.codec_.state_dict()[name], value), name
