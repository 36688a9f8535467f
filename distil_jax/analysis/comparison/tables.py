"""What a comparison found, as tables of text."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from distil_jax.analysis.comparison import results
from distil_jax.analysis.comparison.results import (
  Cell,
  Found,
  Measure,
  Records,
  final_accuracy,
)
from distil_jax.analysis.comparison.settings import Comparison

NONE = "–"
_MARKS = {"first": " ★", "tied": " ☆", "behind": ""}
_MEASURES = {
  "entropy": "nats/token",
  "length": "tokens",
  "p_eos": "",
  "good_route": "",
  "teacher": "accuracy",
  "score_share": "",
}
_MEASURES_NOTE = (
  "p_eos: mean probability of the end before the last token. good_route: share "
  "of the first route. teacher: accuracy of its own samples, feedback in its "
  "prompt. score_share: of the score-function term in the gradient's norm, one "
  "seed. Seconds depend on what else the machine did."
)
_VERDICT_NOTE = (
  "first: better than every other arm. tied: within one standard error of the "
  "difference to the first. gap: default less best other, mean and standard "
  "error of the differences seed by seed, for arms share seeds, bases and "
  "problems. One lost seed of n makes a gap as large as its standard error: "
  "look at the worst seed before a tie is believed."
)


def headline(comparison: Comparison, found: Found) -> str:
  """Main arms against families, short enough for a front page."""
  main = _present(results.main_arms(comparison), found)
  columns = {f: results.cells(of_arms, main) for f, of_arms in found.items()}
  rows = [[f"{comparison.accuracy_name}, %", *columns]]
  for arm in main:
    shown = [_marked(columns[family], arm) for family in columns]
    if arm == comparison.default:
      arm, *shown = (f"**{x}**" if x != NONE else x for x in [arm, *shown])
    rows.append([arm, *shown])
  return markdown(rows)


def score(comparison: Comparison, found: Found) -> str:
  """In how many families the default is first, tied or behind; a sentence."""
  places = results.default_places(comparison, found)
  if not places:
    return f"No family has both `{comparison.default}` and another arm yet."
  parts = []
  for place, text in (
    ("first", "first"),
    ("tied", "tied with the first"),
    ("behind", "behind"),
  ):
    names = [family for family in places if places[family] == place]
    which = f" ({', '.join(names)})" if names else ""
    parts.append(f"{text} in {len(names)}{which}")
  left = [name for name in comparison.families if name not in places]
  unfinished = f" Without a result yet: {', '.join(left)}." if left else ""
  return (
    f"`{comparison.default}` is {parts[0]}, {parts[1]} and {parts[2]} of "
    f"{len(places)} families.{unfinished}"
  )


def verdict(comparison: Comparison, found: Found) -> str:
  """Family by family: the default beside the best of the others."""
  main = results.main_arms(comparison)
  head = ["family", "best other", "its accuracy", "default's", "gap"]
  rows = [[*head, "worst seeds", "verdict"]]
  for family, place in results.default_places(comparison, found).items():
    shown = _against_best(comparison, found[family], main)
    rows.append([family, *shown, place])
  if len(rows) == 1:
    return score(comparison, found)
  return f"{markdown(rows)}\n\n{score(comparison, found)}\n\n{_VERDICT_NOTE}"


def accuracies(
  comparison: Comparison, found: Found, measure: Measure = final_accuracy
) -> str:
  """Arms against families; the first is bold, whoever is tied with it too."""
  main = _present(results.main_arms(comparison), found)
  columns = {
    family: results.cells(of_arms, main, measure)
    for family, of_arms in found.items()
  }
  rows = [["arm", *columns, "in bold"]]
  for arm in main:
    shown = [_bold_if_tied(columns[family], arm) for family in columns]
    ran = sum(text != NONE for text in shown)
    bold = sum(text.startswith("**") for text in shown)
    rows.append([arm, *shown, f"{bold} of {ran}"])
  return (
    f"{markdown(rows)}\n\nMean ± standard error over seeds, bases pooled. "
    "Bold: the first and whoever is within one standard error of the "
    f"difference.{missing(comparison, found, main)}"
  )


def ablations(
  comparison: Comparison, found: Found, measure: Measure = final_accuracy
) -> str:
  """How far each ablation is from the arm that it is like, seed by seed."""
  likes = {name: arm.like for name, arm in comparison.arms.items() if arm.like}
  present = _present([*likes], found)
  families = [f for f in found if any(arm in found[f] for arm in present)]
  originals = dict.fromkeys(likes[arm] for arm in present)
  rows = [["arm", *families]]
  for original in originals:
    itself = [results.cells(found[f], [original], measure) for f in families]
    shown = [_percent(c[original]) if c else NONE for c in itself]
    rows.append([f"{original}, itself", *shown])
    for arm in present:
      if likes[arm] == original:
        gaps = [_gap(found[f], arm, original, measure) for f in families]
        rows.append([arm, *gaps])
  note = missing(comparison, found, [*originals, *present])
  return (
    f"{markdown(rows)}\n\nPoints against the arm that each is like, at the "
    "learning rate that it chose: mean ± standard error of the differences "
    f"seed by seed. Bold: more than twice that error.{note}"
  )


def missing(comparison: Comparison, found: Found, arms: Sequence[str]) -> str:
  """A note on cells that have fewer seeds than they are to have."""
  few = [
    f"{arm} in {family} ({len(records)} of {planned})"
    for family, arm, records in rows_of(found, arms)
    if len(records) < (planned := results.planned_seeds(comparison, family))
  ]
  return f"\n\nSeeds still missing: {', '.join(few)}." if few else ""


def pass_at_k(comparison: Comparison, found: Found) -> str:
  """Means over seeds."""
  main = results.main_arms(comparison)
  heads = [f"pass@{k}" for k in comparison.pass_at]
  rows = [["family", "arm", *heads]]
  for family, arm, records in rows_of(found, main):
    values = [[r["after"].get(head) for r in records] for head in heads]
    rows.append(
      [family, arm, *(NONE if None in v else _mean(v, 100, 1) for v in values)]
    )
  problems = comparison.num_pass_problems
  return (
    f"{markdown(rows)}\n\nFrom {problems} held-out problems of their own, so "
    "pass@1 differs from the accuracy above within noise; in a family with a "
    "training config from that config's, whose accuracy it is."
  )


def measures(comparison: Comparison, found: Found) -> str:
  """What else is on the curves, where they end."""
  main = results.main_arms(comparison)
  heads = [f"{k} ({v})" if v else k for k, v in _MEASURES.items()]
  rows = [["family", "arm", *heads, "s / 100 steps"]]
  for family, arm, records in rows_of(found, main):
    shown = []
    for name in _MEASURES:
      values = [r["curve"][-1][name] for r in records if name in r["curve"][-1]]
      # Where there is no teacher it would be the student with feedback.
      if name == "teacher" and not comparison.arms[arm].objective.needs_teacher:
        values = []
      shown.append(_mean(values, 1, 3) if values else NONE)
    seconds = 100 * float(np.median([r["step_seconds"] for r in records]))
    rows.append([family, arm, *shown, f"{seconds:.1f}"])
  return f"{markdown(rows)}\n\n{_MEASURES_NOTE}"


def gradients(
  comparison: Comparison, measured: Mapping[str, Mapping[str, Any]]
) -> str:
  """How well each arm's gradient is estimated."""
  heads = ["noise", "cosine_of_mean", "cosine_of_batch", "variance"]
  rows = [["family", "arm", *heads]]
  for family, record in measured.items():
    for arm, values in record["arms"].items():
      rows.append([family, arm, *(f"{values[head]:.3g}" for head in heads)])
  run = comparison.gradients
  return (
    f"{markdown(rows)}\n\nAgainst the exact gradient of the summed "
    f"cross-entropy, as the mean of {run.num_reference} other batches of a "
    "step's rollouts. noise: standard deviation of one batch over the norm of "
    f"the mean. Base 0, {run.num_batches} batches for each arm."
  )


