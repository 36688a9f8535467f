"""Writes the results of a comparison as Markdown tables."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from distil_jax.analysis.comparison import markdown, statistics
from distil_jax.analysis.comparison.settings import Comparison
from distil_jax.analysis.comparison.statistics import (
  Cell,
  Measure,
  Rank,
  final_accuracy,
)
from distil_jax.analysis.comparison.trial_record import Found, Records

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
  """Returns main arms against families, short enough for a front page."""
  main = _present(comparison.main_arms, found)
  columns = {f: statistics.cells(by_arm, main) for f, by_arm in found.items()}
  rows = [[f"{comparison.accuracy_name}, %", *columns]]
  for arm in main:
    shown = [_marked(columns[family], arm) for family in columns]
    if arm == comparison.default:
      arm, *shown = (
        f"**{x}**" if x != markdown.NONE else x for x in [arm, *shown]
      )
    rows.append([arm, *shown])
  return markdown.table(rows)


def score(comparison: Comparison, found: Found) -> str:
  """Returns a sentence: in which families the default is first or tied."""
  ranks = default_ranks(comparison, found)
  if not ranks:
    return f"No family has both `{comparison.default}` and another arm yet."
  parts = []
  for rank, text in (
    ("first", "first"),
    ("tied", "tied with the first"),
    ("behind", "behind"),
  ):
    names = [family for family in ranks if ranks[family] == rank]
    which = f" ({', '.join(names)})" if names else ""
    parts.append(f"{text} in {len(names)}{which}")
  left = [name for name in comparison.families if name not in ranks]
  unfinished = f" Without a result yet: {', '.join(left)}." if left else ""
  return (
    f"`{comparison.default}` is {parts[0]}, {parts[1]} and {parts[2]} of "
    f"{len(ranks)} families.{unfinished}"
  )


def verdict(comparison: Comparison, found: Found) -> str:
  """Returns the default beside the best other arm, family by family."""
  main = comparison.main_arms
  head = ["family", "best other", "its accuracy", "default's", "gap"]
  rows = [[*head, "worst seeds", "verdict"]]
  for family, rank in default_ranks(comparison, found).items():
    shown = _against_best(comparison, found[family], main)
    rows.append([family, *shown, rank])
  if len(rows) == 1:
    return score(comparison, found)
  return (
    f"{markdown.table(rows)}\n\n{score(comparison, found)}\n\n{_VERDICT_NOTE}"
  )


def default_ranks(comparison: Comparison, found: Found) -> dict[str, Rank]:
  """Returns the rank of the default among the main arms, by family.

  Families in which the default or every other arm has not run are left out.
  """
  ranks = {}
  for family, by_arm in found.items():
    others = statistics.cells(by_arm, comparison.main_arms)
    own = others.pop(comparison.default, None)
    if own and others:
      ranks[family] = statistics.rank(own, [*others.values()])
  return ranks


def accuracies(
  comparison: Comparison, found: Found, measure: Measure = final_accuracy
) -> str:
  """Returns arms against families; the first and those tied are bold."""
  main = _present(comparison.main_arms, found)
  columns = {
    family: statistics.cells(by_arm, main, measure)
    for family, by_arm in found.items()
  }
  rows = [["arm", *columns, "in bold"]]
  for arm in main:
    shown = [_bold_if_tied(columns[family], arm) for family in columns]
    ran = sum(text != markdown.NONE for text in shown)
    bold = sum(text.startswith("**") for text in shown)
    rows.append([arm, *shown, f"{bold} of {ran}"])
  return (
    f"{markdown.table(rows)}\n\nMean ± standard error over seeds, bases "
    "pooled. Bold: the first and whoever is within one standard error of the "
    f"difference.{missing(comparison, found, main)}"
  )


def ablations(
  comparison: Comparison, found: Found, measure: Measure = final_accuracy
) -> str:
  """Returns the difference of each ablation to the arm that it is like."""
  likes = {name: arm.like for name, arm in comparison.arms.items() if arm.like}
  present = _present([*likes], found)
  families = [f for f in found if any(arm in found[f] for arm in present)]
  # A dictionary keeps the order of the config and drops repetitions.
  originals = dict.fromkeys(likes[arm] for arm in present)
  rows = [["arm", *families]]
  for original in originals:
    itself = [statistics.cells(found[f], [original], measure) for f in families]
    shown = [_percent(c[original]) if c else markdown.NONE for c in itself]
    rows.append([f"{original}, itself", *shown])
    for arm in present:
      if likes[arm] == original:
        gaps = [_gap(found[f], arm, original, measure) for f in families]
        rows.append([arm, *gaps])
  note = missing(comparison, found, [*originals, *present])
  return (
    f"{markdown.table(rows)}\n\nPoints against the arm that each is like, at "
    "the learning rate that it chose: mean ± standard error of the differences "
    f"seed by seed. Bold: more than twice that error.{note}"
  )


def missing(comparison: Comparison, found: Found, arms: Sequence[str]) -> str:
  """Returns a note on cells that have fewer seeds than planned, or nothing."""
  few = [
    f"{arm} in {family} ({len(records)} of {planned})"
    for family, arm, records in statistics.rows_of(found, arms)
    if len(records) < (planned := comparison.planned_seeds(family))
  ]
  return f"\n\nSeeds still missing: {', '.join(few)}." if few else ""


def pass_at_k(comparison: Comparison, found: Found) -> str:
  """Returns pass@k of main arms, as means over seeds."""
  main = comparison.main_arms
  heads = [f"pass@{k}" for k in comparison.pass_at]
  rows = [["family", "arm", *heads]]
  for family, arm, records in statistics.rows_of(found, main):
    values = [[r["after"].get(head) for r in records] for head in heads]
    rows.append(
      [
        family,
        arm,
        *(markdown.NONE if None in v else _mean(v, 100, 1) for v in values),
      ]
    )
  problems = comparison.num_pass_problems
  return (
    f"{markdown.table(rows)}\n\nFrom {problems} held-out problems of their "
    "own, so pass@1 differs from the accuracy above within noise; in a family "
    "with a training config from that config's, whose accuracy it is."
  )


def measures(comparison: Comparison, found: Found) -> str:
  """Returns the other measures at the end of the learning curves."""
  main = comparison.main_arms
  heads = [f"{k} ({v})" if v else k for k, v in _MEASURES.items()]
  rows = [["family", "arm", *heads, "s / 100 steps"]]
  for family, arm, records in statistics.rows_of(found, main):
    shown = []
    for name in _MEASURES:
      # Measures that not every family has are taken where they are.
      values = [r["curve"][-1][name] for r in records if name in r["curve"][-1]]
      # Without a teacher it would measure the student, given feedback.
      if name == "teacher" and not comparison.arms[arm].objective.needs_teacher:
        values = []
      shown.append(_mean(values, 1, 3) if values else markdown.NONE)
    # The median, because other work on the machine disturbs some trials.
    seconds = 100 * float(np.median([r["step_seconds"] for r in records]))
    rows.append([family, arm, *shown, f"{seconds:.1f}"])
  return f"{markdown.table(rows)}\n\n{_MEASURES_NOTE}"


def gradients(
  comparison: Comparison, measured: Mapping[str, Mapping[str, Any]]
) -> str:
  """Returns how well each arm's gradient is estimated."""
  heads = ["noise", "cosine_of_mean", "cosine_of_batch", "variance"]
  rows = [["family", "arm", *heads]]
  for family, record in measured.items():
    for arm, values in record["arms"].items():
      rows.append([family, arm, *(f"{values[head]:.3g}" for head in heads)])
  run = comparison.gradients
  return (
    f"{markdown.table(rows)}\n\nAgainst the exact gradient of the summed "
    f"cross-entropy, as the mean of {run.num_reference} other batches of a "
    "step's rollouts. noise: standard deviation of one batch over the norm of "
    f"the mean. Base 0, {run.num_batches} batches for each arm."
  )


