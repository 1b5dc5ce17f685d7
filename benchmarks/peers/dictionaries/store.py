"""Results that are kept, a JSON line each, so that what is done is not done again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Record = dict[str, Any]


class Store:
    """Fits by what was asked for; a line that was cut off by an interrupt is passed over.

    Parameters
    ----------
    path : Path
        Where results are kept.
    *others : Path
        Files of results that are read too.
    """

    def __init__(self, path: Path, *others: Path) -> None:
        self.path, self.fits = path, dict[str, Record]()
        lines = [line for file in (*others, path) if file.exists() for line in file.read_text().splitlines()]
        for line in lines:
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue
            self.fits[key(record["unit"])] = record

    def __contains__(self, unit: Record) -> bool:
        return key(unit) in self.fits

    def add(self, unit: Record, result: Record) -> None:
        """Keep a result, at once."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.fits[key(unit)] = {"unit": unit, **result}
        with self.path.open("a") as file:
            file.write(json.dumps({"unit": unit, **result}) + "\n")

    def found(self, **like: Any) -> list[Record]:
        """The results whose units have these values, those that failed apart."""
        return [
            record
            for record in self.fits.values()
            if "cannot" not in record and all(record["unit"].get(name) == value for name, value in like.items())
        ]


def key(unit: Record) -> str:
    """A unit as text."""
    return json.dumps(unit, sort_keys=True)
