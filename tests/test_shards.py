"""Rows of a folder of files: the same model as from memory, in an order that a disk can give."""

import os
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import retell.plan
import retell.rows.blocks
import retell.rows.shards
import retell.scaled
from retell import Autoencoder, diagnose, load
from retell.__main__ import main
from retell.batches import Batches
from retell.descend import Descent
from retell.rows.blocks import in_memory, pooled
from retell.rows.files import read_rows, write_rows
from retell.rows.pool import Pool, recut, shuffled
from retell.rows.shards import Shards, open_folder
from retell.scaled import Rows
from retell.scaling import Scaling

TORCH = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}
NET = {"hidden_layer_sizes": (), "code_activation": "TopK(2)", "max_iter": 2, "random_state": 0}


def draw(n=600, d=6, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + rng.normal(size=d)


def folder_of(path, rows, suffix=".npy", kind="float32", parts=11):
    """Files of unequal lengths, one of them a single row; their rows as float64."""
    path.mkdir()
    rows = torch.tensor(rows).to(TORCH[kind])
    for i, some in enumerate(
        np.split(np.arange(len(rows)), [1, *np.linspace(40, len(rows) - 7, parts - 2, dtype=int)])
    ):
        part = rows[some].contiguous()
        if suffix == ".safetensors":
            save_file({"activations": part, "other": torch.zeros(3)}, path / f"part{i}{suffix}")
        else:
            write_rows(path / f"part{i}{suffix}", part.numpy(), [])
    return rows.double().numpy()


@pytest.fixture
def small_pools(monkeypatch):
    """A pool of 2,400 bytes, chunks of 240: 100 and 10 rows of six float32."""
    for module in (retell.rows.blocks, retell.scaled):
        monkeypatch.setattr(module, "POOL", 2400)
        monkeypatch.setattr(module, "CHUNK", 240, raising=False)
    monkeypatch.setattr(retell.plan, "RUN", 60)
    monkeypatch.setattr(retell.scaled, "FEW", 0)


# --- files


KINDS = [
    (suffix, kind)
    for suffix in (".npy", ".npz", ".safetensors")
    for kind in TORCH
    if suffix == ".safetensors" or kind != "bfloat16"
]


@pytest.mark.parametrize(("suffix", "kind"), KINDS)
def test_a_folder_is_its_files_one_after_another(tmp_path, monkeypatch, suffix, kind):
    monkeypatch.setattr(retell.rows.shards, "SCATTERED", 50)
    rows = folder_of(tmp_path / "x", draw(), suffix, kind)
    (tmp_path / "x" / ".hidden").write_text("not rows")
    shards = read_rows(tmp_path / "x")
    assert not in_memory(shards)
    assert (len(shards), shards.shape, shards.kind) == (600, (600, 6), kind)
    assert shards.dtype == (np.float64 if kind == "float64" else np.float32)
    np.testing.assert_array_equal(shards[:], rows)
    np.testing.assert_array_equal(shards[37:45], rows[37:45])
    numbers = np.random.default_rng(0).integers(0, 600, 1000)
    np.testing.assert_array_equal(shards.take(numbers), rows[numbers])
    np.testing.assert_array_equal(shards.without(numbers[:9])[:], np.delete(rows, numbers[:9], 0))
    assert shards.raw(numbers).dtype == (np.uint16 if kind == "bfloat16" else kind)


@pytest.mark.parametrize("kind", TORCH)
def test_a_file_of_tensors_is_read_as_it_is(tmp_path, kind):
    rows = torch.tensor(draw()).to(TORCH[kind])
    save_file({"X": rows, "activations": rows[:2].clone()}, tmp_path / "x.safetensors")
    found = read_rows(tmp_path / "x.safetensors")
    assert not in_memory(found)
    np.testing.assert_array_equal(found[:], rows.double().numpy())


def test_a_large_npz_is_mapped(tmp_path, monkeypatch):
    monkeypatch.setattr("retell.rows.files.POOL", 100)
    np.savez(tmp_path / "x.npz", X=draw(), y=np.arange(3))
    rows = read_rows(tmp_path / "x.npz")
    assert not in_memory(rows)
    np.testing.assert_array_equal(rows, draw())
    np.savez_compressed(tmp_path / "x.npz", X=draw())
    assert in_memory(read_rows(tmp_path / "x.npz"))


def zipped(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme", "no array")


REFUSED = {
    "part7.txt": (lambda p: p.write_text("1,2"), "part7.txt ends in '.txt'.*one of .npy, .npz, .safetensors"),
    "part7": (lambda p: p.mkdir(), "part7 is a folder within a folder"),
    "part7.npy": (lambda p: p.write_bytes(b""), r"part7.npy is empty \(0 bytes\)"),
    "none.npy": (lambda p: np.save(p, np.zeros((0, 6), np.float32)), r"none.npy holds an array of shape \(0, 6\)"),
    "flat.npy": (lambda p: np.save(p, np.zeros(6, np.float32)), r"flat.npy holds an array of shape \(6,\)"),
    "wide.npy": (lambda p: np.save(p, np.zeros((2, 7), np.float32)), "wide.npy has 7 columns, part0.npy 6"),
    "q.npy": (lambda p: np.save(p, np.zeros((2, 6))), "q.npy holds float64, part0.npy float32"),
    "whole.npy": (lambda p: np.save(p, np.zeros((2, 6), int)), "whole.npy holds int64: one of float16"),
    "order.npy": (lambda p: np.save(p, np.zeros((6, 6), np.float32, order="F")), "order.npy is in Fortran order"),
    "objects.npy": (lambda p: np.save(p, np.array([[{}]], object), allow_pickle=True), "objects.npy can't be read"),
    "cut.npy": (lambda p: p.write_bytes(b"\x93NUMPY\x01\x00"), "cut.npy can't be read as .npy"),
    "tight.npz": (lambda p: np.savez_compressed(p, X=np.zeros((2, 6))), "tight.npz is compressed"),
    "two.npz": (lambda p: np.savez(p, a=np.zeros(2), b=np.zeros(2)), "two.npz holds the arrays a, b"),
    "text.npz": (lambda p: p.write_text("no zip"), "text.npz can't be read as .npz"),
    "readme.npz": (zipped, "readme.npz can't be read as .npz: readme is no array"),
    "pickled.npz": (lambda p: np.savez(p, X=np.array([[{}]], object)), "pickled.npz is no .npz of numbers"),
    "text.safetensors": (lambda p: p.write_text("text"), "text.safetensors can't be read as .safetensors"),
    "a.safetensors": (lambda p: save_file({"a": torch.zeros(2), "b": torch.zeros(2)}, p), "holds the tensors a, b"),
    "i.safetensors": (lambda p: save_file({"X": torch.zeros(2, 6, dtype=int)}, p), "holds a tensor of I64"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_does_not_go_with_the_others_is_named(tmp_path, name):
    folder_of(tmp_path / "x", draw())
    make, message = REFUSED[name]
    make(tmp_path / "x" / name)
    with pytest.raises(ValueError, match=message):
        open_folder(tmp_path / "x")


def test_a_cut_tensor_is_told(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"X": torch.zeros(100, 6)}, path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match="shorter than its header says"):
        read_rows(path)


# --- fits


@pytest.mark.parametrize("settings", [{}, {"hidden_layer_sizes": (8,), "max_iter": 2}, NET], ids=str)
@pytest.mark.parametrize("holes", [False, True])
def test_a_folder_makes_the_model_of_its_rows(tmp_path, settings, holes):
    given = np.where(np.random.default_rng(1).random((600, 6)) < 0.1, np.nan, draw()) if holes else draw()
    rows = folder_of(tmp_path / "x", given).astype(np.float32)
    settings = {"random_state": 0, **settings}
    ours, theirs = (Autoencoder(3, **settings).fit(X) for X in (tmp_path / "x", rows))
    assert ours.loss_curve_ == pytest.approx(theirs.loss_curve_, rel=1e-9)
    for name in ("transform", "reconstruct", "score_samples", "score"):
        made = [getattr(ours, name)(X) for X in (str(tmp_path / "x"), open_folder(tmp_path / "x"), rows)]
        np.testing.assert_array_equal(made[0], made[2])
        np.testing.assert_array_equal(made[1], made[2])
    np.testing.assert_array_equal(
        ours.reconstruct(tmp_path / "x", keep_seen=True), ours.reconstruct(rows, keep_seen=True)
    )
    np.testing.assert_allclose(ours.transform(rows), theirs.transform(rows), rtol=1e-5, atol=1e-5)
    assert isinstance(str(diagnose(ours, tmp_path / "x")), str)


@pytest.mark.parametrize("settings", [{}, {"hidden_layer_sizes": (8,), "max_iter": 2}, NET], ids=str)
def test_float16_is_taken_as_float32(settings):
    halves = draw().astype(np.float16)
    settings = {"random_state": 0, **settings}
    ours, theirs = (Autoencoder(3, **settings).fit(rows) for rows in (halves, halves.astype(np.float32)))
    assert ours.loss_curve_ == theirs.loss_curve_
    codes = ours.transform(halves)
    assert codes.dtype == np.float32
    np.testing.assert_array_equal(codes, theirs.transform(halves.astype(np.float32)))
    np.testing.assert_array_equal(ours.inverse_transform(codes), theirs.inverse_transform(codes))
    assert ours.partial_fit(halves).loss_curve_ == theirs.partial_fit(halves.astype(np.float32)).loss_curve_


def test_what_is_wrong_with_rows_of_a_folder_is_told(tmp_path):
    rows = draw()
    rows[333, 2] = np.inf
    folder_of(tmp_path / "x", rows)
    model = Autoencoder(2, **NET)
    with pytest.raises(ValueError, match=r"infinite value \(inf\) in row 333, column 2"):
        model.fit(tmp_path / "x")
    with pytest.raises(ValueError, match=r"infinite value \(inf\) in row 333, column 2"):
        model.fit(rows.astype(np.float16))
    model.fit(draw())
    with pytest.raises(ValueError, match=r"infinite value \(inf\) in row 333, column 2"):
        model.transform(tmp_path / "x")
    folder_of(tmp_path / "y", draw(d=5))
    with pytest.raises(ValueError, match="5 features, but Autoencoder is expecting 6"):
        model.transform(tmp_path / "y")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        model.fit(tmp_path / "z.npy")


def test_the_command_line_takes_a_folder(tmp_path, capsys):
    rows = folder_of(tmp_path / "x", draw(), ".safetensors", "bfloat16")
    model = str(tmp_path / "model")
    assert main(["fit", str(tmp_path / "x"), "-o", model, "--n-components", "3", "--quiet"]) == 0
    assert main(["encode", model, str(tmp_path / "x"), "-o", str(tmp_path / "h.npy")]) == 0
    assert "600 x 3" in capsys.readouterr().err
    codes = load(model).transform(rows.astype(np.float32))
    np.testing.assert_array_equal(np.load(tmp_path / "h.npy"), codes)
    write_rows(tmp_path / "h.safetensors", codes, [])
    assert main(["decode", model, str(tmp_path / "h.safetensors"), "-o", str(tmp_path / "y.npy")]) == 0
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), load(model).inverse_transform(codes))
    (tmp_path / "x" / "notes.txt").write_text("x")
    assert main(["encode", model, str(tmp_path / "x"), "-o", str(tmp_path / "g.npy")]) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["h.npy", "h.safetensors", "model", "x", "y.npy"]


# --- the order of rows on a disk


@pytest.mark.parametrize("size", [1, 7, 30, 100, 250])
def test_a_pool_gives_each_row_once(size):
    blocks = [np.arange(i, min(i + size, 333))[:, None] for i in range(0, 333, size)]

    def made():
        return np.concatenate([some.copy() for some in shuffled(blocks, 100, torch.Generator().manual_seed(0))])[:, 0]

    given = made()
    assert sorted(given) == list(range(333))
    assert given[0] < 100 + size
    np.testing.assert_array_equal(made(), given)


def test_a_pool_keeps_to_its_size():
    pool = Pool(50, torch.Generator().manual_seed(0))
    gone = sum(len(some) for _ in range(9) for some in pool.add(np.zeros((20, 3))))
    assert gone == 130
    assert pool.rows.shape == (50, 3)


def test_blocks_are_cut_anew():
    blocks = np.split(np.arange(100)[:, None], [1, 51, 54])
    for sizes in ([10] * 10, [51, 49], [100], [1, 99]):
        room = np.empty((2, max(sizes), 1))
        cut = [some.copy() for some in recut(blocks, sizes, room, lambda rows, place: np.copyto(place, rows))]
        assert [len(some) for some in cut] == sizes
        assert np.concatenate(cut)[:, 0].tolist() == list(range(100))


def spread_of(rows, given):
    """Rows of a file in their own order by chunk; of those given, where they lay."""
    where = {row.tobytes(): i for i, row in enumerate(rows)}
    return np.array([where[row.tobytes()] for row in given])


@pytest.mark.parametrize("subset", [False, True])
def test_an_epoch_from_disk_takes_each_row_once_and_chunks_at_random(tmp_path, small_pools, subset):
    rows = folder_of(tmp_path / "x", draw(1000)).astype(np.float32)
    numbers = np.flatnonzero(np.random.default_rng(0).random(1000) < 0.9) if subset else None
    ours = Rows(open_folder(tmp_path / "x"), Scaling(np.zeros(6), np.ones(6), np.zeros(6)), torch.zeros(0), numbers)
    assert ours.pooled

    def order_in(epoch):
        sizes = [37] * (len(ours) // 37) + [len(ours) % 37]
        return spread_of(rows, torch.cat([some.clone() for some in ours.shuffled(sizes, 0, epoch)]).numpy())

    order = order_in(1)
    assert sorted(order) == list(range(1000) if numbers is None else numbers)
    np.testing.assert_array_equal(order_in(1), order)
    assert (order_in(2) != order).mean() > 0.9
    means = order[:900].reshape(9, 100).mean(1)  # of a hundred rows: chunks come from all over the file
    assert means.std() < 200
    assert (np.diff(order // 10) == 0).mean() < 0.2  # rows of a chunk do not follow each other


def test_an_epoch_from_disk_is_the_same_by_any_number_of_threads(tmp_path, small_pools):
    rows = folder_of(tmp_path / "x", draw(1000)).astype(np.float32)
    scaling = Scaling(rows.mean(0), rows.std(0), np.zeros(6))
    ours = Rows(open_folder(tmp_path / "x"), scaling, torch.zeros(0))
    one, *others = (
        torch.cat([some.clone() for some in Batches().shuffled(ours, 70, 0, 1, n_threads)]) for n_threads in (1, 2, 3)
    )
    assert all(torch.equal(some, one) for some in others)
    np.testing.assert_allclose(np.sort(one.numpy(), 0), np.sort(scaling.to(rows), 0), atol=1e-5)


class Read:
    """Counts what is read of the files, and from how many places."""

    def __init__(self, monkeypatch):
        self.places, self.expected, real, expect = [], [], Shards.raw, Shards.expect

        def raw(shards, numbers, out=None, **how):
            self.places.append(numbers if shards.numbers is None else shards.numbers[numbers])
            return real(shards, numbers, out, **how)

        def expecting(shards, numbers):
            self.expected.append((len(self.places), numbers))
            expect(shards, numbers)

        monkeypatch.setattr(Shards, "raw", raw)
        monkeypatch.setattr(Shards, "expect", expecting)


def test_a_fit_from_disk_reads_runs(tmp_path, small_pools, monkeypatch):
    folder_of(tmp_path / "x", draw(1000))
    read = Read(monkeypatch)
    epochs = Autoencoder(3, **NET, early_stopping=False).fit_epochs(tmp_path / "x")
    next(epochs)
    before = len(read.places)
    next(epochs)
    assert all((np.diff(places) == 1).all() for places in read.places[before:])
    assert sorted(np.concatenate(read.places[before:])) == list(range(1000))
    after, expected = zip(*read.expected[-100:], strict=True)
    for one, other in zip(expected, read.places[before:], strict=True):
        np.testing.assert_array_equal(one, other)
    assert list(np.array(after) - before) == [0, *range(99)]  # each while the one before it is used


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells how much came from the disk")
def test_a_chunk_is_all_that_is_read_of_a_file(tmp_path):
    """What a disk reads on by itself would be read for nothing: the next chunk lies elsewhere."""
    np.save(tmp_path / "x.npy", np.random.default_rng(0).integers(0, 9, (2**16, 128)).astype(np.float16))
    with (tmp_path / "x.npy").open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    rows, whole = open_folder(tmp_path), np.load(tmp_path / "x.npy", mmap_mode="r")

    def read():
        lines = Path("/proc/self/io").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))

    before, numbers = read(), np.arange(5000, 9000)
    rows.expect(numbers)
    some = rows.raw(numbers, on=False)
    assert read() - before < 1.25 * some.nbytes
    np.testing.assert_array_equal(some, whole[numbers])
    np.testing.assert_array_equal(rows.raw(numbers), some)


def test_whole_runs_are_held_out(tmp_path, small_pools):
    folder_of(tmp_path / "x", draw(1000))
    settings, _ = Autoencoder(3, **NET)._settings()
    shards = open_folder(tmp_path / "x")
    assert pooled(shards)
    train, held_out = retell.plan._split(settings, shards, 0)
    np.testing.assert_array_equal(np.sort(np.concatenate([train, held_out])), np.arange(1000))
    assert 95 <= len(held_out) <= 105
    assert set(np.bincount(held_out // 2)) == {0, 2}  # two rows of 24 bytes each
    again = retell.plan._split(settings, shards, 0)[1]
    np.testing.assert_array_equal(again, held_out)


def test_a_fit_from_disk_is_resumed_to_the_same_bits(tmp_path, small_pools, monkeypatch):
    monkeypatch.setattr("retell.training.EVERY", 0.0)
    folder_of(tmp_path / "x", draw(1000))
    settings = {**NET, "max_iter": 4}
    whole = Autoencoder(3, **settings).fit(tmp_path / "x")
    epochs = Autoencoder(3, **settings).fit_epochs(tmp_path / "x", checkpoint=tmp_path / "state")
    next(epochs), next(epochs)
    epochs.close()
    resumed = Autoencoder(3, **settings).fit(tmp_path / "x", checkpoint=tmp_path / "state")
    assert resumed.loss_curve_ == whole.loss_curve_
    for name, value in whole.codec_.state_dict().items():
        assert torch.equal(value, resumed.codec_.state_dict()[name])


@pytest.mark.parametrize("solver", ["descend", "dense"])
def test_a_fit_from_disk_is_as_good(tmp_path, small_pools, solver):
    rows = folder_of(tmp_path / "x", draw(2000), kind="float16").astype(np.float32)
    settings = {"hidden_layer_sizes": (12,), "random_state": 0, "solver": solver, "max_iter": 10}
    ours, theirs = (Autoencoder(3, **settings).fit(X).score(rows) for X in (tmp_path / "x", rows))
    assert ours == pytest.approx(theirs, abs=0.01)


def test_what_fails_while_reading_ahead_is_told(tmp_path, small_pools, monkeypatch):
    folder_of(tmp_path / "x", draw(1000))
    epochs, real = Autoencoder(3, **NET).fit_epochs(tmp_path / "x"), Descent.one_step

    def fails(*_, **__):
        raise OSError("the disk is gone")

    def step(self, *given):
        monkeypatch.setattr(Shards, "raw", fails)
        return real(self, *given)

    monkeypatch.setattr(Descent, "one_step", step)
    monkeypatch.setattr(retell.solvers.dense.Dense, "one_step", step)
    with pytest.raises(OSError, match="the disk is gone"):
        next(epochs)


BEFORE = """
settings = {"hidden_layer_sizes": (), "code_activation": "TopK(2)", "random_state": 0, "max_iter": 1}
settings |= {"batch_size": 4096, "early_stopping": False}
Autoencoder(8, **settings).fit(np.random.default_rng(0).normal(size=(500, 256)).astype(np.float16))
"""
WORK = """
model = Autoencoder(8, **settings).fit(sys.argv[1])
out = np.lib.format.open_memmap(sys.argv[1] + "/../codes.npy", "w+", np.float32, (600_000, 8))
model.transform(sys.argv[1], out=out)
"""


def test_a_fit_of_many_shards_stays_small(tmp_path, peak_of):
    """307 MB of float16 on disk: the pool of 134 MB, and what steps need; never all rows, let alone as float32."""
    (tmp_path / "x").mkdir()
    block = draw(60_000, 256).astype(np.float16)
    for i in range(10):
        np.save(tmp_path / "x" / f"{i}.npy", block)
    assert peak_of(BEFORE, WORK, tmp_path / "x") < 300
