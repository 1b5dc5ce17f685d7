"""Peak of resident memory, in MB of 2**20 bytes, above what the process held before; Linux only, nan elsewhere."""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path
from typing import Any, Self


class Peak:
    """``with Peak() as peak: ...`` then ``peak.mb``; freed memory goes back to the system first."""

    mb = float("nan")

    def __enter__(self) -> Self:
        gc.collect()
        try:
            ctypes.CDLL("libc.so.6").malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
            self.before = resident("VmRSS")
        except OSError:
            self.before = float("nan")
        return self

    def __exit__(self, *_: Any) -> None:
        if self.before == self.before:
            self.mb = resident("VmHWM") - self.before


def resident(kind: str) -> float:
    """VmRSS (now) or VmHWM (the peak)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(kind))
    return int(line.split()[1]) / 1024
