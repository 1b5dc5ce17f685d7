"""The fit of the command line: from a file to a model folder, and on again after an interrupt."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retell.exits import BAD_DATA, BAD_MODEL, USAGE, Failure, Terminated, blame, check_output
from retell.options import several
from retell.rows.files import check_data, read_rows, replacing

if TYPE_CHECKING:
    from retell.estimator import Autoencoder

__all__ = ["Job", "sweep"]

COMMAND = "command.json"
MOST = 2000  # rows that a diagnosis reads


@dataclass(frozen=True)
class Job:
    """What a fit was asked to do.

    Parameters
    ----------
    data : str
        File or folder of rows.
    output : str
        Model folder to write.
    force : bool
        Whether an older model there may be replaced.
    parameters : dict
        Of `Autoencoder`.
    """

    data: str
    output: str
    force: bool = False
    parameters: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, checkpoint: Path) -> Job:
        """The job whose state lies in a folder."""
        file = checkpoint / COMMAND
        if not file.is_file():
            raise Failure(USAGE, f"there is nothing to resume in {checkpoint}: a folder with {COMMAND} was expected")
        try:
            return cls(**json.loads(file.read_text("utf-8")))
        except (ValueError, TypeError) as error:
            raise Failure(BAD_MODEL, f"{file} is damaged: {error}") from None

    def write(self, checkpoint: Path) -> None:
        """Keep what is needed to go on, beside the state of the fit."""
        with blame(USAGE):
            checkpoint.mkdir(parents=True, exist_ok=True)
            with replacing(checkpoint / COMMAND) as new:
                new.write_text(json.dumps(asdict(self), indent=1), "utf-8")

    def run(self, checkpoint: Path, *, resume: bool, quiet: bool) -> str:
        """Fit, save, remove the checkpoint; the summary."""
        from retell.estimator import Autoencoder
        from retell.report.progress import watch
        from retell.store import remove_checkpoint

        self._check(checkpoint, resume=resume)
        model = Autoencoder(**self.parameters)
        with blame(USAGE):
            settings, parts = model._settings()
        with blame(BAD_DATA):
            rows, names = model._named_rows(read_rows(self.data), reset=True, parts=parts)
        if not resume:
            remove_checkpoint(checkpoint)
        self.write(checkpoint)
        start = time.monotonic()
        with _resumable(checkpoint):
            with blame(USAGE), _checkpoint_blamed():
                training = model._begin(settings, parts, rows, checkpoint, names)
            with _checkpoint_blamed():
                watch(training, quiet=quiet)
            model._take(training, names)
            model.save(self.output)
        _remove(checkpoint)
        summary = self._summary(model, len(rows), f"{training.plan.solver}: {training.plan.reason}", start)
        return f"{summary}\n{_diagnosis(model, training.plan.rows())}"

    def _check(self, checkpoint: Path, *, resume: bool) -> None:
        """Everything that can be known to be wrong before torch is imported or a row is read."""
        output = Path(self.output)
        with blame(USAGE):
            check_data(Path(self.data))
        check_output(output, force=self.force)
        if output.exists() and not (output / "model.toml").is_file():
            raise Failure(USAGE, f"{output} exists and is not a model: choose another name")
        if not checkpoint.absolute().parent.is_dir():
            raise Failure(USAGE, f"there is no folder {checkpoint.absolute().parent} for the checkpoint")
        if (checkpoint / "checkpoint.retell").is_file() and not resume and not self.force:
            raise Failure(
                USAGE,
                f"{checkpoint} holds a fit that was interrupted: retell fit --resume {checkpoint} goes on,"
                " --force starts anew",
            )

    def _summary(self, model: Autoencoder, n: int, solver: str, start: float) -> str:
        from retell.report.summary import aligned, facts

        known = facts(model)
        known["trained"] += f", {time.monotonic() - start:.1f} s"
        rows = f"{n:,} x {model.n_features_in_:,} from {Path(self.data).name}"
        return aligned({"rows": rows, **known, "solver": solver, "model": self.output})


def _diagnosis(model: Autoencoder, x: Any) -> str:
    """What is wrong with the fit, as evenly spaced rows of it (scaled) show it."""
    from retell.diagnosis import FEWEST, examine

    if len(x) < FEWEST:
        return f"no diagnosis: that needs at least {FEWEST} rows"
    return str(examine(model, x[:: -(-len(x) // MOST)].double().cpu().numpy()))


@contextmanager
def _resumable(checkpoint: Path) -> Iterator[None]:
    """An interrupt says how to go on; a folder without a state does not stay."""
    try:
        yield
    except (KeyboardInterrupt, Terminated) as stop:
        what = "terminated" if isinstance(stop, Terminated) else "interrupted"
        if (checkpoint / "checkpoint.retell").is_file():
            raise type(stop)(f"{what}; retell fit --resume {checkpoint} goes on from here") from stop
        _remove(checkpoint)
        raise type(stop)(f"{what} before the first epoch was done: nothing was kept") from stop
    except Exception:
        if not (checkpoint / "checkpoint.retell").is_file():
            _remove(checkpoint)
        raise


@contextmanager
def _checkpoint_blamed() -> Iterator[None]:
    """A checkpoint that is damaged, or of another fit, is a bad model."""
    from retell.store import CheckpointError

    try:
        yield
    except CheckpointError as error:
        raise Failure(BAD_MODEL, str(error)) from error


def _remove(checkpoint: Path) -> None:
    from retell.store import remove_checkpoint

    (checkpoint / COMMAND).unlink(missing_ok=True)
    remove_checkpoint(checkpoint)


def sweep(data: Path, output: Path, parameters: dict[str, Any], test: Path | None, *, force: bool, quiet: bool) -> str:
    """Fit at all settings, write them to a folder; the table.

    Parameters
    ----------
    data, test : path
        Rows to fit to and, if any, to judge by.
    output : path
        Folder to write.
    parameters : dict
        Of `Autoencoder`; those that are lists vary.
    """
    for path in (data,) if test is None else (data, test):
        with blame(USAGE):
            check_data(path)
    check_output(output, force=force)
    if output.exists() and not (output / "frontier.csv").is_file():
        raise Failure(USAGE, f"{output} exists and is no frontier: choose another name")
    listed = {name: several(name, value) for name, value in parameters.items()}
    lists: dict[str, Any] = {name: values for name, values in listed.items() if values}
    if not lists:
        raise Failure(USAGE, "nothing varies: give a parameter a list of values, as in --target-l0 8,16,32")
    from retell.estimator import Autoencoder
    from retell.frontiers import frontier

    common = {"verbose": 0 if quiet else 1, **{name: it for name, it in parameters.items() if name not in lists}}
    with blame(USAGE):
        Autoencoder(**{**common, **{name: values[0] for name, values in lists.items()}})._settings()
    with blame(BAD_DATA):
        judges = None if test is None else read_rows(test)
        found = frontier(Autoencoder(**common), read_rows(data), test=judges, **lists)
    with blame(USAGE):
        found.save(output)
    return f"{found}\nin {output}"
