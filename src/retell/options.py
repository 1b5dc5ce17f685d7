"""The parameters of `Settings` as options of a command line, stated once: names, defaults and help come from there."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Sequence
from dataclasses import Field, field, fields, make_dataclass
from itertools import pairwise
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from cyclopts import Group, Parameter, Token

from retell.settings import Settings

__all__ = ["Options", "given", "literal", "several"]

NOT_GIVEN = object()
GROUP = Group("Parameters of the autoencoder", sort_key=9)


def literal(text: str) -> Any:
    """A Python literal, or the text itself; none is None.

    Examples
    --------
    >>> from retell.options import literal
    >>> literal("64"), literal("(512, 256)"), literal("none"), literal("TopK(8)")
    (64, (512, 256), None, 'TopK(8)')
    """
    if text.lower() in ("none", "true", "false"):
        text = text.capitalize()
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _convert(kind: Any, tokens: Sequence[Token]) -> Any:  # noqa: ARG001
    return literal(tokens[0].value)


def _docs() -> dict[str, str]:
    """The text under each field of `Settings`."""
    (record,) = ast.parse(inspect.getsource(Settings)).body
    assert isinstance(record, ast.ClassDef)
    return {
        name.target.id: text.value.value
        for name, text in pairwise(record.body)
        if isinstance(name, ast.AnnAssign)
        and isinstance(name.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }


def _option(setting: Field[Any], hint: Any, doc: str) -> tuple[str, Any, Any]:
    shown = str(setting.default).lower() if setting.default is None else str(setting.default)
    if isinstance(setting.default, bool):
        how = Parameter(help=doc, group=GROUP, show_default=lambda _: shown)
        return setting.name, Annotated[bool, how], field(default=NOT_GIVEN)
    how = Parameter(
        help=doc,
        group=GROUP,
        show_default=lambda _: shown,
        choices=get_args(hint) if get_origin(hint) is Literal else None,
        converter=_convert,
        n_tokens=1,
        metavar="VALUE",
        allow_leading_hyphen=True,
    )
    return setting.name, Annotated[str, how], field(default=NOT_GIVEN)


_hints, _texts = get_type_hints(Settings), _docs()
Options = make_dataclass(
    "Options", [_option(it, _hints[it.name], _texts[it.name]) for it in fields(Settings)], kw_only=True
)
Options.__module__ = __name__  # make_dataclass leaves "types", which cyclopts takes for a built-in


def given(options: Any) -> dict[str, Any]:
    """The parameters that the command line names."""
    return {name: value for name, value in vars(options).items() if value is not NOT_GIVEN}


def several(name: str, value: Any) -> list[Any] | None:
    """The values of a parameter that is given as a list of them, of numbers or of parts; None for one value.

    Examples
    --------
    >>> from retell.options import literal, several
    >>> several("target_l0", literal("8,16")), several("code_activation", "TopK(8), TopK(16)")
    ([8, 16], ['TopK(8)', 'TopK(16)'])
    >>> several("hidden_layer_sizes", literal("(64, 32)")), several("hidden_layer_sizes", literal("[(64, 32), ()]"))
    (None, [(64, 32), ()])
    """
    if isinstance(value, list):
        return value
    if isinstance(value, tuple):
        return None if name.endswith("layer_sizes") else list(value)
    if not isinstance(value, str):
        return None
    try:
        listed = ast.parse(value.strip(), mode="eval").body
    except (SyntaxError, ValueError):
        return None
    if not isinstance(listed, ast.List | ast.Tuple):
        return None
    return [literal(ast.get_source_segment(value.strip(), item) or "") for item in listed.elts]
