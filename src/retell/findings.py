"""What is wrong, in words, and what to do about it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["Diagnosis", "Finding", "percent"]


class Finding(NamedTuple):
    """One thing that is wrong.

    Parameters
    ----------
    name : str
    figures : dict of str to float
        What was measured.
    words : str
        What it means.
    remedy : str
        What to do.
    """

    name: str
    figures: dict[str, float]
    words: str
    remedy: str

    def __str__(self) -> str:
        text = f"{self.name}: {self.words}. Remedy: {self.remedy}"
        return textwrap.fill(text, 80, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


@dataclass(frozen=True)
class Diagnosis:
    """All that was found; empty, and so false, for a healthy model. Printed, it is text of 80 columns.

    Parameters
    ----------
    findings : tuple of Finding
    """

    findings: tuple[Finding, ...]

    @property
    def names(self) -> list[str]:
        """What was found."""
        return [finding.name for finding in self.findings]

    def __len__(self) -> int:
        return len(self.findings)

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def __str__(self) -> str:
        return "\n".join(map(str, self.findings)) or "healthy: nothing found"


def percent(share: float) -> str:
    """A share as a percentage of three digits."""
    return f"{100 * share:.3g} %"
