"""A planted violation makes exactly the tests fail that should; `python tests/violations.py` asks every claim's."""

import importlib.util
import sys
from pathlib import Path

import pytest

SPEC = importlib.util.spec_from_file_location("violations", Path(__file__).with_name("violations.py"))
violations = sys.modules["violations"] = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(violations)

ALL = {test for violation in violations.VIOLATIONS.values() for test in violation.fails}


@pytest.mark.parametrize("name", violations.VIOLATIONS)
def test_exactly_the_right_tests_fail(name):
    """Among the tests that some violation must fail, those of this one do and the others do not."""
    violation = violations.VIOLATIONS[name]
    assert violations.failing(violation, sorted(ALL)) == set(violation.fails)


def test_proofs_are_the_tests_that_claims_name():
    assert set(violations.proofs()) >= {test for test in ALL if not test.startswith(violations.SLOW)}
