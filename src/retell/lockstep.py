"""Several fits in step: a batch of rows is read once, and each fit takes its step on it before the next is read.

What the fits share is the reading. Each has weights of its own, so that no product is common to them; each does to the
bit what it would do alone.
"""

from __future__ import annotations

from collections.abc import Generator, Hashable, Iterable, Sequence
from typing import Any

import numpy.typing as npt
import torch

from retell.batches import Common, InStep
from retell.descend import Epoch
from retell.streaming import Sections, Streaming
from retell.training import Training

__all__ = ["Course", "company", "courses_of", "in_step", "streams_of"]

Array = npt.NDArray[Any]
Course = Generator[Epoch | None, None, None]


def in_step(courses: Sequence[Course]) -> Generator[tuple[int, Epoch | Exception], None, None]:
    """Let each have its turn, again and again, until all have ended; one that fails leaves the others alone.

    Parameters
    ----------
    courses : sequence of generators
        Each yields None or an epoch after a turn. How many threads torch uses is each one's own affair: what one has
        set holds for its own turns.

    Yields
    ------
    (int, Epoch or Exception)
        Whose turn it was, and the epoch that it ended, or what it failed by.

    Examples
    --------
    >>> from retell.lockstep import in_step
    >>> [(who, said) for who, said in in_step([iter([None, "a"]), iter(["b"])])]
    [(1, 'b'), (0, 'a')]
    """
    threads = [torch.get_num_threads()] * len(courses)
    going, mine = dict(enumerate(courses)), torch.get_num_threads()
    try:
        while going:
            for i in tuple(going):
                said: Epoch | Exception | None = None
                torch.set_num_threads(threads[i])
                try:
                    said = next(going[i])
                except StopIteration:
                    del going[i]
                except Exception as error:
                    del going[i]
                    said = error.with_traceback(None)  # which would hold the memory of the fit
                finally:
                    threads[i] = torch.get_num_threads()
                    torch.set_num_threads(mine)
                if said is not None:
                    yield i, said
    finally:  # an interrupt too
        for course in going.values():
            course.close()
        torch.set_num_threads(mine)


def company(training: Training) -> Hashable:
    """What trainings have in common that can take the same rows in step: rows, their order, sizes of batches.

    Those that are planned on the same `Known` share what this names by its id.
    """
    plan = training.plan
    if plan.solver == "exact":  # which takes no rows
        return id(training)
    like, judging = plan.codec.centre, plan.settings.early_stopping
    rows = id(plan.survey), id(plan.train), plan.seed, plan.recipe.batch_size
    return rows, judging, plan.codec.n_units, like.dtype, like.device  # a block that is judged has so many codes


def courses_of(trainings: Sequence[Training]) -> list[Course]:
    """The courses of trainings in one company, rows shared."""
    if trainings[0].plan.solver == "exact":
        return [training.course() for training in trainings]
    sources, batches = trainings[0].sources(), InStep()
    for training in trainings:
        training.descent.batches = batches
    return [training.course(sources) for training in trainings]


def streams_of(trainings: Sequence[Training], coming: Iterable[Array], n_rows: int | None) -> list[Course]:
    """The courses of trainings in one company on a stream of arrays, one pool and its sections shared."""
    sections = Sections.of(trainings[0])
    streams = [Streaming(training, n_rows, sections) for training in trainings]
    common = Common(sections.cut(coming))
    return [stream.course(common) for stream in streams]
