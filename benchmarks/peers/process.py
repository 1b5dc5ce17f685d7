"""The asking side: a worker process, and a reason where there is no answer."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PAUSE = 0.1  # seconds for which threads of the one asked before may go on turning, on cores that this one needs


class Process:
    """`WORKER NAME DATA`, alive until `end`; asks one thing at a time.

    A peer runs in the Python of the folder `venv` of .bench, retell in the one that runs this.
    """

    def __init__(
        self, name: str, data: Path, threads: int = 2, venv: str = "peers", worker: str = "peers.worker"
    ) -> None:
        self.name, self.hello = name, dict[str, Any]()
        python = Path(sys.executable) if name == "retell" else ROOT / ".bench" / venv / "bin/python"
        log = ROOT / ".bench/logs" / f"{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        quiet = {"OMP_NUM_THREADS": str(threads), "PYTHONWARNINGS": "ignore", "PYTHONHASHSEED": "0"}
        start = time.perf_counter()
        self.cannot = ""
        if not python.exists():
            self.cannot = "not installed: make bench installs the peers"
            return
        with log.open("a") as errors:
            self.child = subprocess.Popen(
                [python, "-m", worker, name, str(data)],
                cwd=HERE.parent,
                env={**os.environ, **quiet},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
            )
        self.hello = self.answer(120)
        self.start_seconds = time.perf_counter() - start
        self.cannot = self.hello.get("cannot", "")

    def ask(self, do: str, limit: float = 300, **what: Any) -> dict[str, Any]:
        """The answer, or {"cannot": reason}; a process that takes longer than `limit` seconds is ended."""
        if self.cannot:
            return {"cannot": self.cannot}
        assert self.child.stdin
        time.sleep(PAUSE)
        self.child.stdin.write((json.dumps({"do": do, **what}) + "\n").encode())
        self.child.stdin.flush()
        return self.answer(limit)

    def answer(self, limit: float) -> dict[str, Any]:
        assert self.child.stdout
        if not select.select([self.child.stdout], [], [], limit)[0]:
            self.child.kill()
            self.cannot = f"no answer in {limit:.0f} s"
            return {"cannot": self.cannot}
        line = self.child.stdout.readline()
        if not line:
            self.cannot = f"its process ended; .bench/logs/{self.name}.log says why"
            return {"cannot": self.cannot}
        return json.loads(line)

    def end(self) -> None:
        """Let the process finish; one that does not is killed."""
        if not hasattr(self, "child"):
            return
        try:
            self.child.communicate(timeout=10)  # closes its input, which ends the worker's loop
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
