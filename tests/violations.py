"""Plant violations in a copy of the package and see that exactly the tests that should fail do.

    python tests/violations.py [name ...]

Each violation is one line of the source, replaced. All tests that docs/claims.toml names are run against the
copy, but for those that only repeat a figure at length (`SLOW`); what fails must be what is listed here.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
SLOW = ("tests/test_docs.py", "tests/test_resume.py", "tests/test_training.py", "tests/test_store.py",
        "tests/test_conformance.py", "tests/test_quality.py", "tests/test_combinations.py")  # fmt: skip


@dataclass(frozen=True)
class Violation:
    """One line of the source, replaced, and the tests that must fail."""

    file: str
    old: str
    new: str
    fails: tuple[str, ...]


VIOLATIONS = {
    "wrong sign in the tied gradient": Violation(
        "networks.py",
        "            return cast(Affine, self.tied_to).weight.T\n",
        "            w = cast(Affine, self.tied_to).weight.T\n            return 2 * w.detach() - w\n",
        (),
    ),
    "KL of a squashed copy": Violation(
        "penalties.py",
        "        on = p.h.mean(0).clamp(tiny, 1 - tiny)\n",
        "        on = torch.sigmoid(p.h).mean(0).clamp(tiny, 1 - tiny)\n",
        (),
    ),
    "the constant of one unit for all": Violation(
        "penalties.py",
        "        return -(self._log_p(p.h / p.unit) + (math.log(2) if one_sided else 0.0)).sum(1)\n",
        "        constant = self._log_p(torch.zeros_like(p.h[:1, :1])) + (math.log(2) if one_sided else 0.0)\n"
        "        energy = self._log_p(p.h / p.unit) - self._log_p(torch.zeros_like(p.h))\n"
        "        return -energy.sum(1) - constant[0, 0]\n",
        (),
    ),
    "the gradient of the sum for the Jacobian": Violation(
        "penalties.py",
        "        whole: Tensor = jacobian.square().sum((0, 2))\n",
        "        whole: Tensor = jacobian.sum(0).square().sum(1)\n",
        (),
    ),
    "clean rows where the noisy loss is reported": Violation(
        "descend.py",
        "        p = self.codec(x, recipe.corruption(x, noise), noise)\n        p = p._replace(",
        "        p = self.codec(x, None, noise)\n        p = p._replace(",
        (),
    ),
}


def proofs() -> list[str]:
    """The tests that the claims name, but for the slow ones."""
    known = tomllib.loads((ROOT / "docs" / "claims.toml").read_text())
    named = {test for kind in ("claim", "promise") for entry in known[kind] for test in entry["test"]}
    return sorted(test for test in named if not test.startswith(SLOW))


def failing(violation: Violation, tests: list[str]) -> set[str]:
    """Which of the tests fail in a copy of the package with the violation planted."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(ROOT / "src" / "retell", Path(folder) / "retell")
        file = Path(folder) / "retell" / violation.file
        text = file.read_text()
        assert text.count(violation.old) == 1, f"{violation.file} has changed: plant the violation anew"
        file.write_text(text.replace(violation.old, violation.new))
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-rfE", "-p", "no:cacheprovider", "-n", "2", *tests],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": folder, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
    assert done.returncode in (0, 1), done.stdout[-2000:] + done.stderr[-2000:]
    return set(re.findall(r"^(?:FAILED|ERROR) (\S+?::\w+)", done.stdout, re.MULTILINE))


def main() -> None:
    wrong = False
    for name in sys.argv[1:] or VIOLATIONS:
        found, expected = failing(VIOLATIONS[name], proofs()), set(VIOLATIONS[name].fails)
        wrong |= found != expected
        print(f"{name}: {len(found)} tests fail, {'as they should' if found == expected else 'NOT as they should'}")
        for test in sorted(found ^ expected):
            print(f"  {'should not fail' if test in found else 'should fail'}: {test}")
    sys.exit(wrong)


if __name__ == "__main__":
    main()