def markdown(rows: Sequence[Sequence[str]]) -> str:
  """A table whose first row is its head, aligned so that it reads as text."""
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


def rows_of(found: Found, arms: Sequence[str]):
  """Family, arm and records, where there are any."""
  return (
    (family, arm, found[family][arm])
    for family in found
    for arm in arms
    if arm in found[family]
  )


def _is_number(text: str) -> bool:
  return text.startswith(NONE) or text.lstrip("*+-−")[:1].isdigit()


def _present(arms: Sequence[str], found: Found) -> list[str]:
  return [arm for arm in arms if any(arm in of for of in found.values())]


def _marked(column: Mapping[str, Cell], arm: str) -> str:
  own = column.get(arm)
  if own is None:
    return NONE
  others = [c for name, c in column.items() if name != arm]
  if not others:
    return _percent(own)
  is_first = own.mean >= max(other.mean for other in others)
  place = "first" if is_first else results.place(own, others)
  return _percent(own) + _MARKS[place]


def _bold_if_tied(column: Mapping[str, Cell], arm: str) -> str:
  own = column.get(arm)
  if own is None:
    return NONE
  first = max(column.values(), key=lambda c: c.mean)
  text = _percent(own)
  return f"**{text}**" if results.is_tied(own, first) else text


def _gap(
  of_arms: Mapping[str, Records], arm: str, original: str, measure: Measure
) -> str:
  if arm not in of_arms or original not in of_arms:
    return NONE
  found = results.gap(of_arms[arm], of_arms[original], measure)
  if found is None:
    return NONE
  mean, error = found
  text = _points(mean, error, sign="+")
  return f"**{text}**" if abs(mean) > 2 * error else text


def _against_best(
  comparison: Comparison, of_arms: Mapping[str, Records], main: Sequence[str]
) -> list[str]:
  """A row of the verdict, from the name of the best other to worst seeds."""
  cells = results.cells(of_arms, main)
  own_cell = cells.pop(comparison.default)
  best = max(cells, key=lambda arm: cells[arm].mean)
  own, other = of_arms[comparison.default], of_arms[best]
  gap = results.gap(own, other, final_accuracy)
  worst = [100 * min(map(final_accuracy, records)) for records in (own, other)]
  return [
    best,
    _percent(cells[best]),
    _percent(own_cell),
    _points(*gap, sign="+") if gap else NONE,
    f"{worst[0]:.1f}, other {worst[1]:.1f}",
  ]


def _percent(of: Cell) -> str:
  return _points(of.mean, of.error)


def _points(mean: float, error: float, sign: str = "") -> str:
  text = f"{100 * mean:{sign}.1f}"
  return text if math.isnan(error) else f"{text} ± {100 * error:.1f}"


def _mean(values, factor: float, digits: int) -> str:
  return f"{factor * float(np.mean(values)):.{digits}f}"
