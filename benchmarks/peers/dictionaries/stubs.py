"""Stands in for packages that a library imports and does not use for what is measured here."""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType


class Stub(ModuleType):
    """A module of which every word is an empty class."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__, self.__path__ = ModuleSpec(name, None), []

    def __getattr__(self, word: str) -> type:
        if word.startswith("__"):
            raise AttributeError(word)
        return type(word, (), {})


def stub(*names: str) -> None:
    """Let `import name` succeed for each."""
    for name in names:
        sys.modules.setdefault(name, Stub(name))