def _present(arms: Sequence[str], found: Found) -> list[str]:
  return [arm for arm in arms if any(arm in of for of in found.values())]


def _marked(column: Mapping[str, Cell], arm: str) -> str:
  own = column.get(arm)
  if own is None:
    return markdown.NONE
  others = [c for name, c in column.items() if name != arm]
  # An arm alone is neither first nor behind.
  if not others:
    return _percent(own)
  is_first = own.mean >= max(other.mean for other in others)
  rank = "first" if is_first else statistics.rank(own, others)
  return _percent(own) + _MARKS[rank]


def _bold_if_tied(column: Mapping[str, Cell], arm: str) -> str:
  own = column.get(arm)
  if own is None:
    return markdown.NONE
  first = max(column.values(), key=lambda c: c.mean)
  text = _percent(own)
  return f"**{text}**" if statistics.is_tied(own, first) else text


def _gap(
  by_arm: Mapping[str, Records], arm: str, original: str, measure: Measure
) -> str:
  if arm not in by_arm or original not in by_arm:
    return markdown.NONE
  found = statistics.gap(by_arm[arm], by_arm[original], measure)
  if found is None:
    return markdown.NONE
  mean, error = found
  text = _points(mean, error, sign="+")
  return f"**{text}**" if abs(mean) > 2 * error else text


def _against_best(
  comparison: Comparison, by_arm: Mapping[str, Records], main: Sequence[str]
) -> list[str]:
  """Returns a row of the verdict, from the best other arm to worst seeds."""
  cells = statistics.cells(by_arm, main)
  own_cell = cells.pop(comparison.default)
  best = max(cells, key=lambda arm: cells[arm].mean)
  own, other = by_arm[comparison.default], by_arm[best]
  gap = statistics.gap(own, other, final_accuracy)
  worst = [100 * min(map(final_accuracy, records)) for records in (own, other)]
  return [
    best,
    _percent(cells[best]),
    _percent(own_cell),
    _points(*gap, sign="+") if gap else markdown.NONE,
    f"{worst[0]:.1f}, other {worst[1]:.1f}",
  ]


def _percent(cell: Cell) -> str:
  return _points(cell.mean, cell.error)


def _points(mean: float, error: float, sign: str = "") -> str:
  text = f"{100 * mean:{sign}.1f}"
  return text if math.isnan(error) else f"{text} ± {100 * error:.1f}"


def _mean(values, factor: float, digits: int) -> str:
  return f"{factor * float(np.mean(values)):.{digits}f}"
