"""Text <-> parts: `parse(repr(part)) == part`, and nothing is evaluated.

The grammar is Python's own, read with `ast`: calls of known names, numbers, strings, tuples, True, False,
None, `+` and `*`.

    MSE() + 0.001 * L1() + Warmup(0.1, 1000) * Contractive()
"""

from __future__ import annotations

import ast
import difflib
import inspect
from collections.abc import Iterable, Mapping
from functools import cache
from itertools import combinations
from types import MappingProxyType
from typing import Any

from retell import activations, constraints, corruptions, densities, losses, penalties, schedules
from retell.objective import Objective, Term, as_objective
from retell.parts import Part
from retell.plan import Parts

__all__ = ["parse", "read", "read_parts", "vocabulary"]

LETTERS = {
    "C": ("a corruption", "corruption"),
    "σ": ("a code activation", "code_activation"),
    "L": ("a loss", "objective"),
    "Ω": ("a penalty", "objective"),
    "J": ("an objective", "objective"),
    "Π": ("a constraint", "constraint"),
    "λ": ("a schedule", "coefficient"),
    "p": ("a density", "Likelihood or Prior"),
}

NEEDS = {  # what a part of a letter defines besides being called
    "σ": ("range", "sparse"),
    "L": ("support", "mean", "link"),
    "Π": ("project", "tangent", "unit"),
    "λ": ("at",),
}


@cache
def vocabulary() -> Mapping[str, type[Part]]:
    """Every part that retell brings, by name."""
    modules = (activations, corruptions, schedules, constraints, densities, losses, penalties)
    return MappingProxyType({name: getattr(module, name) for module in modules for name in module.__all__})


def parse(text: str, parts: Iterable[type[Part]] = ()) -> Any:
    """The value that a text denotes.

    Parameters
    ----------
    text : str
        For example ``"TopK(8)"`` or ``"MSE() + 0.001 * L1()"``.
    parts : iterable of classes, optional
        Parts of your own that the text may name.

    Returns
    -------
    Part, Objective or a plain Python value

    Raises
    ------
    ValueError
        If the text is not in the grammar or names an unknown part; the message quotes it.

    Examples
    --------
    >>> from retell import parse
    >>> parse("MSE() + 1e-3 * L1()")
    MSE() + 0.001 * L1()
    """
    known = {**vocabulary(), **{part.__name__: part for part in parts}}
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise ValueError(f"{text!r} can't be read: {getattr(error, 'msg', error)}") from None
    try:
        return _value(tree.body, known, text)
    except RecursionError:
        raise ValueError("the text is nested too deeply to be read") from None


def read(value: Any, letters: str, name: str, parts: Iterable[type[Part]] = ()) -> Any:
    """The part that a parameter holds, as text or as an object, checked for its letter.

    Parameters
    ----------
    value : str or Part
        What the user gave.
    letters : str
        Which letters of the equation fit, for example "C" or "JLΩ".
    name : str
        The parameter's name, for the message.

    Raises
    ------
    ValueError, TypeError
        If it is not such a part.
    """
    part = parse(value, parts) if isinstance(value, str) else value
    letter = str(getattr(part, "letter", ""))
    if isinstance(part, type) and issubclass(part, Part):
        raise TypeError(f"{name} is the class {part.__name__}: write {part.__name__}(...), with parentheses")
    if not isinstance(part, Part):
        raise TypeError(
            f"{name} must be {LETTERS[letters[0]][0]}, as text or as an object, got {value!r}"
            " (other callables can't be saved: write a class of your own below retell.Part)"
        )
    if not letter or letter not in letters:  # "" is in every text
        kind, home = LETTERS.get(letter, ("a part without a letter", "nothing"))
        raise ValueError(f"{name} must be {LETTERS[letters[0]][0]}, but {part!r} is {kind} (it goes into {home})")
    for one in part.terms if isinstance(part, Objective) else [part]:
        lacking = [word for word in NEEDS.get(one.letter, ()) if not hasattr(one, word)]
        if lacking:
            raise TypeError(
                f"{one!r} is {LETTERS[one.letter][0]} and defines no {', '.join(lacking)}: add it to the class"
            )
    return as_objective(part) if isinstance(part, Term | Objective) else part


def read_parts(values: Mapping[str, Any], own: Iterable[type[Part]] = ()) -> Parts:
    """The letters that a mapping of parameters names, as text or as objects."""
    constraint = values["constraint"]
    return Parts(
        objective=read(values["objective"], "JLΩ", "objective", own),
        corruption=read(values["corruption"], "C", "corruption", own),
        code_activation=read(values["code_activation"], "σ", "code_activation", own),
        constraint=constraint if constraint == "auto" else read(constraint, "Π", "constraint", own),
    )


def _value(node: ast.expr, known: Mapping[str, type[Part]], text: str) -> Any:
    match node:
        case ast.Constant(value=bool() | int() | float() | str() | None as value):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -value
        case ast.Tuple(elts=elements):
            return tuple(_value(element, known, text) for element in elements)
        case ast.BinOp(left=left, op=ast.Add() | ast.Mult() as op, right=right):
            return _combine(op, _value(left, known, text), _value(right, known, text), text)
        case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords):
            return _call(name, args, keywords, known, text)
        case ast.Name(id=name) if name in known:
            raise ValueError(f"{text!r}: {name} is called, as in {name}{_arguments(known[name])}")
        case ast.Name(id=name):
            raise ValueError(_unknown(name, known, text))
    raise ValueError(
        f"{text!r}: {ast.unparse(node)!r} is not in the grammar (calls of known names, numbers, strings,"
        " tuples, + and *)"
    )


def _combine(op: ast.operator, left: Any, right: Any, text: str) -> Any:
    sign = "+" if isinstance(op, ast.Add) else "*"
    if not isinstance(left, Part) and not isinstance(right, Part):
        raise ValueError(f"{text!r}: arithmetic on plain values ({left!r} {sign} {right!r}) is not in the grammar")
    try:
        return left + right if sign == "+" else left * right
    except TypeError as error:
        raise ValueError(f"{text!r}: {left!r} {sign} {right!r} makes no sense: {error}") from None
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}") from None


def _call(
    name: str, args: list[ast.expr], keywords: list[ast.keyword], known: Mapping[str, type[Part]], text: str
) -> Part:
    if name not in known:
        raise ValueError(_unknown(name, known, text))
    if any(keyword.arg is None for keyword in keywords):
        raise ValueError(f"{text!r}: ** is not in the grammar")
    twice = [one for one, other in combinations([keyword.arg for keyword in keywords], 2) if one == other]
    if twice:
        raise ValueError(f"{text!r}: {name} is given {twice[0]} twice")
    values = [_value(arg, known, text) for arg in args]
    named = {str(k.arg): _value(k.value, known, text) for k in keywords}
    try:
        return known[name](*values, **named)
    except TypeError as error:
        told = str(error).replace(f"{name}.__init__() ", "")
        raise ValueError(f"{text!r}: {name}{_arguments(known[name])}: {told}") from None
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}") from None


def _arguments(part: type[Part]) -> str:
    parameters = inspect.signature(part).parameters.values()
    return "(" + ", ".join(str(p.replace(annotation=p.empty)) for p in parameters) + ")"


def _unknown(name: str, known: Mapping[str, type[Part]], text: str) -> str:
    small = {other.lower(): other for other in known}
    close = difflib.get_close_matches(name.lower(), small, n=1, cutoff=0.6)
    hint = f"did you mean {small[close[0]]}?" if close else f"known are {', '.join(sorted(known))}"
    return f"{text!r}: there is no part called {name!r}; {hint}"
