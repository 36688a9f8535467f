"""Writes the report of a comparison: all tables, and figures."""

import pathlib
from collections.abc import Callable

from distil_jax.analysis.comparison import (
  collapse,
  markdown,
  plots,
  provenance,
  record_settings,
  results,
  statistics,
  tables,
  trial_store,
)
from distil_jax.analysis.comparison.settings import Comparison
from distil_jax.analysis.comparison.trial_record import Done, Found

REPORT, HEADLINE, GRADIENTS = "report.md", "table.md", "gradients.md"


def write(comparison: Comparison, say: Callable[[str], None]) -> None:
  """Writes the report of the finished trials, and prints its verdict.

  Args:
    comparison: Names arms, families and the folder.
    say: Prints a line.

  Raises:
    ValueError: No trial is there, or one ran with other settings.
  """
  done = trial_store.read_trials(comparison.directory)
  if not done:
    raise ValueError(
      f"no trials in {comparison.directory / 'trials'}: there is nothing to "
      "report; run the comparison first, or set run_directory to where it ran"
    )
  # Before anything is written: a table of mixed settings would look valid.
  record_settings.check_counted(comparison, done)
  path = save(comparison, done)
  found = results.collect(comparison, done)
  say(f"\n{tables.verdict(comparison, found)}\n\n{path}: all tables")


def save(comparison: Comparison, done: Done) -> pathlib.Path:
  """Writes the report, the short table and the figures.

  Returns:
    The path of the report; the other files are beside it.
  """
  comparison.directory.mkdir(parents=True, exist_ok=True)
  path = comparison.directory / REPORT
  path.write_text(report(comparison, done), encoding="utf-8")
  found = results.collect(comparison, done)
  short = headline(comparison, found)
  (comparison.directory / HEADLINE).write_text(short, encoding="utf-8")
  plots.save(comparison, found)
  return path


def save_gradients(comparison: Comparison) -> pathlib.Path:
  """Writes only the table of gradients; returns its path."""
  measured = trial_store.read_gradients(comparison.directory)
  made_by = provenance.made_by(list(measured.values()))
  path = comparison.directory / GRADIENTS
  path.write_text(
    f"# {comparison.name}: gradients at the base\n\n{made_by}\n"
    f"{tables.gradients(comparison, measured)}\n",
    encoding="utf-8",
  )
  return path


def headline(comparison: Comparison, found: Found) -> str:
  """Returns the short table with its summary and its basis."""
  main = comparison.main_arms
  rests_on = provenance.basis(comparison, found, main)
  return (
    f"{tables.headline(comparison, found)}\n\n"
    f"{tables.score(comparison, found)}\n\n"
    "Held-out accuracy, mean ± standard error over seeds. ★ first in its "
    "family; ☆ tied: within one standard error of the difference to the "
    f"first; {markdown.NONE} not run. {rests_on}"
    f"{tables.missing(comparison, found, main)}\n"
  )


def report(comparison: Comparison, done: Done) -> str:
  """Returns the whole report as Markdown."""
  found = results.collect(comparison, done)
  main = comparison.main_arms
  rests_on = "\n\n" + provenance.basis(comparison, found, main)
  sections = {
    "In short": headline(comparison, found).rstrip(),
    "Families": provenance.families(comparison, found),
    "Arms": provenance.arms(comparison),
    "Is the default first?": tables.verdict(comparison, found) + rests_on,
    f"Held-out accuracy ({comparison.accuracy_name}) at the end, %": (
      tables.accuracies(comparison, found) + rests_on
    ),
    "Mean over the learning curve (how early it learns), %": (
      tables.accuracies(comparison, found, statistics.mean_accuracy) + rests_on
    ),
    "pass@k at the end, %": tables.pass_at_k(comparison, found) + rests_on,
    "Other measures at the end": tables.measures(comparison, found) + rests_on,
    "Learning rates chosen": provenance.learning_rates(
      comparison, _chosen_rates(comparison, done)
    ),
  }
  sections |= _ablations(comparison, found)
  collapsed = collapse.table(comparison, found)
  if collapsed:
    sections["What falls again, and what shows it"] = collapsed + rests_on
  measured = trial_store.read_gradients(comparison.directory)
  if measured:
    sections["Gradients at the base"] = tables.gradients(comparison, measured)
  parts = [f"## {title}\n\n{text}\n" for title, text in sections.items()]
  made_by = provenance.made_by(statistics.records_of(found))
  return "\n".join([f"# {comparison.name}\n", made_by, *parts])


def _ablations(comparison: Comparison, found: Found) -> dict[str, str]:
  """Returns the sections on ablations; none if no ablation has run."""
  names = [name for name, arm in comparison.arms.items() if arm.like]
  if not any(arm in by_arm for by_arm in found.values() for arm in names):
    return {}
  rests_on = "\n\n" + provenance.basis(comparison, found, names)
  return {
    "Ablations: held-out accuracy at the end, points": (
      tables.ablations(comparison, found) + rests_on
    ),
    "Ablations: mean over the learning curve, points": (
      tables.ablations(comparison, found, statistics.mean_accuracy) + rests_on
    ),
  }


def _chosen_rates(
  comparison: Comparison, done: Done
) -> dict[tuple[str, str], float | None]:
  return {
    (family, arm): results.chosen_rate(comparison, family, arm, done)
    for family in comparison.families
    for arm in comparison.main_arms
  }
