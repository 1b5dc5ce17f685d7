"""The documentation: pages of prose and code, whose output is whatever the code prints and draws when it is run.

A source is docs/source/NAME.md. Its ```python blocks run in order in one namespace; what a block prints follows it
in the page docs/NAME.md. `show(figure, name, alt)`, which every block can call, adds a picture.

    python docs/build.py [--check] [NAME ...]

--check writes nothing: it runs every page and compares the code of the built page with that of its source.
"""

import argparse
import contextlib
import io
import os
import re
import sys
import time
import warnings
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

DOCS = Path(__file__).resolve().parent
SOURCE, PICTURES = DOCS / "source", DOCS / "pictures"
BLOCK = re.compile(r"^```python\n(.*?)^```\n", re.DOTALL | re.MULTILINE)
STYLE = {
    "axes.prop_cycle": plt.cycler(color=["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"]),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": "medium",
    "figure.constrained_layout.use": True,
    "figure.figsize": (6.4, 3.0),
    "font.size": 10,
    "image.cmap": "gray_r",
    "image.interpolation": "nearest",
    "legend.frameon": False,
    "savefig.dpi": 80,
}


class PageError(Exception):
    """A block raised, or a built page is not that of its source."""


def pages() -> list[str]:
    """The names of all pages: "lecture", "papers/..."."""
    return sorted(str(path.relative_to(SOURCE).with_suffix("")) for path in SOURCE.rglob("*.md"))


def blocks(text: str) -> list[str]:
    """The code of a page, block by block."""
    return [match[1] for match in BLOCK.finditer(text)]


def run_page(name: str, *, write: bool = False) -> str:
    """Run the code of a page, in which every warning is an error.

    Parameters
    ----------
    name : str
    write : bool, default=False
        Whether to write the page and its pictures.

    Returns
    -------
    str
        The page with what its blocks print and draw.
    """
    source, page = SOURCE / f"{name}.md", DOCS / f"{name}.md"
    text, pictures, made, end = source.read_text(), [], [], 0
    if write:
        PICTURES.mkdir(exist_ok=True)
        for old in PICTURES.glob(f"{page.stem}-*.png"):
            old.unlink()

    def show(figure, title, alt):
        path = PICTURES / f"{page.stem}-{title}.png"
        figure.savefig(path if write else io.BytesIO(), metadata={"Software": None})
        plt.close(figure)
        pictures.append(f"\n![{alt}]({os.path.relpath(path, page.parent)})\n")

    namespace = {"__name__": "page", "show": show}
    with warnings.catch_warnings(), plt.rc_context(STYLE):
        warnings.simplefilter("error")
        for match in BLOCK.finditer(text):
            # empty lines first, so that a traceback shows the line of the source
            code = "\n" * text.count("\n", 0, match.start(1)) + match[1]
            printed = io.StringIO()
            try:
                with contextlib.redirect_stdout(printed):
                    exec(compile(code, source, "exec"), namespace)
            except Exception as error:
                raise PageError(f"{source}: a block raised {type(error).__name__}: {error}") from error
            made += [text[end : match.end()], f"\n```text\n{printed.getvalue()}```\n" if printed.getvalue() else ""]
            made += pictures
            pictures.clear()
            end = match.end()
    from_here = os.path.relpath(source, page.parent)
    built = f"*Made by `make docs` from [its source]({from_here}).*\n\n" + "".join([*made, text[end:]])
    if write:
        page.parent.mkdir(exist_ok=True)
        page.write_text(built)
    return built


def compare(name: str) -> None:
    """Raise PageError unless the built page holds the code of its source."""
    page = DOCS / f"{name}.md"
    if not page.exists() or blocks(page.read_text()) != blocks((SOURCE / f"{name}.md").read_text()):
        raise PageError(f"{page} is not that of its source: run `make docs`")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("page", nargs="*", help="such as lecture; all by default")
    parser.add_argument("--check", action="store_true", help="write nothing")
    arguments = parser.parse_args()
    for name in arguments.page or pages():
        start = time.perf_counter()
        run_page(name, write=not arguments.check)
        compare(name)
        print(f"{name:<40}{time.perf_counter() - start:6.1f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
