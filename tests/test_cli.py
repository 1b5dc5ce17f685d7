"""The command line: what it writes, how it ends, and that it says why in one line."""

import json
import os
import pty
import re
import resource
import signal
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.sparse import csr_array

import retell
from retell.__main__ import main
from retell.options import Options, given, literal
from retell.rows.codes import write_codes
from retell.rows.files import read_rows, write_rows
from retell.settings import Settings

COMMANDS = (
    "fit", "encode", "decode", "reconstruct", "score", "diagnose", "inspect", "info", "export", "import", "demo",
)  # fmt: skip
RETELL = [sys.executable, "-m", "retell"]
FIT = ["--n-components", "2", "--max-iter", "3", "--random-state", "0", "--hidden-layer-sizes", "(8,)"]
NAMES = ["a", "b", "c", "d", "e"]


@pytest.fixture(scope="module")
def rows() -> Any:
    draw = np.random.default_rng(0)
    return draw.normal(size=(60, 3)) @ draw.normal(size=(3, 5))


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, rows: Any) -> Path:
    """A folder with rows of every kind and a model."""
    folder = tmp_path_factory.mktemp("shop")
    for suffix in ("npy", "npz", "csv", "parquet"):
        write_rows(folder / f"x.{suffix}", rows, NAMES)
    assert main(["fit", str(folder / "x.csv"), "-o", str(folder / "m"), "-q", *FIT]) == 0
    return folder


