"""What a comparison found, as tables of text."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from distil_jax import config as configs
from distil_jax.comparison import catalogue, study
from distil_jax.comparison.settings import Comparison

Done = Mapping[study.Trial, Mapping[str, Any]]
Records = Sequence[Mapping[str, Any]]
# Reported records by family, then by arm; without those that have none.
Found = Mapping[str, Mapping[str, Records]]
Measure = Callable[[Mapping[str, Any]], float]

_NONE = "–"
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
  "first: no other arm is better. tied: within one standard error of the "
  "difference. gap: default less best other, mean and standard error of the "
  "differences seed by seed, for arms share seeds, bases and problems. One "
  "lost seed of n makes a gap as large as its standard error: look at the "
  "worst seed before a tie is believed."
)


@dataclasses.dataclass(frozen=True)
class Cell:
  """Mean and standard error over the seeds of an arm in a family.

  The error is NaN where there is one seed alone.
  """

  mean: float
  error: float
  num_seeds: int
  learning_rate: float


def reported(
  comparison: Comparison, done: Done, family: str, arm: str
) -> Records:
  """The records that count: chosen learning rate, seeds of the report."""
  rate = study.chosen_rate(comparison, family, arm, done)
  return [
    record
    for trial, record in done.items()
    if (trial.family, trial.arm) == (family, arm)
    and trial.learning_rate == rate
    and not trial.is_tuning
  ]


def collect(comparison: Comparison, done: Done) -> Found:
  """All records that count."""
  found = {}
  for family in comparison.families:
    of_arms = {
      arm: reported(comparison, done, family, arm) for arm in comparison.arms
    }
    of_arms = {arm: records for arm, records in of_arms.items() if records}
    if of_arms:
      found[family] = of_arms
  return found


def main_arms(comparison: Comparison) -> list[str]:
  """The arms that choose their own learning rate; others are ablations."""
  return [name for name, arm in comparison.arms.items() if arm.like is None]


def cell(records: Records, measure: Measure) -> Cell:
  """Over the seeds of an arm in a family, of which there is at least one."""
  mean, error = _mean_and_error([measure(record) for record in records])
  return Cell(mean, error, len(records), records[0]["learning_rate"])


def is_tied(one: Cell, first: Cell) -> bool:
  """Whether `one` is within a standard error of the difference to `first`.

  Without an error, from one seed alone, only equals are tied.
  """
  error = math.hypot(one.error, first.error)
  return one.mean >= first.mean - (0.0 if math.isnan(error) else error)


def final_accuracy(record: Mapping[str, Any]) -> float:
  return record["after"]["avg"]


def mean_accuracy(record: Mapping[str, Any]) -> float:
  """Over the curve: how early it learns."""
  return float(np.mean([point["avg"] for point in record["curve"]]))


def report(comparison: Comparison, done: Done) -> str:
  """The whole report as Markdown."""
  found = collect(comparison, done)
  main = main_arms(comparison)
  ablations = [arm for arm in comparison.arms if arm not in main]
  sections = {
    "Families": _questions(comparison, done),
    "Is the default first?": verdict(comparison, done),
    "Held-out accuracy (avg@4) at the end, %": _accuracy_table(
      comparison, found, main, final_accuracy
    ),
    "Mean over the learning curve (how early it learns), %": _accuracy_table(
      comparison, found, main, mean_accuracy
    ),
    "pass@k at the end, %": _pass_table(comparison, found, main),
    "Other measures at the end": _measures(comparison, found, main),
    "Learning rates chosen": _rates(comparison, done, main),
  }
  if ablations:
    arms = [comparison.default, *ablations]
    sections["Ablations: held-out accuracy at the end, %"] = _accuracy_table(
      comparison, found, arms, final_accuracy
    )
    sections["Ablations: mean over the learning curve, %"] = _accuracy_table(
      comparison, found, arms, mean_accuracy
    )
  measured = study.read_gradients(comparison.directory)
  if measured:
    sections["Gradients at the base"] = _gradients(measured)
  parts = [f"## {title}\n\n{text}\n" for title, text in sections.items()]
  return "\n".join([f"# {comparison.name}\n", _made_by(found), *parts])


def _made_by(found: Found) -> str:
  """The commits that the reported trials ran at."""
  revisions = {
    _revision(record["revision"])
    for arms in found.values()
    for records in arms.values()
    for record in records
  }
  return f"Commits: {', '.join(sorted(revisions)) or _NONE}.\n"


def _revision(found: Mapping[str, Any] | None) -> str:
  if found is None:
    return "unknown"
  return found["commit"][:12] + (" with changes" if found["dirty"] else "")


def _gradients(measured: Mapping[str, Mapping[str, Mapping]]) -> str:
  heads = ["noise", "cosine_of_mean", "cosine_of_batch", "variance"]
  rows = [["family", "arm", *heads]]
  for family, arms in measured.items():
    for arm, values in arms.items():
      rows.append([family, arm, *(f"{values[head]:.3g}" for head in heads)])
  return markdown(rows) + (
    "\n\nAgainst the exact gradient of the summed cross-entropy, as the mean "
    "of many other batches. noise: standard deviation of one batch over the "
    "norm of the mean."
  )


def verdict(comparison: Comparison, done: Done) -> str:
  """Family by family: the default beside the best of the others."""
  found = collect(comparison, done)
  main = main_arms(comparison)
  head = ["family", "best other", "its accuracy", "default's", "gap"]
  rows = [[*head, "worst seeds", "verdict"]]
  for family, of_arms in found.items():
    own = of_arms.get(comparison.default)
    others = [a for a in main if a in of_arms and a != comparison.default]
    if own and others:
      rows.append([family, *_against_best(own, others, of_arms)])
  if len(rows) == 1:
    return f"No family has both `{comparison.default}` and another arm yet."
  places = [row[-1] for row in rows[1:]]
  counts = ", ".join(
    f"{place} in {places.count(place)}" for place in ("first", "tied", "behind")
  )
  return (
    f"{markdown(rows)}\n\nThe default, `{comparison.default}`: {counts} of "
    f"{len(places)}.\n\n{_VERDICT_NOTE}"
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


def _is_number(text: str) -> bool:
  return text.startswith(_NONE) or text.lstrip("*+-−")[:1].isdigit()


def _mean_and_error(values: Sequence[float]) -> tuple[float, float]:
  error = math.nan
  if len(values) > 1:
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
  return float(np.mean(values)), error


def _percent(mean: float, error: float, sign: str = "") -> str:
  text = f"{100 * mean:{sign}.1f}"
  return text if math.isnan(error) else f"{text} ± {100 * error:.1f}"


def _questions(comparison: Comparison, done: Done) -> str:
  rows = [["family", "question", "base, %", "steps", "rollouts"]]
  for name, run in comparison.families.items():
    before = {
      t.base: r["before"]["avg"] for t, r in done.items() if t.family == name
    }
    base = f"{100 * np.mean([*before.values()]):.1f}" if before else _NONE
    rollouts = run.num_steps * run.num_problems * run.group_size
    question = run.question
    if not run.config:
      question = catalogue.FAMILIES[name].question
    rows.append([name, question, base, f"{run.num_steps}", f"{rollouts}"])
  return markdown(rows)


def _accuracy_table(comparison, found: Found, arms, measure: Measure) -> str:
  """Arms against families; the first is bold, whoever is tied with it too."""
  families = [f for f in found if any(arm in found[f] for arm in arms)]
  columns = {
    family: {a: cell(r, measure) for a, r in found[family].items() if a in arms}
    for family in families
  }
  rows = [["arm", *families, "in bold"]]
  for arm in arms:
    shown = [_shown(columns[family], arm) for family in families]
    present = [text for text in shown if text != _NONE]
    if present:
      bold = sum(text.startswith("**") for text in present)
      rows.append([arm, *shown, f"{bold} of {len(present)}"])
  return markdown(rows) + _accuracy_notes(comparison, found, arms)


def _accuracy_notes(comparison, found: Found, arms) -> str:
  few = [
    f"{arm} in {family} ({len(found[family][arm])} of {planned})"
    for family in found
    for arm in arms
    if arm in found[family]
    and len(found[family][arm])
    < (planned := comparison.families[family].seeds or comparison.seeds)
  ]
  note = (
    "\n\nMean ± standard error over seeds, bases pooled. Bold: the first and "
    "whoever is within one standard error of the difference."
  )
  return note + (f"\n\nSeeds still missing: {', '.join(few)}." if few else "")


def _shown(column: Mapping[str, Cell], arm: str) -> str:
  own = column.get(arm)
  if own is None:
    return _NONE
  first = max(column.values(), key=lambda c: c.mean)
  text = _percent(own.mean, own.error)
  return f"**{text}**" if is_tied(own, first) else text


def _against_best(own: Records, others, of_arms) -> list[str]:
  """A row of the verdict, from the name of the best other on."""
  cells = {a: cell(of_arms[a], final_accuracy) for a in others}
  name = max(others, key=lambda a: cells[a].mean)
  mine, best = cell(own, final_accuracy), cells[name]
  if mine.mean > best.mean:
    place = "first"
  else:
    place = "tied" if is_tied(mine, best) else "behind"
  of_seed = {r["seed"]: final_accuracy(r) for r in of_arms[name]}
  gaps = [
    final_accuracy(r) - of_seed[r["seed"]] for r in own if r["seed"] in of_seed
  ]
  worst = [100 * min(map(final_accuracy, r)) for r in (own, of_arms[name])]
  return [
    name,
    _percent(best.mean, best.error),
    _percent(mine.mean, mine.error),
    _percent(*_mean_and_error(gaps), sign="+") if gaps else _NONE,
    f"{worst[0]:.1f}, other {worst[1]:.1f}",
    place,
  ]


def _pass_table(comparison: Comparison, found: Found, main) -> str:
  heads = [f"pass@{k}" for k in comparison.pass_at]
  rows = [["family", "arm", *heads]]
  for family, arm, records in _rows(found, main):
    values = [[r["after"].get(head) for r in records] for head in heads]
    rows.append(
      [family, arm, *(_NONE if None in v else _mean(v, 100, 1) for v in values)]
    )
  problems = comparison.num_pass_problems
  return (
    f"{markdown(rows)}\n\nFrom {problems} held-out problems of their own, so "
    "pass@1 differs from the accuracy above within noise."
  )


def _measures(comparison: Comparison, found: Found, main) -> str:
  heads = [f"{k} ({v})" if v else k for k, v in _MEASURES.items()]
  rows = [["family", "arm", *heads, "s / 100 steps"]]
  for family, arm, records in _rows(found, main):
    shown = []
    for name in _MEASURES:
      values = [r["curve"][-1][name] for r in records if name in r["curve"][-1]]
      # Where there is no teacher it would be the student with feedback.
      if name == "teacher" and not _has_teacher(comparison, arm):
        values = []
      shown.append(_mean(values, 1, 3) if values else _NONE)
    seconds = 100 * float(np.median([r["step_seconds"] for r in records]))
    rows.append([family, arm, *shown, f"{seconds:.1f}"])
  return f"{markdown(rows)}\n\n{_MEASURES_NOTE}"


def _has_teacher(comparison: Comparison, arm: str) -> bool:
  return configs.needs_teacher(comparison.arms[arm].objective)


def _rates(comparison: Comparison, done: Done, main) -> str:
  rows = [["arm", *comparison.families]]
  for arm in main:
    rates = [
      _rate(comparison, done, family, arm) for family in comparison.families
    ]
    rows.append([arm, *rates])
  return f"{markdown(rows)}\n\nAn asterisk: at an end of its grid."


def _rate(comparison: Comparison, done: Done, family: str, arm: str) -> str:
  rate = study.chosen_rate(comparison, family, arm, done)
  if rate is None:
    return _NONE
  grid = comparison.learning_rates_of(family, arm)
  is_end = len(grid) > 1 and rate in (min(grid), max(grid))
  return f"{rate:g}{'*' if is_end else ''}"


def _rows(found: Found, arms):
  return (
    (family, arm, found[family][arm])
    for family in found
    for arm in arms
    if arm in found[family]
  )


def _mean(values, factor: float, digits: int) -> str:
  return f"{factor * float(np.mean(values)):.{digits}f}"
