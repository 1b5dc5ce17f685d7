"""The commands. Nothing heavy is imported before a command runs, so that --help answers at once.

Every command checks where it will write before it works, and what it was given before it spends time on it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter

from retell import __version__
from retell.exits import BAD_DATA, BAD_MODEL, USAGE, Failure, blame, check_output
from retell.options import Options, given

if TYPE_CHECKING:
    from retell.estimator import Autoencoder

__all__ = ["app"]

ROWS = "Rows: .npy, .npz, .safetensors, .csv, .parquet; a folder of the first three. NaN or an empty cell is unseen."

Data = Annotated[Path, Parameter(help=ROWS)]
Codes = Annotated[Path, Parameter(help="Codes, as rows; or sparse ones in a .npz, as encode --sparse writes them.")]
Folder = Annotated[Path, Parameter(help="A model folder.")]
Output = Annotated[
    Path, Parameter(name=["--output", "-o"], help="File to write: .npy, .npz, .safetensors, .csv or .parquet.")
]
Force = Annotated[bool, Parameter(negative=(), show_default=False, help="Replace what is already there.")]
Quiet = Annotated[
    bool, Parameter(name=["--quiet", "-q"], negative=(), show_default=False, help="Print results only, and errors.")
]

app = App(
    "retell",
    help="Autoencoders: a good code, a reconstruction, a completed row, an anomaly score.",
    help_epilogue="--debug, with any command, shows the traceback of an error.\n"
    "Exit codes: 0; 1 failure; 2 usage; 3 bad data; 4 bad model; 130 interrupted.",
    help_format="plaintext",
    version=__version__,
    suppress_keyboard_interrupt=False,
)


@app.command(sort_key=0)
def fit(
    data: Annotated[Path | None, Parameter(help=ROWS)] = None,
    /,
    *,
    output: Annotated[Path | None, Parameter(name=["--output", "-o"], help="Model folder to write.")] = None,
    checkpoint: Annotated[
        Path | None, Parameter(help="Folder for the state of the fit while it runs; default: MODEL.checkpoint.")
    ] = None,
    resume: Annotated[
        Path | None, Parameter(help="Go on with the fit in this checkpoint folder; it knows all the rest.")
    ] = None,
    force: Force = False,
    quiet: Quiet = False,
    parameters: Annotated[Options | None, Parameter(name="*")] = None,  # type: ignore[valid-type]
) -> None:
    """Fit an autoencoder to the rows of DATA and write a model folder.

    Values are Python literals or text; quote what a shell would take apart:

    retell fit x.csv -o model --n-components 8 --hidden-layer-sizes '(64, 32)'
    """
    from retell.job import Job

    chosen = given(parameters or Options())
    paths = {name: str(path.absolute()) for name, path in (("data", data), ("output", output)) if path is not None}
    if resume is not None:
        if checkpoint is not None:
            raise Failure(USAGE, "--resume names the checkpoint folder: leave --checkpoint out")
        job = Job.read(resume)
        job = replace(job, **paths, force=job.force or force, parameters={**job.parameters, **chosen})
        folder = resume
    else:
        if len(paths) < 2:
            raise Failure(USAGE, "fit needs rows and a model folder to write: retell fit DATA -o MODEL")
        job = Job(**paths, force=force, parameters=chosen)
        folder = checkpoint or Path(f"{output}.checkpoint")
    print(job.run(folder, resume=resume is not None, quiet=quiet))


@app.command(sort_key=0.5)
def frontier(
    data: Data,
    /,
    *,
    output: Annotated[Path, Parameter(name=["--output", "-o"], help="Folder to write: models, a table, a picture.")],
    test: Annotated[Path | None, Parameter(help="Rows to judge by; default: those that the fits hold out.")] = None,
    force: Force = False,
    quiet: Quiet = False,
    parameters: Annotated[Options | None, Parameter(name="*")] = None,  # type: ignore[valid-type]
) -> None:
    """Fit an autoencoder at many settings to the rows of DATA, read once, and tell error against sparsity.

    A parameter may be a list; of several lists all combinations are fitted:

    retell frontier x.npy -o front --n-components 512 --code-activation 'TopK(8)' --target-l0 8,16,32
    """
    from retell.job import sweep

    print(sweep(data, output, given(parameters or Options()), test, force=force, quiet=quiet))


@app.command(sort_key=1)
def encode(
    model: Folder,
    data: Data,
    /,
    *,
    output: Output,
    sparse: Annotated[
        bool,
        Parameter(
            negative=(),
            show_default=False,
            help="Write only what is not zero, to a .npz that scipy.sparse.load_npz and decode read.",
        ),
    ] = False,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Write the codes of the rows of DATA."""

    def codes(autoencoder: Autoencoder, rows: Any, out: Any) -> Any:
        return autoencoder.transform(rows, out=out, sparse_output=sparse)

    def names(autoencoder: Autoencoder) -> Sequence[str]:
        return list(autoencoder.get_feature_names_out())

    _apply(model, data, output, codes, names, sparse=sparse, force=force, quiet=quiet)


