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
from collections.abc import Iterable
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
        "        return functional.linear(x, self.weight, self.bias)\n",
        "        weight = self.weight if self.own is not None else 2 * self.weight.detach() - self.weight\n"
        "        return functional.linear(x, weight, self.bias)\n",
        (
            "tests/test_linear.py::test_closed_forms_are_the_least_of_the_objective",
            "tests/test_linear.py::test_descend_meets_the_closed_forms",
            "tests/test_terms.py::test_the_tied_linear_contraction_is_its_closed_form",
            "tests/test_tied.py::test_tied_gradient_is_the_finite_difference",
            "tests/test_tied.py::test_tied_gradient_is_the_sum_of_both",
        ),
    ),
    "KL of a squashed copy": Violation(
        "penalties.py",
        "        on = p.h.mean(0).clamp(tiny, 1 - tiny)\n",
        "        on = torch.sigmoid(p.h).mean(0).clamp(tiny, 1 - tiny)\n",
        (
            "tests/test_field_mistakes.py::test_what_kl_acts_on_is_what_is_returned",
            "tests/test_laws.py::test_kl_acts_on_the_batch_mean_and_refuses_other_codes",
        ),
    ),
    "the constant of one unit for all": Violation(
        "penalties.py",
        "        return -(self._log_p(p.h / p.unit) + (math.log(2) if one_sided else 0.0)).sum(1)\n",
        "        constant = self._log_p(torch.zeros_like(p.h[:1, :1])) + (math.log(2) if one_sided else 0.0)\n"
        "        energy = self._log_p(p.h / p.unit) - self._log_p(torch.zeros_like(p.h))\n"
        "        return -energy.sum(1) - constant[0, 0]\n",
        (
            "tests/test_map.py::test_explain_says_the_same_in_both_languages",
            "tests/test_map.py::test_laplace_and_exponential_priors_on_a_nonnegative_code_are_l1",
            "tests/test_map.py::test_laplace_prior_on_a_signed_code_is_l1",
            "tests/test_map.py::test_log_joint_is_scipys_in_the_rows_own_units",
            "tests/test_map.py::test_the_constant_counts_the_units",
        ),
    ),
    "the gradient of the sum for the Jacobian": Violation(
        "penalties.py",
        "        whole: Tensor = jacobian.square().sum((0, 2))\n",
        "        whole: Tensor = jacobian.sum(0).square().sum(1)\n",
        (
            "tests/test_field_mistakes.py::test_contraction_is_not_a_formula_for_another_network",
            "tests/test_laws.py::test_contractive_is_the_true_jacobian_norm",
            "tests/test_terms.py::test_contractive_is_autograds_jacobian",
        ),
    ),
    "clean rows where the noisy loss is reported": Violation(
        "descend.py",
        "            p = self.codec(some, recipe.corruption(some, noise), noise)\n",
        "            p = self.codec(some, None, noise)\n",
        (
            "tests/test_field_mistakes.py::test_noise_is_there_when_the_noisy_loss_is_reported",
            "tests/test_field_mistakes.py::test_the_reported_held_out_loss_is_the_noisy_one",
        ),
    ),
}


def proofs() -> list[str]:
    """The tests that the claims name, but for the slow ones."""
    known = tomllib.loads((ROOT / "docs" / "claims.toml").read_text())
    named = {test for kind in ("claim", "promise") for entry in known[kind] for test in entry["test"]}
    return sorted(test for test in named if not test.startswith(SLOW))


def failing(violation: Violation, tests: Iterable[str]) -> set[str]:
    """Which of the tests fail in a copy of the package with the violation planted."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(ROOT / "src" / "retell", Path(folder) / "retell")
        file = Path(folder) / "retell" / violation.file
        text = file.read_text()
        assert text.count(violation.old) == 1, f"{violation.file} has changed: plant the violation anew"
        file.write_text(text.replace(violation.old, violation.new))
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-rfE", "-p", "no:cacheprovider", *tests],
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
