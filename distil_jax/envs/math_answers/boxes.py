"""Finds what a text puts into boxes: `\\boxed{…}`, `\\fbox{…}`, `\\boxed 5`."""

import re
from typing import NamedTuple

_COMMAND = re.compile(r"\\f?box(?:ed)?(?![A-Za-z])\s{0,20}")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
# TeX boxes one token without braces; what is meant is the number or command.
_BARE = re.compile(
  r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:/\d+)?"
  r"|\\(?:[dt]?frac)(?:\d\d|\s*\{[^{}]{1,100}\}\s*\{[^{}]{1,100}\})"
  r"|\\[a-z]+\s*\{[^{}]{1,100}\}|\\[a-z]+"
  # But not the article, or the pronoun, of a sentence about boxes.
  r"|[A-HJ-Zb-z](?![A-Za-z])"
)
# Braces that are read in all boxes together, so that a completion of nothing
# but boxes takes linear time.
_MAX_BRACES = 10_000
_MAX_RUN = 20
# What may stand between the boxes of one answer: `$x = \boxed{2}$ and $x =`.
_BETWEEN = re.compile(r"[^.!?\\{}\n]{0,60}|[^.!?\n]{0,40}")
_SEPARATOR = re.compile(r"\b(?:and|or)\b|[,;&]")


class Box(NamedTuple):
  """The content of a box, and the places where it begins and ends."""

  content: str
  start: int
  end: int


def last_boxed(text: str) -> str | None:
  """Returns the content of the last closed box, or None.

  Takes time linear in the length of the text.
  """
  found = _boxes(text, 1)
  return found[0].content if found else None


def last_run(text: str, num_values: int = 0) -> list[str]:
  """Returns the contents of the last boxes that together are one answer.

  Args:
    text: Any text.
    num_values: All boxes are one answer if there are so many. Else the last
      ones are, with only `and`, `or`, a comma or space and a few words between
      them.
  """
  boxes = _boxes(text, _MAX_RUN)
  run = boxes[:1]
  for box in boxes[1:]:
    between = text[box.end : run[-1].start]
    if len(boxes) != num_values and not _joins(between):
      break
    run.append(box)
  return [box.content for box in reversed(run)]


def _joins(between: str) -> bool:
  is_short = _BETWEEN.fullmatch(between) is not None
  return not between.strip("$()[]\\ \n") or (
    is_short and _SEPARATOR.search(between) is not None
  )


def has_box(text: str) -> bool:
  """Returns True if a box begins somewhere."""
  return _COMMAND.search(text) is not None


def _boxes(text: str, most: int) -> list[Box]:
  """Returns at most so many closed boxes, the last one first."""
  found: list[Box] = []
  budget = [_MAX_BRACES]
  for command in reversed(list(_COMMAND.finditer(text))):
    if len(found) == most or budget[0] <= 0:
      break
    box = _box_at(text, command, budget)
    # A box around one that was found is no other answer.
    if box is not None and (not found or box.end <= found[-1].start):
      found.append(box)
  return found


def _box_at(text: str, command: re.Match, budget: list[int]) -> Box | None:
  budget[0] -= 1
  start, content = command.span()
  if text[content : content + 1] != "{":
    bare = _BARE.match(text, content)
    return bare and Box(bare[0], start, bare.end())
  depth = 0
  for match in _BRACE.finditer(text, content):
    budget[0] -= 1
    depth += {"{": 1, "}": -1}.get(match[0], 0)
    if depth == 0:
      return Box(text[content + 1 : match.start()], start, match.end())
    if budget[0] <= 0:
      break
  return None
