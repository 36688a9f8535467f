"""Writes samples and checks as text, with colours for a terminal."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import TextIO

from distil_jax.analysis.teacher_check.records import Check, Finding
from distil_jax.analysis.teacher_check.samples import (
  HIGH_COST,
  Choice,
  Sample,
  Token,
)

# Tokens of a sample that a terminal shows; the page has all of them.
_NUM_SHOWN = 200
_COLOURS = {"ok": "32", "FAIL": "1;31", "--": "33"}
_HEAT = ("32", "33", "31")
_HEAD = (
  f"{'':>4}  {'token':14} {'student':>8} {'teacher':>8} {'CE':>7} {'cost':>7} "
  f"{'future':>7} {'credit':>7}  {'student would write':37}  "
  "teacher would write"
)


def has_colours(stream: TextIO, environment: Mapping[str, str]) -> bool:
  """Returns True on a terminal whose user has not set NO_COLOR."""
  return stream.isatty() and not environment.get("NO_COLOR")


def to_text(
  samples: Sequence[Sample], checks: Sequence[Check], *, colours: bool
) -> str:
  """Returns the whole report."""
  parts = [sample_text(sample, colours=colours) for sample in samples]
  parts.append(checks_text(checks, colours=colours))
  return "\n".join(parts)


def sample_text(sample: Sample, *, colours: bool) -> str:
  """Returns a sample: prompts, verdict, and one line for each token."""
  lines = [
    _paint(f"== {sample.title}: {sample.facts}", "1", colours),
    "student's prompt:",
    _indented(sample.student_prompt),
    "feedback:",
    _indented(sample.feedback or "(none)"),
  ]
  if sample.teacher_prompt is None:
    lines += ["teacher's prompt: none, this sample has no teacher signal"]
    lines += ["completion:", _indented(sample.completion), ""]
    return "\n".join(lines)
  lines += ["teacher's prompt:", _indented(sample.teacher_prompt)]
  if sample.tokens:
    lines += ["", _paint(_HEAD, "1", colours)]
  lines += [_token_line(token, colours) for token in sample.tokens[:_NUM_SHOWN]]
  num_left = len(sample.tokens) - _NUM_SHOWN
  if num_left > 0:
    lines.append(f"      {num_left} more tokens; --html FILE shows all of them")
  return "\n".join([*lines, ""])


def checks_text(checks: Sequence[Check], *, colours: bool) -> str:
  """Returns a line for each check, and the cure of those that failed."""
  lines = []
  for check in checks:
    label = _paint(f"{check.label:4}", _COLOURS[check.label], colours)
    lines.append(f"{label}  {check.name}: {check.numbers}")
    if check.is_ok is False:
      lines.append(f"      cure: {check.cure}")
  return "\n".join(lines)


def finding_text(finding: Finding, *, colours: bool) -> str:
  """Returns a finding of a check before a run: its label, name and lines."""
  label = {True: "ok", False: "FAIL", None: "--"}[finding.is_ok]
  lines = [f"{_paint(f'{label:4}', _COLOURS[label], colours)}  {finding.name}"]
  return "\n".join([*lines, *(f"        {line}" for line in finding.lines)])


def _token_line(token: Token, colours: bool) -> str:
  line = (
    f"{token.position:>4}  {_cell(token.text, 14)} {token.student:8.4f} "
    f"{token.teacher:8.4f}"
  )
  if not token.is_judged:
    return f"{line}  (not judged)"
  heat = _paint(f"{token.cost:7.3f}", _heat(token.cost), colours)
  later = " ".join(
    " " * 7 if x is None else f"{x:7.3f}" for x in (token.future, token.credit)
  )
  return (
    f"{line} {token.cross_entropy:7.3f} {heat} {later}  "
    f"{_cell(_choices(token.student_choices), 37)}  "
    f"{_choices(token.teacher_choices)}"
  ).rstrip()


def _choices(choices: Sequence[Choice]) -> str:
  return "  ".join(f"{_cell(c.text, 6)} {c.prob:.2f}" for c in choices)


def _cell(text: str, width: int) -> str:
  """Returns the text at a width, marked if it is longer."""
  short = text if len(text) <= width else f"{text[: width - 1]}…"
  return short.ljust(width)


def _heat(cost: float) -> str:
  """Returns a colour from green, no cost, to red."""
  share = min(max(cost / HIGH_COST, 0.0), 0.999)
  return _HEAT[int(share * len(_HEAT))]


def _paint(text: str, code: str, colours: bool) -> str:
  return f"\x1b[{code}m{text}\x1b[0m" if colours else text


def _indented(text: str) -> str:
  # A model's text must not send commands to the terminal.
  clean = "".join(x if x.isprintable() or x in "\n\t" else "�" for x in text)
  return textwrap.indent(clean.rstrip("\n"), "    | ", lambda line: True)
