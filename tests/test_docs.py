"""The documentation runs, is what `make docs` wrote, and each of its claims names the tests that prove it."""

import ast
import importlib.util
import re
import tomllib
import warnings
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from retell import Autoencoder

ROOT = Path(__file__).parents[1]
SPEC = importlib.util.spec_from_file_location("build", ROOT / "docs" / "build.py")
build = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(build)

LECTURE = (ROOT / "docs" / "source" / "lecture.md").read_text()
CLAIMS = tomllib.loads((ROOT / "docs" / "claims.toml").read_text())
NAMED = [test for kind in ("claim", "promise") for entry in CLAIMS[kind] for test in entry["test"]]


@cache
def names_in(path):
    """The names of a file's tests, read and not imported."""
    tree = ast.parse((ROOT / path).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


# --- claims


def test_every_claim_of_the_lecture_has_one_entry():
    marked = re.findall(r"^## .+\n\n<!-- claim: ([a-z0-9-]+) -->$", LECTURE, re.MULTILINE)
    assert len(marked) == LECTURE.count("\n## ") == LECTURE.count("<!-- claim:")  # a section, a claim
    assert Counter(marked) == Counter(entry["id"] for entry in CLAIMS["claim"])
    assert max(Counter(marked).values()) == 1


def test_every_promise_of_the_readme_has_one_entry():
    section = (ROOT / "README.md").read_text().split("\n## What it promises\n")[1].split("\n## ")[0]
    made = re.findall(r"^- \*\*(.+?)\*\*", section, re.MULTILINE)
    assert len(made) == section.count("\n- ") > 3
    assert Counter(made) == Counter(entry["promise"] for entry in CLAIMS["promise"])


def test_every_entry_says_something_and_names_a_test():
    for entry in CLAIMS["claim"] + CLAIMS["promise"]:
        assert set(entry) in ({"id", "says", "test"}, {"promise", "says", "test"})
        assert entry["says"].endswith(".")
        assert entry["test"]
        assert len(set(entry["test"])) == len(entry["test"])


@pytest.mark.parametrize("named", sorted(set(NAMED)))
def test_every_named_test_exists(named):
    path, name = named.split("::")
    assert name in names_in(path)


@pytest.mark.parametrize("seed", range(3))
def test_a_narrow_code_keeps_what_columns_share_and_drops_the_noise_of_each(seed):
    """Three factors behind 30 columns: of the noise, a code of three units lets a tenth through, one of K K / 30."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=(4000, 3)) * [4, 3, 2] @ np.linalg.qr(rng.normal(size=(30, 3)))[0].T
    rows = truth + 0.5 * rng.normal(size=truth.shape)
    for K in (3, 12, 30):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that 30 units can copy 30 columns
            model = Autoencoder(K, hidden_layer_sizes=(), scale=None).fit(rows[:2000])
        left = ((model.reconstruct(rows[2000:]) - truth[2000:]) ** 2).mean()
        assert left == pytest.approx(0.25 * K / 30, rel=0.06)  # but for what 2,000 rows leave uncertain


# --- pages


@pytest.mark.parametrize("name", build.pages())
def test_a_page_runs(name):
    build.run_page(name)


@pytest.mark.parametrize("name", build.pages())
def test_a_built_page_is_that_of_its_source(name):
    build.compare(name)
    page = ROOT / "docs" / f"{name}.md"
    linked = re.findall(r"!\[[^\]\n]+\]\(([^)\n]+\.png)\)", page.read_text())
    assert {(page.parent / path).resolve() for path in linked} == set(build.PICTURES.glob(f"{page.stem}-*.png"))


def test_no_picture_and_no_page_is_left_over():
    stems = {Path(name).name for name in build.pages()}
    assert len(stems) == len(build.pages())  # pictures are named by them
    assert {path.stem.split("-")[0] for path in build.PICTURES.iterdir()} <= stems
    found = [*build.DOCS.glob("*.md"), *(build.DOCS / "papers").glob("*.md")]
    built = {str(path.relative_to(build.DOCS).with_suffix("")) for path in found}
    assert built - {"performance"} == set(build.pages())


# --- the builder


@pytest.fixture
def site(tmp_path, monkeypatch):
    """An empty site; the function writes a source."""
    for name, path in {"DOCS": tmp_path, "SOURCE": tmp_path / "source", "PICTURES": tmp_path / "pictures"}.items():
        monkeypatch.setattr(build, name, path)

    def write(text, name="page"):
        path = tmp_path / "source" / f"{name}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return tmp_path / f"{name}.md"

    return write


PAGE = """# A page

```python
x = 1
print(x)
```

Between.

```python
import matplotlib.pyplot as plt

figure, ax = plt.subplots()
show(figure, "dots", "three dots")
print(x + 1)
```

After.
"""


def test_output_and_pictures_follow_their_block(site):
    page = site(PAGE, "papers/page")
    build.run_page("papers/page", write=True)
    text = page.read_text()
    assert text.startswith("*Made by `make docs` from [its source](../source/papers/page.md).*\n\n# A page\n")
    assert "print(x)\n```\n\n```text\n1\n```\n\nBetween." in text
    assert "print(x + 1)\n```\n\n```text\n2\n```\n\n![three dots](../pictures/page-dots.png)\n\nAfter." in text
    assert (build.PICTURES / "page-dots.png").stat().st_size > 1000
    build.compare("papers/page")


def test_a_check_writes_nothing(site):
    page = site(PAGE)
    build.run_page("page")
    assert not page.exists()
    assert not build.PICTURES.exists()


def test_a_stale_or_missing_page_is_told(site):
    page = site(PAGE)
    with pytest.raises(build.PageError, match="make docs"):
        build.compare("page")
    build.run_page("page", write=True)
    site(PAGE.replace("x = 1", "x = 2"))
    with pytest.raises(build.PageError, match=re.escape(f"{page} is not that of its source")):
        build.compare("page")


@pytest.mark.parametrize("code", ["1 / 0", "assert False", "import warnings; warnings.warn('no')", "x = ("])
def test_a_page_that_raises_or_warns_fails(site, code):
    site(f"# A page\n\n```python\n{code}\n```\n")
    with pytest.raises(build.PageError, match=r"page\.md: a block raised"):
        build.run_page("page")


def test_a_page_starts_afresh(site):
    site("```python\nleft = 1\n```\n", "one")
    site("```python\nprint(left)\n```\n", "two")
    build.run_page("one")
    with pytest.raises(build.PageError, match="NameError"):
        build.run_page("two")