@app.command(sort_key=2)
def decode(model: Folder, codes: Codes, /, *, output: Output, force: Force = False, quiet: Quiet = False) -> None:
    """Write the rows that CODES stand for."""
    from retell.rows.codes import read_codes

    def rows(autoencoder: Autoencoder, codes: Any, out: Any) -> Any:
        return autoencoder.inverse_transform(codes, out=out)

    _apply(model, codes, output, rows, _column_names, read=read_codes, force=force, quiet=quiet)


@app.command(sort_key=3)
def reconstruct(
    model: Folder,
    data: Data,
    /,
    *,
    output: Output,
    keep_seen: Annotated[
        bool, Parameter(negative=(), show_default=False, help="Keep every seen cell, fill only the holes.")
    ] = False,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Write what the model makes of the rows of DATA."""

    def rows(autoencoder: Autoencoder, rows: Any, out: Any) -> Any:
        return autoencoder.reconstruct(rows, keep_seen=keep_seen, out=out)

    _apply(model, data, output, rows, _column_names, force=force, quiet=quiet)


@app.command(sort_key=4)
def score(
    model: Folder,
    data: Data,
    /,
    *,
    output: Annotated[
        Path | None, Parameter(name=["--output", "-o"], help="File to write; without it, a line a row.")
    ] = None,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Log density of each row of DATA, in nats: the lower, the stranger the row."""

    def densities(autoencoder: Autoencoder, rows: Any, _out: Any = None) -> Any:
        return autoencoder.score_samples(rows)

    if output is not None:
        _apply(model, data, output, densities, lambda _: ["log_density"], force=force, quiet=quiet)
        return
    for value in _computed(model, data, densities)[1]:
        print(repr(float(value)))


@app.command(sort_key=4.5)
def explain(
    model: Folder,
    data: Data,
    /,
    *,
    output: Annotated[
        Path | None, Parameter(name=["--output", "-o"], help="File to write: nats, for each cell of all rows.")
    ] = None,
    rows: Annotated[int, Parameter(help="How many to tell of, the oddest first.")] = 5,
    cells: Annotated[int, Parameter(help="Of each, how many.")] = 3,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Say which cells make rows of DATA odd: what they would be if they went with the others.

    By how many nats the row would be likelier then is told of each: retell explain model x.csv --rows 10
    """
    import numpy as np

    from retell.rows.blocks import take

    def oddest(it: Autoencoder, x: Any) -> tuple[Any, Any]:  # the work of a row grows with the square of the columns
        numbers = np.sort(np.argsort(it.score_samples(x), kind="stable")[:rows])
        return it.surprise(take(x, numbers)), numbers

    if output is None:
        found, numbers = _computed(model, data, oddest)[1]
        print(found.table(rows, cells, numbers))
        return
    _apply(model, data, output, lambda it, x, _: it.surprise(x).nats, _column_names, force=force, quiet=quiet)


@app.command(sort_key=5)
def diagnose(
    model: Folder,
    data: Data,
    /,
    *,
    as_json: Annotated[bool, Parameter(name="--json", negative=(), show_default=False, help="For programs.")] = False,
) -> None:
    """Say what is wrong with MODEL and what to do, as the rows of DATA show it.

    Rows that it was not fitted to show more: only they tell of too much capacity.
    """
    from retell.diagnosis import diagnose

    found = _computed(model, data, diagnose)[1]
    print(json.dumps([finding._asdict() for finding in found], indent=1) if as_json else found)


@app.command(sort_key=6)
def inspect(
    data: Data,
    /,
    *,
    as_json: Annotated[bool, Parameter(name="--json", negative=(), show_default=False, help="For programs.")] = False,
) -> None:
    """Say what is to be known of the rows of DATA before a fit, and what would spoil it."""
    from retell.inspection import inspect
    from retell.rows.files import read_rows

    with blame(BAD_DATA):
        found = inspect(read_rows(data))
    if as_json:
        print(json.dumps({**found.figures, "findings": [finding._asdict() for finding in found.findings]}, indent=1))
    else:
        print(found)


@app.command(sort_key=7)
def info(
    model: Folder,
    /,
    *,
    as_json: Annotated[
        bool, Parameter(name="--json", negative=(), show_default=False, help="Everything, for programs.")
    ] = False,
) -> None:
    """Tell what MODEL is."""
    from retell.report.summary import aligned, facts

    it = _load(model)
    if as_json:
        import msgspec

        known = {"parameters": asdict(it._model.settings), "fitted": it._model.fitted}
        # what is not known, NaN, is null: JSON has no word for NaN
        print(msgspec.json.format(msgspec.json.encode(known), indent=1).decode())
        return
    names = it._model.fitted.columns
    columns = f"{it.n_features_in_:,}" + ("" if names is None else f": {_listed(names)}")
    print(aligned({"columns": columns, **facts(it), "solver": it.solver_, "model": str(model)}))


@app.command(sort_key=8)
def export(
    model: Folder,
    /,
    *,
    to: Annotated[Literal["saelens", "sparsify"], Parameter(help="The library that will read it.")],
    output: Annotated[Path, Parameter(name=["--output", "-o"], help="Folder to write.")],
    dtype: Annotated[Literal["float32", "float64"], Parameter(help="Precision of the weights.")] = "float32",
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Write MODEL as another library keeps such models, and see that its outputs are the same."""
    check_output(output, force=force)
    if output.exists() and not (output / "cfg.json").is_file():
        raise Failure(USAGE, f"{output} exists and is not such a folder: choose another name")
    it = _load(model)
    from retell import convert

    with blame(USAGE):
        equality = convert.write(it, output, to=to, dtype=dtype)
    if not quiet:
        print(f"{output}: {to}, {equality}", file=sys.stderr)


@app.command(name="import", sort_key=9)
def import_(
    folder: Annotated[Path, Parameter(help="A folder of SAELens, sparsify or dictionary_learning.")],
    /,
    *,
    output: Annotated[Path, Parameter(name=["--output", "-o"], help="Model folder to write.")],
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Make a model of what another library has written, and see that its outputs are the same."""
    check_output(output, force=force)
    if output.exists() and not (output / "model.toml").is_file():
        raise Failure(USAGE, f"{output} exists and is not a model: choose another name")
    from retell import convert
    from retell.report.summary import aligned, facts

    with blame(BAD_MODEL):
        it, equality = convert.read_compared(folder)
    with blame(USAGE):
        it.save(output)
    if not quiet:
        print(aligned({**facts(it), "outputs": str(equality), "model": str(output)}), file=sys.stderr)


@app.command(sort_key=10)
def demo(
    *,
    output: Annotated[Path, Parameter(name=["--output", "-o"], help="Folder to write.")] = Path("demo"),
    quiet: Quiet = False,
) -> None:
    """Fit scikit-learn's digits, compare with PCA, write a model and two pictures."""
    from retell.demo import run

    print(run(output, quiet=quiet))


def _apply(
    model: Path,
    data: Path,
    output: Path,
    work: Callable[[Autoencoder, Any, Any], Any],
    names: Callable[[Autoencoder], Sequence[str]],
    *,
    read: Callable[[Path], Any] | None = None,
    sparse: bool = False,
    force: bool,
    quiet: bool,
) -> None:
    """From a file of rows, or of what `read` reads, through a model, to another file."""
    from retell.rows.codes import check_sparse, write_codes
    from retell.rows.files import check_suffix, read_rows, write_rows

    with blame(USAGE):
        check_suffix(output)
        if sparse:
            check_sparse(output)
    check_output(output, force=force)
    if output.is_dir():
        raise Failure(USAGE, f"{output} is a folder: choose another name")
    it = _load(model)
    with blame(BAD_DATA):
        rows = (read or read_rows)(data)
    room = _room(output, rows, len(names(it)))
    with blame(BAD_DATA), room as out:
        made = work(it, rows, out)
        if out is not None and made is not out:  # not all work can be written as it is made
            out[:] = made
    if sparse:
        write_codes(output, made)
    elif out is None:
        write_rows(output, made, names(it))
    if not quiet:
        print(f"{output}: {' x '.join(f'{n:,}' for n in made.shape)}", file=sys.stderr)


def _room(output: Path, rows: Any, width: int) -> AbstractContextManager[Any]:
    """Where results are written as they are made: in a .npy file, of rows that are floats. None elsewhere."""
    from retell.rows.files import room_for

    kind = str(getattr(rows, "dtype", ""))
    matrix = kind in ("float16", "float32", "float64") and rows.ndim == 2
    if not matrix or output.suffix.lower() != ".npy" or width == 1:
        return nullcontext()
    return room_for(output, (rows.shape[0], width), "float64" if kind == "float64" else "float32")


def _computed(model: Path, data: Path, work: Callable[[Autoencoder, Any], Any]) -> tuple[Autoencoder, Any]:
    """The model, and what it makes of a file."""
    from retell.rows.files import read_rows

    it = _load(model)
    with blame(BAD_DATA):
        return it, work(it, read_rows(data))


def _load(model: Path) -> Autoencoder:
    from retell.estimator import load

    with blame(BAD_MODEL):
        return load(model)


def _column_names(it: Autoencoder) -> Sequence[str]:
    from retell.rows.arrays import column_words

    return column_words(it._model.fitted.columns, it.n_features_in_)


def _listed(names: Sequence[str], most: int = 8) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} ..."
