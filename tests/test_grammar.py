"""The grammar reads parts from text, says what it can't read, and evaluates nothing."""

import contextlib
import sys

import pytest

from retell import MSE, Contractive, Part, TopK, Warmup, parse
from retell.grammar import read, vocabulary


class Anything(Part):
    """a part that takes any plain value"""

    value: object
    other: object = None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("-1.5e-3", -0.0015),
        ("'a b'", "a b"),
        ('"it\'s"', "it's"),
        ("None", None),
        ("True", True),
        ("()", ()),
        ("(1, 'a', (2.5, None), -3)", (1, "a", (2.5, None), -3)),
        ("  TopK( k = 8 )\n", TopK(8)),
        ("Anything((1, 'MSE()'), other='x')", Anything((1, "MSE()"), "x")),
        ("Anything(Anything(TopK(1)))", Anything(Anything(TopK(1)))),
        ("(MSE() + Contractive()) * 2", 2 * MSE() + 2 * Contractive()),
        ("Warmup(0.1, 10) * Contractive() + MSE()", Warmup(0.1, 10) * Contractive() + MSE()),
    ],
)
def test_reads_calls_numbers_strings_tuples(text, value):
    found = parse(text, parts=[Anything])
    assert found == value
    assert type(found) is type(value)
    if isinstance(value, Part):
        assert parse(repr(value), parts=[Anything]) == value


HOSTILE = [
    "",
    " ",
    "MSE",
    "MSE(",
    "MSE())",
    "MSE() MSE()",
    "MSE();MSE()",
    "MSE()\nMSE()",
    "x = MSE()",
    "(x := MSE())",
    "import os",
    "__import__('os').system('echo hacked')",
    "eval('1')",
    "open('/etc/passwd')",
    "print(1)",
    "MSE().__class__",
    "MSE.__call__()",
    "MSE().__class__.__mro__[1].__subclasses__()",
    "(lambda: MSE())()",
    "[MSE() for _ in (1, 2)]",
    "[MSE()]",
    "{'a': MSE()}",
    "{MSE()}",
    "f'{MSE()}'",
    "b'bytes'",
    "1j",
    "...",
    "MSE() if True else MSE()",
    "MSE() and MSE()",
    "not MSE()",
    "-MSE()",
    "MSE() - MSE()",
    "MSE() ** 2",
    "2 ** 9999999999",
    "9 * 9",
    "'a' * 999999999999",
    "(999999999999 * MSE()) * 'aaaa'",
    "(99999999999 * MSE()) * (1, 2)",
    "'a' + MSE()",
    "MSE() + 1",
    "MSE() * MSE()",
    "(MSE() + L1()) * (MSE() + L1())",
    "True * MSE()",
    "1e999 * MSE()",
    f"{10**400} * MSE()",
    f"{10**400} * (MSE() + L1())",
    "2 * Warmup(1, 2)",
    "Warmup(1, 2) * Warmup(1, 2) * MSE()",
    "Warmup(1, 2) * (MSE() + L1())",
    "2 * (Warmup(1, 2) * MSE() + L1())",
    "TopK()",
    "TopK(1, 2, 3)",
    "TopK(j=1)",
    "TopK(k=1, k=2)",
    "TopK(self=1)",
    "TopK(*(1,))",
    "TopK(**{'k': 1})",
    "TopK('1')",
    "TopK(None)",
    "TopK(True)",
    "TopK(1.5)",
    "TopK(0)",
    "TopK(-1)",
    "TopK(1e999)",
    "TopK(MSE())",
    f"Gaussian({10**400})",
    f"Warmup({10**400}, 10)",
    "Warmup(1, 0)",
    "Mask(1.0)",
    "KL(1e-999)",
    "Part()",
    "Term()",
    "Objective(())",
    "MSE()\0",
    "\ud800",
    "MSE\u200b()",
    "ＭＳＥ() + ",
    "0777",
    "9" * 5000,
    "(" * 5000 + ")" * 5000,
    "-" * 50000 + "1",
    "MSE()" + " + MSE()" * 50000,
    "TopK(" * 3000 + "1" + ")" * 3000,
]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: ascii(text[:30]))
def test_hostile_texts_are_value_errors(text):
    with pytest.raises(ValueError) as caught:  # noqa: PT011  what it says is tested below
        read(parse(text), "CσJLΩΠλ", "part")
    assert type(caught.value) in {ValueError, UnicodeEncodeError}


@pytest.mark.parametrize(
    "text", [text for text in HOSTILE if text.strip() and len(text) < 1000], ids=lambda text: ascii(text[:30])
)
def test_errors_quote_the_text(text):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        parse(text)
    assert ascii(text)[1:-1].replace("\\'", "'")[:200] in ascii(str(caught.value)).replace("\\\\", "\\").replace(
        "\\'", "'"
    )


@pytest.mark.parametrize("name", sorted(vocabulary()))
def test_an_unknown_name_suggests_the_nearest(name):
    for wrong in (name.lower() + "", name[:-1] + "x", name + "s"):
        if len(name) >= 4 and wrong not in vocabulary():
            with pytest.raises(ValueError, match=f"no part called {wrong!r}; did you mean {name}"):
                parse(f"MSE() + 0.1 * {wrong}(1)")


def test_a_name_like_none_lists_what_is_known():
    with pytest.raises(ValueError, match=r"'Qqqq'; known are .*Contractive.*TopK"):
        parse("Qqqq()")


def test_a_wrong_call_shows_the_right_one():
    with pytest.raises(ValueError, match=r"Warmup\(value, steps\).*missing"):
        parse("Warmup(1)")
    with pytest.raises(ValueError, match=r"KL is called, as in KL\(rho=0\.05\)"):
        parse("MSE() + KL")


@pytest.mark.parametrize(
    ("value", "letters", "message"),
    [
        ("TopK(2)", "C", r"corruption must be a corruption, but TopK\(2\) is a code activation"),
        ("3", "C", "must be a corruption, as text or as an object, got '3'"),
        (Anything(1), "C", r"but Anything\(1\) is a part without a letter"),
        (TopK, "σ", r"is the class TopK: write TopK\(\.\.\.\)"),
        (lambda a: a, "σ", "other callables can't be saved"),
        ("Warmup(1, 2)", "JLΩ", "is a schedule"),
    ],
)
def test_read_checks_the_letter(value, letters, message):
    with pytest.raises((ValueError, TypeError), match=message):
        read(value, letters, "corruption")


EVENTS: list[str] = []
LISTENING = False


def _listen(event, arguments):
    if LISTENING:
        EVENTS.append(event)


def test_nothing_is_evaluated():
    """Python's own audit trail of reading every text above: it is compiled to a tree, and that is all."""
    global LISTENING
    sys.addaudithook(_listen)
    for listening in (False, True):  # the first round imports what messages need
        LISTENING = listening
        try:
            for text in [*HOSTILE[:-5], "MSE() + 0.1 * Contractive()", "'a'"]:
                with contextlib.suppress(ValueError):
                    parse(text)
        finally:
            LISTENING = False
    assert "compile" in EVENTS
    # no exec, import, open, os or subprocess; the other two come from how Python handles errors and reprs
    assert set(EVENTS) <= {"compile", "object.__getattr__", "builtins.id"}
