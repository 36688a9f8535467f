"""Reads the documentation: pages, code blocks, headings and links."""

import dataclasses
import pathlib
import re

from tests.paths import ROOT

PAGES = sorted(
  [
    *(ROOT / "docs").rglob("*.md"),
    ROOT / "README.md",
    ROOT / "data/README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
  ]
)
_BLOCK = re.compile(
  r"(?:^<!-- (?P<marker>.*?) -->\n)?"
  r"^```(?P<language>\w*)\n(?P<text>.*?)^```$",
  re.MULTILINE | re.DOTALL,
)
_LINK = re.compile(r"\]\(([^)\s]+)\)")


@dataclasses.dataclass(frozen=True)
class Block:
  """Holds a fenced code block.

  Attributes:
    page: its file.
    line: number of its first line in the file.
    language: of the fence, such as `python`.
    text: between the fences.
    marker: text of an HTML comment on the line before, which says how a test
      is to treat the block: `not run: REASON`, `not parsed: REASON`,
      `file: NAME`, `setup: PYTHON` or `needs: PROGRAM`.
  """

  page: pathlib.Path
  line: int
  language: str
  text: str
  marker: str

  def option(self, name: str) -> str | None:
    """Returns what the marker says of a name, or None."""
    key, _, value = self.marker.partition(": ")
    return value if key == name else None


def name_of(page: pathlib.Path) -> str:
  return str(page.relative_to(ROOT))


def blocks(page: pathlib.Path, *languages: str) -> list[Block]:
  """Returns the code blocks of some languages in their order."""
  text = page.read_text(encoding="utf-8")
  return [
    Block(
      page,
      text[: found.start("text")].count("\n") + 1,
      found["language"],
      found["text"],
      found["marker"] or "",
    )
    for found in _BLOCK.finditer(text)
    if found["language"] in languages
  ]


def prose(page: pathlib.Path) -> str:
  """Returns the text of a page without its code blocks."""
  return _BLOCK.sub("", page.read_text(encoding="utf-8"))


def links(page: pathlib.Path) -> list[str]:
  """Returns targets of links that stay within the repository."""
  found = _LINK.findall(prose(page))
  return [t for t in found if not t.startswith(("http://", "https://"))]


def anchors(page: pathlib.Path) -> set[str]:
  """Returns the anchors that GitHub makes of the headings."""
  headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
  return {
    re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")
    for heading in headings
  }
