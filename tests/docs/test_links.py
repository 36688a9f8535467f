"""Checks links, sizes and paths of the documentation."""

import pkgutil
import re

import pytest

from tests.docs import pages
from tests.paths import ROOT

each_page = pytest.mark.parametrize("page", pages.PAGES, ids=pages.name_of)


@each_page
def test_links_and_anchors_resolve(page):
  for target in pages.links(page):
    path, _, anchor = target.partition("#")
    found = (page.parent / path).resolve() if path else page
    assert found.is_relative_to(ROOT), f"{target} leaves the repository"
    assert found.exists(), f"{target} does not exist"
    if anchor:
      assert anchor in pages.anchors(found), f"{target} has no such heading"


@each_page
def test_paths_in_backticks_exist(page):
  names = re.findall(
    r"`((?:configs|benchmarks|notebooks)/[\w./-]+)`",
    page.read_text(encoding="utf-8"),
  )
  for name in names:
    assert (ROOT / name).exists(), f"{name} does not exist"


@each_page
def test_names_of_the_package_exist(page):
  text = page.read_text(encoding="utf-8")
  if page.name == "CHANGELOG.md":
    # Rows of its tables hold the old name and the new one.
    rows = re.findall(r"^ +\|.*?\|(.*)\|$", text, re.MULTILINE)
    text = "\n".join(rows)
  for name in re.findall(r"`(distil_jax(?:\.\w+)+)[`(]", text):
    assert pkgutil.resolve_name(name) is not None


def test_pages_that_the_code_names_exist():
  paths = [
    path
    for folder, kind in (
      ("distil_jax", "*.py"),
      ("benchmarks", "*.py"),
      ("configs", "*.yaml"),
    )
    for path in (ROOT / folder).rglob(kind)
  ]
  for path in paths:
    text = path.read_text(encoding="utf-8")
    for name in re.findall(r"\bdocs/[\w/]+\.(?:md|png)", text):
      assert (ROOT / name).is_file(), f"{path} names {name}"


def test_every_page_can_be_reached_from_the_index():
  index = ROOT / "docs/index.md"
  linked = {
    (index.parent / t.partition("#")[0]).resolve() for t in pages.links(index)
  }
  missing = set((ROOT / "docs").rglob("*.md")) - linked - {index}
  assert not missing, f"docs/index.md does not link {sorted(missing)}"


def test_readme_is_short():
  text = (ROOT / "README.md").read_text(encoding="utf-8")
  assert len(text.splitlines()) <= 180
  assert len(text.split()) <= 1600
  before = text.split("```python")[0]
  assert len(before.splitlines()) < 60


@pytest.mark.parametrize(
  "path",
  [*pages.PAGES, *sorted((ROOT / "configs").rglob("*.yaml"))],
  ids=pages.name_of,
)
def test_nothing_names_a_folder_outside_the_repository(path):
  text = path.read_text(encoding="utf-8")
  depth = len(path.relative_to(ROOT).parts) - 1 if path.suffix == ".md" else 0
  for climb in re.findall(r"(?:\.\./)+", text):
    assert len(climb) // 3 <= depth, f"{climb} leaves the repository"
  assert "../shared" not in text