@pytest.fixture
def at_shop(shop: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(shop)
    return shop


# ------------------------------------------------------------------ help and options


def test_help_answers_before_torch_is_imported() -> None:
    seconds = []
    for _ in range(5):
        # Processor time: other tests run at the same time, and their share of the clock is not ours.
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([*RETELL, "--help"], capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 0.5, seconds
    assert all(name in done.stdout for name in COMMANDS)
    assert max(map(len, done.stdout.splitlines())) <= 80
    words = [sys.executable, "-X", "importtime", "-m", "retell", "fit", "--help"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert not {"torch", "numpy", "sklearn", "pyarrow"} & set(re.findall(r"\w+", done.stderr))


def test_options_are_the_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert [f.name for f in fields(Options)] == [f.name for f in fields(Settings)]
    assert main(["fit", "--help"]) == 0
    shown = set(re.findall(r"--[a-z0-9-]+", capsys.readouterr().out))
    assert {"--" + f.name.replace("_", "-") for f in fields(Settings)} <= shown


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == retell.__version__


@pytest.mark.parametrize(
    ("text", "value"),
    [("64", 64), ("0.5", 0.5), ("()", ()), ("(512, 256)", (512, 256)), ("none", None), ("None", None), ("auto", "auto"),
     ("MSE() + 0.001 * L1()", "MSE() + 0.001 * L1()"), ("-1", -1), ("__import__('os')", "__import__('os')")],
)  # fmt: skip
def test_values_are_literals_or_text(text: str, value: Any) -> None:
    assert literal(text) == value


def test_only_named_parameters_are_given() -> None:
    assert given(Options()) == {}


def test_every_parameter_reaches_the_model(at_shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--n-components", "3", "--code-activation", "TopK(2)", "--objective", "MSE() + 0.001 * L1()",
             "--tied", "--no-early-stopping", "--scale", "none", "--max-iter", "2", "--tol", "1e-3",
             "--random-state", "7"]  # fmt: skip
    assert main(["fit", "x.npz", "-o", "all", *words]) == 0
    capsys.readouterr()
    assert main(["info", "all", "--json"]) == 0
    known = json.loads(capsys.readouterr().out)
    chosen = {"n_components": 3, "code_activation": "TopK(2)", "objective": "MSE() + 0.001 * L1()", "tied": True,
              "early_stopping": False, "scale": None, "max_iter": 2, "tol": 1e-3, "random_state": 7}  # fmt: skip
    assert {name: known["parameters"][name] for name in chosen} == chosen
    assert known["fitted"]["n_components"] == 3


# ------------------------------------------------------------------ the commands


@pytest.mark.parametrize("suffix", ["npy", "npz", "csv", "parquet"])
def test_commands_give_what_the_estimator_gives(at_shop: Path, rows: Any, suffix: str) -> None:
    model, x = retell.load("m"), read_rows("x.csv")
    wanted = {
        "encode": model.transform(x),
        "reconstruct": model.reconstruct(x),
        "score": model.score_samples(x)[:, None],
        "explain": model.surprise(x).nats,
    }
    for command, result in wanted.items():
        out = f"{command}.{suffix}"
        assert main([command, "m", f"x.{suffix}", "-o", out]) == 0
        made = np.asarray(read_rows(out)).reshape(len(rows), -1)
        np.testing.assert_allclose(made, result, rtol=1e-6)
    assert main(["decode", "m", f"encode.{suffix}", "-o", f"decode.{suffix}"]) == 0
    np.testing.assert_allclose(np.asarray(read_rows(f"decode.{suffix}")), wanted["reconstruct"], rtol=1e-4, atol=1e-5)
    if suffix == "parquet":
        assert read_rows("encode.parquet").column_names == ["autoencoder0", "autoencoder1"]
        assert read_rows("decode.parquet").column_names == NAMES


def test_score_prints_a_line_a_row(at_shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", "m", "x.csv"]) == 0
    said = [float(line) for line in capsys.readouterr().out.splitlines()]
    np.testing.assert_array_equal(said, retell.load("m").score_samples(read_rows("x.csv")))


def test_explain_tells_of_the_oddest(at_shop: Path, rows: Any, capsys: pytest.CaptureFixture[str]) -> None:
    odd = rows.copy()
    odd[7, 2] += 100
    write_rows("odd.csv", odd, NAMES)
    assert main(["explain", "m", "odd.csv", "--rows", "2", "--cells", "1"]) == 0
    header, first, _ = capsys.readouterr().out.splitlines()
    assert header.endswith("cells: given (expected, nats)")
    assert first.split()[0] == "7"
    assert first.split()[2:4] == [NAMES[2], f"{odd[7, 2]:.4g}"]
    table = retell.load("m").surprise(read_rows("odd.csv")).table(40, 2)
    assert main(["explain", "m", "odd.csv", "--rows", "40", "--cells", "2"]) == 0
    assert capsys.readouterr().out.splitlines() == table.splitlines(), "rows told of are those of a look at all"


def test_keep_seen_completes(at_shop: Path, rows: Any) -> None:
    holes = rows.copy()
    holes[::3, 1] = np.nan
    write_rows("holes.csv", holes, NAMES)
    assert main(["reconstruct", "m", "holes.csv", "--keep-seen", "-o", "whole.csv"]) == 0
    whole = np.asarray(read_rows("whole.csv"))
    seen = ~np.isnan(holes)
    np.testing.assert_array_equal(whole[seen], holes[seen])
    assert np.isfinite(whole).all()


def test_summary_and_info_fit_80_columns(at_shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "x.csv", "-o", "again", *FIT]) == 0
    summary, messages = capsys.readouterr()
    assert main(["info", "again"]) == 0
    told = capsys.readouterr().out
    for word in ("60 x 5", "2 units", "5 → 8 → 2 → 8 → 5", "MSE()", "PCA", "dense", "3 epochs"):
        assert word in summary
    assert "a, b, c, d, e" in told
    for line in (summary + told).splitlines():
        assert len(line) <= 80 or " " not in line[12:]  # a path is left whole
    assert re.search(r"^epoch 3/3  MSE \S+  held-out R² \S+ \(PCA \S+\)", messages, re.M)
    assert not Path("again.checkpoint").exists()


def test_diagnose_says_what_the_library_says(at_shop: Path, rows: Any, capsys: pytest.CaptureFixture[str]) -> None:
    write_rows("far.csv", 1e3 * rows, NAMES)
    for file in ("x.csv", "far.csv"):
        found = retell.diagnose(retell.load("m"), read_rows(file))
        assert main(["diagnose", "m", file]) == 0
        assert capsys.readouterr().out == f"{found}\n"
        assert main(["diagnose", "m", file, "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == [finding._asdict() for finding in found]
    assert "unlike rows" in found.names


def test_a_fit_ends_with_a_diagnosis(at_shop: Path, rows: Any, capsys: pytest.CaptureFixture[str]) -> None:
    linear = ["-q", "--hidden-layer-sizes", "()"]
    assert main(["fit", "x.csv", "-o", "told", *linear, "--n-components", "2"]) == 0
    assert capsys.readouterr().out.endswith("\nhealthy: nothing found\n")
    assert main(["fit", "x.csv", "-o", "copies", *linear, "--n-components", "5"]) == 0
    assert "\nidentity: the 5 units for 5 columns copy whatever" in capsys.readouterr().out
    write_rows("few.npy", rows[:19], NAMES)
    assert main(["fit", "few.npy", "-o", "few", *linear, "--n-components", "2"]) == 0
    assert capsys.readouterr().out.endswith("\nno diagnosis: that needs at least 20 rows\n")


def test_quiet_says_nothing_on_standard_error(at_shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["encode", "m", "x.csv", "-o", "quiet.npy", "-q"]) == 0
    assert main(["fit", "x.csv", "-o", "quiet", "-q", *FIT]) == 0
    assert capsys.readouterr().err == ""


def test_warnings_are_a_line(at_shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "x.csv", "-o", "identity", "-q", "--n-components", "none", "--max-iter", "1"]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("retell: warning: the code has 5 units for 5 columns")


def test_demo_beats_pca_and_can_run_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, imported = tmp_path / "demo", "matplotlib.pyplot" in sys.modules
    assert main(["demo", "-o", str(folder), "-q"]) == 0
    ours, theirs = (float(value) for value in re.findall(r"([\d.]+) %", capsys.readouterr().out))
    assert ours > theirs
    assert sorted(path.name for path in folder.iterdir()) == ["loss.png", "model", "reconstructions.png"]
    assert all((folder / name).read_bytes().startswith(b"\x89PNG") for name in ("loss.png", "reconstructions.png"))
    assert ("matplotlib.pyplot" in sys.modules) == imported  # whose figures are the user's
    monkeypatch.setattr("retell.demo.N_FIT", 50)  # the second run need not be good
    assert main(["demo", "-o", str(folder), "-q"]) == 0


# ------------------------------------------------------------------ errors

ERRORS = {
    "no such command": (2, "fot"),
    "no such option": (2, "fit x.csv -o new --foo 3"),
    "fit without output": (2, "fit x.csv"),
    "fit with nothing": (2, "fit"),
    "encode without output": (2, "encode m x.csv"),
    "model is there": (2, "fit x.csv -o m"),
    "output is no model": (2, "fit x.csv -o x.npy --force"),
    "output is there": (2, "encode m x.csv -o x.npy"),
    "no folder": (2, "encode m x.csv -o nowhere/x.npy"),
    "unknown suffix": (2, "encode m x.csv -o x.xls"),
    "sparse codes as text": (2, "encode m x.csv --sparse -o x2.csv"),
    "nothing to resume": (2, "fit --resume nowhere"),
    "unknown part": (2, "fit x.csv -o new --objective MSE()+Magic()"),
    "K = 0": (2, "fit x.csv -o new --n-components 0"),
    "K = -1": (2, "fit x.csv -o new --n-components -1"),
    "text for a number": (2, "fit x.csv -o new --max-iter many"),
    "unknown activation": (2, "fit x.csv -o new --activation spline"),
    "no closed form": (2, "fit x.csv -o new --solver exact --hidden-layer-sizes (8,)"),
    "data missing": (3, "fit nothing.csv -o new"),
    "data missing for a model": (3, "encode m nothing.csv -o new.npy"),
    "data empty": (3, "fit empty.npy -o new"),
    "data of the wrong kind": (3, "fit wrong.npy -o new"),
    "text": (3, "fit text.csv -o new"),
    "infinity": (3, "fit infinite.npy -o new"),
    "one row": (3, "fit one.npy -o new"),
    "1-D": (3, "fit flat.npy -o new"),
    "3-D": (3, "fit cube.npy -o new"),
    "complex": (3, "fit complex.npy -o new"),
    "wrong width": (3, "encode m narrow.npy -o new.npy"),
    "wrong names": (3, "encode m names.csv -o new.npy"),
    "too few rows to diagnose": (3, "diagnose m one.npy"),
    "codes of the wrong width": (3, "decode m narrow.npy -o new.npy"),
    "sparse codes for rows": (3, "encode m sparse.npz -o new.npy"),
    "sparse codes of the wrong width": (3, "decode m sparse.npz -o new.npy"),
    "model missing": (4, "encode nothing x.csv -o new.npy"),
    "model missing, to diagnose": (4, "diagnose nothing x.csv"),
    "model is a file": (4, "info x.csv"),
    "model edited": (4, "score edited x.csv"),
    "model of a newer format": (4, "info newer"),
}


@pytest.fixture(scope="module")
def bad(shop: Path, rows: Any) -> None:
    (shop / "empty.npy").touch()
    (shop / "wrong.npy").write_text("a,b\n1,2\n")
    (shop / "text.csv").write_text("a,city\n1,Bern\n")
    (shop / "names.csv").write_text("v,w,x,y,z\n1,2,3,4,5\n")
    arrays = {"infinite": np.where(rows == rows[3, 2], np.inf, rows), "one": rows[:1], "flat": rows[0],
              "cube": rows[None], "complex": rows + 1j, "narrow": rows[:, :3]}  # fmt: skip
    for name, array in arrays.items():
        np.save(shop / f"{name}.npy", array)
    write_codes(shop / "sparse.npz", csr_array(rows))
    text = (shop / "m" / "model.toml").read_text()
    for name, old, new in [("edited", "K", "k"), ("newer", "format = 1", "format = 9")]:
        (shop / name).mkdir()
        (shop / name / "model.toml").write_text(text.replace(old, new) + " ")
        (shop / name / "weights.safetensors").write_bytes((shop / "m" / "weights.safetensors").read_bytes())


@pytest.mark.parametrize("case", ERRORS)
@pytest.mark.usefixtures("bad")
def test_errors_are_a_line_and_an_exit_code(at_shop: Path, capsys: pytest.CaptureFixture[str], case: str) -> None:
    code, words = ERRORS[case]
    before = sorted(path.name for path in at_shop.iterdir())
    assert main(words.split()) == code
    said = capsys.readouterr()
    lines = [line for line in said.err.splitlines() if "warning" not in line]
    assert len(lines) == 1
    assert lines[0].startswith("retell: ")
    assert "Traceback" not in said.err
    assert said.out == ""
    assert sorted(path.name for path in at_shop.iterdir()) == before


def test_debug_shows_the_traceback(at_shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "nothing", "--debug"]) == 4
    assert "Traceback" in capsys.readouterr().err


def test_force_replaces(at_shop: Path) -> None:
    assert main(["encode", "m", "x.csv", "-o", "forced.npy"]) == 0
    assert main(["encode", "m", "x.csv", "-o", "forced.npy"]) == 2
    assert main(["encode", "m", "x.csv", "-o", "forced.npy", "--force"]) == 0
    assert main(["fit", "x.csv", "-o", "forced", "-q", *FIT]) == 0
    assert main(["fit", "x.csv", "-o", "forced", "-q", "--force", *FIT]) == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(at_shop: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert main(["encode", "m", "x.csv", "-o", str(tmp_path / "x.npy")]) == 2


def test_a_process_ends_with_the_code_and_no_traceback() -> None:
    done = subprocess.run([*RETELL, "info"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


# ------------------------------------------------------------------ interrupts

LONG = ["--random-state", "1", "--max-iter", "40", "--n-iter-no-change", "1000", "--batch-size", "32",
        "--n-components", "2", "--hidden-layer-sizes", "(32,)"]  # fmt: skip


def stopped(folder: Path, stop: signal.Signals) -> int:
    """The exit code of a fit of m in a process of its own, stopped after the first epoch."""
    np.save(folder / "x.npy", np.random.default_rng(0).normal(size=(800, 8)))
    words = ["fit", str(folder / "x.npy"), "-o", str(folder / "m"), *LONG]
    fit = subprocess.Popen([*RETELL, *words], stderr=subprocess.PIPE, text=True)
    assert fit.stderr is not None
    assert fit.stderr.readline().startswith("epoch 1/40")
    fit.send_signal(stop)
    said = fit.communicate()[1]
    assert f"retell fit --resume {folder}/m.checkpoint goes on" in said
    assert "Traceback" not in said
    return fit.returncode


def test_an_interrupted_fit_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    assert stopped(tmp_path, signal.SIGINT) == 130
    words = ["fit", str(tmp_path / "x.npy"), *LONG, "-q"]
    assert main([*words, "-o", str(tmp_path / "m")]) == 2  # it says that a fit lies there
    assert main(["fit", "--resume", str(tmp_path / "m.checkpoint"), "-q"]) == 0
    assert not (tmp_path / "m.checkpoint").exists()
    assert main([*words, "-o", str(tmp_path / "whole")]) == 0
    assert (tmp_path / "m/weights.safetensors").read_bytes() == (tmp_path / "whole/weights.safetensors").read_bytes()


def test_a_terminated_fit_keeps_its_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert stopped(tmp_path, signal.SIGTERM) == 143
    folder = tmp_path / "m.checkpoint"
    assert main(["fit", "--resume", str(folder), "--tied"]) == 4  # not the fit that lies there
    assert "belongs to other settings" in capsys.readouterr().err
    state = folder / "checkpoint.retell"
    state.write_bytes(state.read_bytes()[:-1])
    assert main(["fit", "--resume", str(folder)]) == 4
    assert "is damaged" in capsys.readouterr().err


def test_a_terminal_gets_a_bar(at_shop: Path) -> None:
    ours, theirs = pty.openpty()
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    fit = subprocess.Popen([*RETELL, "fit", "x.npy", "-o", "bar", *FIT], stderr=theirs, stdout=subprocess.PIPE, env=env)
    os.close(theirs)
    seen = b""
    try:
        while piece := os.read(ours, 65536):
            seen += piece
    except OSError:  # Linux's way of telling that the other end is closed
        pass
    out = fit.communicate()[0].decode()
    os.close(ours)
    assert fit.returncode == 0
    assert "3/3" in seen.decode()
    assert "PCA" in seen.decode()
    assert "explained" in out
