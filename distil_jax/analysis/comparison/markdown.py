"""Formats tables as Markdown."""

from collections.abc import Sequence

NONE = "–"  # stands in a cell that has no value


def table(rows: Sequence[Sequence[str]]) -> str:
  """Formats rows, of which the first is the head, with aligned columns."""
  columns = list(zip(*rows, strict=True))
  is_number = [all(map(_is_number, column[1:])) for column in columns]
  widths = [max(3, *map(len, column)) for column in columns]

  def line(row):
    padded = [
      text.rjust(width) if right else text.ljust(width)
      for text, width, right in zip(row, widths, is_number, strict=True)
    ]
    return "| " + " | ".join(padded) + " |"

  rule = [
    "-" * (width - 1) + ":" if right else "-" * width
    for width, right in zip(widths, is_number, strict=True)
  ]
  return "\n".join([line(rows[0]), line(rule), *map(line, rows[1:])])


def _is_number(text: str) -> bool:
  return text.startswith(NONE) or text.lstrip("*+-−")[:1].isdigit()
