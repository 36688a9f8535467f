"""Writes samples and checks as one HTML page that needs nothing else."""

import html
from collections.abc import Sequence

from distil_jax.analysis.teacher_check.records import Check
from distil_jax.analysis.teacher_check.samples import (
  HIGH_COST,
  Choice,
  Sample,
  Token,
)

_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto;
  max-width: 78rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; }
th { position: sticky; top: 0; background: Canvas; }
.checks td { white-space: normal; text-align: left; vertical-align: top; }
.ok { color: #1a7f37; } .FAIL { color: #d1242f; font-weight: bold; }
.none { color: #9a6700; }
@media (prefers-color-scheme: dark) { .ok { color: #3fb950; }
  .FAIL { color: #ff7b72; } .none { color: #d29922; } }
"""
# Also stands in notebooks, whose own colours and fonts it leaves alone.
_TOKEN_STYLE = """
h2 { font-size: 1.15rem; margin-top: 2.5rem; }
code, pre, td, .stream { font-family: ui-monospace, monospace; }
pre { white-space: pre-wrap; border-left: 3px solid #8886; margin: .3rem 0;
  padding: .2rem .8rem; }
table { border-collapse: collapse; font-size: 13px; }
th, td { padding: .1rem .6rem; text-align: right; white-space: pre; }
th { border-bottom: 1px solid #8888; }
td.text, th.text { text-align: left; }
tr:hover td { outline: 1px solid #8886; }
.wide { overflow-x: auto; }
.stream { line-height: 2; overflow-wrap: anywhere; }
.stream span { padding: .15rem 0; border-radius: .2rem; }
.tool { opacity: .5; }
"""
_COLUMNS = (
  ("", False),
  ("token", True),
  ("student", False),
  ("teacher", False),
  ("CE", False),
  ("cost", False),
  ("future", False),
  ("credit", False),
  ("student would write", True),
  ("teacher would write", True),
)
_LEGEND = (
  "Probabilities are of the token that the student wrote. CE is the "
  "cross-entropy of the teacher's distribution under the student's, cost what "
  "the objective takes, future the cost still to come, credit the weight of "
  "the token's log-probability; all in nats. The redder a token, the higher "
  "its cost."
)


def to_page(
  title: str, samples: Sequence[Sample], checks: Sequence[Check]
) -> str:
  """Returns the page.

  Args:
    title: names the config.
    samples: from `samples.all_samples`.
    checks: from `checks.all_checks`.
  """
  body = [f"<h1>{_text(title)}</h1>", _checks(checks), f"<p>{_LEGEND}</p>"]
  body += map(_sample, samples)
  return (
    '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
    '<meta name="viewport" content="width=device-width">\n'
    f"<title>{_text(title)}</title>\n<style>{_STYLE}{_TOKEN_STYLE}</style>\n"
    + "\n".join(body)
    + "\n</html>\n"
  )


def fragment(sample: Sample) -> str:
  """Returns a sample as HTML for the output of a notebook's cell."""
  return (
    f'<div class="distil-jax"><style>.distil-jax {{ {_TOKEN_STYLE} }}</style>'
    f"<p>{_LEGEND}</p>\n{_sample(sample)}</div>"
  )


def _checks(checks: Sequence[Check]) -> str:
  rows = []
  for check in checks:
    kind = "none" if check.is_ok is None else check.label
    numbers = _text(check.numbers)
    if check.is_ok is False:
      numbers += f"<br>cure: {_text(check.cure)}"
    rows.append(
      f'<tr><td class="{kind}">{check.label}</td><td>{_text(check.name)}</td>'
      f"<td>{numbers}</td></tr>"
    )
  return f'<table class="checks">{"".join(rows)}</table>'


def _sample(sample: Sample) -> str:
  parts = [
    f"<h2>{_text(sample.title)}</h2><p>{_text(sample.facts)}</p>",
    _block("student's prompt", sample.student_prompt),
    _block("feedback", sample.feedback or "(none)", is_open=True),
  ]
  if sample.teacher_prompt is None:
    parts.append("<p>No teacher signal for this sample.</p>")
    parts.append(_block("completion", sample.completion, is_open=True))
    return "\n".join(parts)
  parts.append(_block("teacher's prompt", sample.teacher_prompt, is_open=True))
  if sample.tokens:
    stream = "".join(map(_streamed, sample.tokens))
    head = "".join(
      f'<th class="text">{name}</th>' if is_text else f"<th>{name}</th>"
      for name, is_text in _COLUMNS
    )
    rows = "\n".join(map(_row, sample.tokens))
    parts.append(f'<p class="stream">{stream}</p>')
    parts.append(
      "<details open><summary>tokens</summary><div class="
      f'"wide"><table><tr>{head}</tr>\n{rows}</table></div></details>'
    )
  return "\n".join(parts)


def _block(name: str, text: str, *, is_open: bool = False) -> str:
  opened = " open" if is_open else ""
  return (
    f"<details{opened}><summary>{name}</summary><pre>{_text(text)}</pre>"
    "</details>"
  )


def _streamed(token: Token) -> str:
  """Returns a token of the running text, coloured by its cost."""
  if not token.is_judged:
    return f'<span class="tool">{_text(token.text)}</span>'
  said = (
    f"student {token.student:.4f}, teacher {token.teacher:.4f}, "
    f"cost {token.cost:.3f}"
  )
  end = "<br>" if token.text.endswith("⏎") else "<wbr>"
  return (
    f'<span style="{_heat(token.cost)}" title="{said}">'
    f"{_text(token.text)}</span>{end}"
  )


def _row(token: Token) -> str:
  numbers = [
    token.student,
    token.teacher,
    token.cross_entropy,
    token.cost,
    token.future,
    token.credit,
  ]
  if not token.is_judged:
    numbers[2:] = [None] * 4
  cells = [f"<td>{token.position}</td>", _text_cell(token.text)]
  for place, number in enumerate(numbers):
    shown = "" if number is None else f"{number:.{4 if place < 2 else 3}f}"
    style = ""
    if place == 3 and number is not None:
      style = f' style="{_heat(number)}"'
    cells.append(f"<td{style}>{shown}</td>")
  cells += [
    _text_cell(_choices(token.student_choices)),
    _text_cell(_choices(token.teacher_choices)),
  ]
  return f"<tr>{''.join(cells)}</tr>"


def _choices(choices: Sequence[Choice]) -> str:
  return "   ".join(f"{c.text} {c.prob:.2f}" for c in choices)


def _text_cell(text: str) -> str:
  return f'<td class="text">{_text(text)}</td>'


def _heat(cost: float) -> str:
  share = min(max(cost / HIGH_COST, 0.0), 1.0)
  return f"background: rgba(220, 50, 30, {0.75 * share:.2f})"


def _text(text: str) -> str:
  return html.escape(text)
