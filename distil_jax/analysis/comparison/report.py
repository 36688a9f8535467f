"""The report of a comparison: tables of all that was found, and pictures."""

import pathlib

from distil_jax.analysis.comparison import (
  collapse,
  plots,
  provenance,
  results,
  study,
  tables,
)
from distil_jax.analysis.comparison.results import Found
from distil_jax.analysis.comparison.settings import Comparison
from distil_jax.analysis.comparison.trial_store import Done

REPORT, HEADLINE, GRADIENTS = "report.md", "table.md", "gradients.md"


def save(comparison: Comparison, done: Done) -> pathlib.Path:
  """Writes the report, the short table and the pictures.

  Returns:
    the report's path; the others are beside it.
  """
  comparison.directory.mkdir(parents=True, exist_ok=True)
  path = comparison.directory / REPORT
  path.write_text(report(comparison, done), encoding="utf-8")
  short = headline(comparison, results.collect(comparison, done))
  (comparison.directory / HEADLINE).write_text(short, encoding="utf-8")
  plots.save(comparison, done)
  return path


def save_gradients(comparison: Comparison) -> pathlib.Path:
  """Writes the table of gradients by itself; returns its path."""
  measured = study.read_gradients(comparison.directory)
  made_by = provenance.made_by(list(measured.values()))
  path = comparison.directory / GRADIENTS
  path.write_text(
    f"# {comparison.name}: gradients at the base\n\n{made_by}\n"
    f"{tables.gradients(comparison, measured)}\n",
    encoding="utf-8",
  )
  return path


def headline(comparison: Comparison, found: Found) -> str:
  """The short table with what it says and what it rests on."""
  main = results.main_arms(comparison)
  rests_on = provenance.basis(comparison, found, main)
  return (
    f"{tables.headline(comparison, found)}\n\n"
    f"{tables.score(comparison, found)}\n\n"
    "Held-out accuracy, mean ± standard error over seeds. ★ first in its "
    "family; ☆ tied: within one standard error of the difference to the "
    f"first; {tables.NONE} not run. {rests_on}"
    f"{tables.missing(comparison, found, main)}\n"
  )


def report(comparison: Comparison, done: Done) -> str:
  """The whole report as Markdown."""
  found = results.collect(comparison, done)
  main = results.main_arms(comparison)
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
      tables.accuracies(comparison, found, results.mean_accuracy) + rests_on
    ),
    "pass@k at the end, %": tables.pass_at_k(comparison, found) + rests_on,
    "Other measures at the end": tables.measures(comparison, found) + rests_on,
    "Learning rates chosen": provenance.learning_rates(comparison, done),
  }
  sections |= _ablations(comparison, found)
  fallen = collapse.table(comparison, found)
  if fallen:
    sections["What falls again, and what shows it"] = fallen + rests_on
  measured = study.read_gradients(comparison.directory)
  if measured:
    sections["Gradients at the base"] = tables.gradients(comparison, measured)
  parts = [f"## {title}\n\n{text}\n" for title, text in sections.items()]
  made_by = provenance.made_by(results.records_of(found))
  return "\n".join([f"# {comparison.name}\n", made_by, *parts])


def _ablations(comparison: Comparison, found: Found) -> dict[str, str]:
  """Their sections, where any ablation has been run."""
  names = [name for name, arm in comparison.arms.items() if arm.like]
  if not any(arm in of_arms for of_arms in found.values() for arm in names):
    return {}
  rests_on = "\n\n" + provenance.basis(comparison, found, names)
  return {
    "Ablations: held-out accuracy at the end, points": (
      tables.ablations(comparison, found) + rests_on
    ),
    "Ablations: mean over the learning curve, points": (
      tables.ablations(comparison, found, results.mean_accuracy) + rests_on
    ),
  }
