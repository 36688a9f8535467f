"""Finds the fenced blocks of Markdown in a completion, outside of thoughts."""

import re
from typing import NamedTuple

# A fence may stand behind the sign of a list item. Possessive quantifiers never
# backtrack, so a line of a million letters is read in linear time.
_FENCE = re.compile(
  r"((?:[ \t]|>)*+(?:(?:[-*+]|\d{1,9}[.)])[ \t]++)?+)(`{3,}+|~{3,}+)"
  r"[ \t]*+([^\n]*+)\Z"
)
_LANGUAGE = re.compile(r"\{?\s*+\.?([\w.+#-]*+)")
_PYTHON = re.compile(r"py(?:thon)?(?:[23](?:\.\d{1,2})?)?", re.IGNORECASE)
_THOUGHT = "</think>"
_TAG = re.compile("</?think>")


class Block(NamedTuple):
  """A closed block.

  Attributes:
    language: The first word behind its fence; empty if there is none.
    source: Its lines, without the indentation of the fence.
  """

  language: str
  source: str

  @property
  def is_python(self) -> bool:
    return _PYTHON.fullmatch(self.language) is not None


class _Open(NamedTuple):
  language: str
  fence: str
  indent: int
  lines: list[str]


def blocks(text: str) -> tuple[list[Block], str | None]:
  """Returns all closed blocks, and the language of one that is never closed.

  Nothing in a thought counts, closed or not. If the chat template opens the
  thought, the completion only closes it, and all before that is a thought.
  """
  found: list[Block] = []
  opened: _Open | None = None
  is_thought = has_thought = False
  for line in text.split("\n"):
    rest = 0
    if opened is not None and not is_thought:
      if not has_thought and _ends_thought(line):
        # The fence was left open in a thought that the template has opened.
        found, opened, has_thought = [], None, True
        line = line.rpartition(_THOUGHT)[2]
      elif _closes(line, opened):
        found.append(Block(opened.language, _source(opened)))
        opened = None
        continue
      else:
        opened.lines.append(line)
        continue
    for tag in _TAG.finditer(line):
      if tag[0] == _THOUGHT and not has_thought:
        found = []
      is_thought, has_thought = tag[0] != _THOUGHT, True
      rest = tag.end()
    line = line[rest:]
    if not is_thought:
      opened = _opening(line)
  return found, None if opened is None or is_thought else opened.language


def last_python(
  text: str, *, takes_unlabelled: bool
) -> tuple[str | None, bool]:
  """Returns the last closed block of Python, and if one is never closed.

  Args:
    text: A completion.
    takes_unlabelled: Take the last block without a language if none is Python.
  """
  found, unclosed = blocks(text)
  is_open = unclosed is not None and Block(unclosed, "").is_python
  for block in reversed(found):
    if block.is_python:
      return block.source, is_open
  if takes_unlabelled:
    is_open |= unclosed == ""
    for block in reversed(found):
      if not block.language:
        return block.source, is_open
  return None, is_open


def _opening(line: str) -> _Open | None:
  match = _FENCE.match(line.rstrip("\r"))
  if match is None or (match[2][0] == "`" and "`" in match[3]):
    return None
  language = _LANGUAGE.match(match[3])
  name = language[1] if language else ""
  return _Open(name, match[2], len(match[1].expandtabs(4)), [])


def _closes(line: str, opened: _Open) -> bool:
  text = line.strip(" \t\r>")
  return len(text) >= len(opened.fence) and not text.strip(opened.fence[0])


def _ends_thought(line: str) -> bool:
  """Returns True if a line closes a thought, and is no string of a program."""
  return _THOUGHT in line and "'" not in line and '"' not in line


def _source(opened: _Open) -> str:
  """Returns the lines, each with the fence's indentation removed."""
  return "".join(f"{_outdented(x, opened.indent)}\n" for x in opened.lines)


def _outdented(line: str, indent: int) -> str:
  space = line[: len(line) - len(line.lstrip(" \t"))]
  if "\t" in space and indent:
    space = space.expandtabs(4)
  return space[min(indent, len(space)) :] + line.lstrip(" \t")
