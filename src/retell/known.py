"""What several fits to the same rows find out about them, found once."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

__all__ = ["FORGETFUL", "Known"]

T = TypeVar("T")


class Known:
    """Answers by question.

    Parameters
    ----------
    keeps : bool, default=True
        False asks each time anew, and holds nothing.

    Examples
    --------
    >>> from retell.known import Known
    >>> known = Known()
    >>> known.once("rows", lambda: 3), known.once("rows", lambda: 4)
    (3, 3)
    """

    def __init__(self, *, keeps: bool = True) -> None:
        self.keeps = keeps
        self._answers: dict[Hashable, Any] = {}

    def once(self, question: Hashable, find: Callable[[], T]) -> T:
        """The answer to a question, looked for where it is asked first; nobody writes to it."""
        if not self.keeps:
            return find()
        if question not in self._answers:
            self._answers[question] = find()
        answer: T = self._answers[question]
        return answer

    def forget(self) -> None:
        """Let all answers go, and keep no more."""
        self.keeps = False
        self._answers.clear()


FORGETFUL = Known(keeps=False)
