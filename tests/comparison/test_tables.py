"""Means, standard errors, ties and verdicts, by hand."""

import math

import pytest

from distil_jax.comparison import tables
from distil_jax.comparison.settings import Comparison
from distil_jax.comparison.study import Trial
from distil_jax.comparison.tables import Cell

RATE = 1e-3


def comparison(**changed):
  return Comparison.model_validate(
    {
      "name": "trial",
      "default": "mine",
      "families": {"sparse": {}, "early": {}},
      "arms": {
        "grpo": {"objective": {"kind": "grpo"}},
        "mine": {"objective": {"kind": "distil"}},
        "less": {"objective": {"kind": "distil"}, "like": "mine"},
      },
      "learning_rates": [RATE],
      "seeds": 3,
      "pass_at": [1, 4],
      **changed,
    }
  )


def trials(family, arm, finals, rate=RATE, first=0, **last):
  """Records whose curves rise from 0 to the final accuracy."""
  done = {}
  for i, final in enumerate(finals):
    end = {"step": 2, "avg": final, "entropy": 0.5, "teacher": 0.9, **last}
    done[Trial(family, arm, i % 2, first + i, rate)] = {
      "seed": first + i,
      "learning_rate": rate,
      "num_sequences": 8,
      "step_seconds": 0.25,
      "before": {"avg": 0.125},
      "revision": {"commit": "0123456789abcdef", "dirty": False},
      "after": {"avg": final, "pass@1": final},
      "curve": [{**end, "step": 1, "avg": 0.0}, end],
    }
  return done


def rows(table):
  """Cells of a Markdown table, head and all, by first cell."""
  lines = [x for x in table.splitlines() if x.startswith("|")]
  cells = [[c.strip() for c in x.strip("|").split("|")] for x in lines]
  return {row[0]: row[1:] for row in cells if not row[0].startswith("-")}


def section(report, title):
  parts = report.split("\n## ")
  return next(part for part in parts if part.startswith(title))


def test_mean_and_standard_error():
  records = [*trials("sparse", "grpo", [0.2, 0.4, 0.9]).values()]
  found = tables.cell(records, tables.final_accuracy)
  # Deviations -.3, -.1, .4: variance .26 / 2 = .13.
  assert found.mean == pytest.approx(0.5)
  assert found.error == pytest.approx(math.sqrt(0.13 / 3))
  assert (found.num_seeds, found.learning_rate) == (3, RATE)
  found = tables.cell(records, tables.mean_accuracy)
  assert found.mean == pytest.approx(0.25)


def test_one_seed_has_no_error():
  one = [*trials("sparse", "grpo", [0.2]).values()]
  assert math.isnan(tables.cell(one, tables.final_accuracy).error)


def test_tied_is_within_an_error_of_the_difference():
  first = Cell(0.9, 0.03, 5, RATE)
  # The error of the difference is .05.
  assert tables.is_tied(Cell(0.851, 0.04, 5, RATE), first)
  assert not tables.is_tied(Cell(0.849, 0.04, 5, RATE), first)
  assert tables.is_tied(first, first)
  alone = Cell(0.9, math.nan, 1, RATE)
  assert tables.is_tied(alone, alone)
  assert not tables.is_tied(Cell(0.899, 0.04, 5, RATE), alone)


def test_only_reported_seeds_at_the_chosen_rate_count():
  done = trials("sparse", "grpo", [0.1, 0.2])
  done |= trials("sparse", "grpo", [0.9], rate=2e-3)
  done |= trials("sparse", "grpo", [0.8], first=1000)
  done |= trials("sparse", "mine", [0.7]) | trials("early", "grpo", [0.6])
  records = tables.reported(comparison(), done, "sparse", "grpo")
  assert [tables.final_accuracy(r) for r in records] == [0.1, 0.2]


def test_the_accuracy_table():
  done = trials("sparse", "grpo", [0.4, 0.5, 0.6])  # ± 5.8
  done |= trials("sparse", "mine", [0.8, 0.9, 1.0])
  done |= trials("early", "grpo", [0.85, 0.85])
  report = tables.report(comparison(), done)
  text = section(report, "Held-out accuracy (avg@4) at the end, %")
  assert rows(text) == {
    "arm": ["sparse", "early", "in bold"],
    "grpo": ["50.0 ± 5.8", "**85.0 ± 0.0**", "1 of 2"],
    "mine": ["**90.0 ± 5.8**", "–", "1 of 1"],
  }
  assert "Seeds still missing: grpo in early (2 of 3)." in text
  curve = section(report, "Mean over the learning curve")
  assert "45.0 ± 2.9" in curve


def test_ties_are_bold_too():
  done = trials("sparse", "grpo", [0.7, 0.9]) | trials(
    "sparse", "mine", [0.8, 1.0]
  )
  text = tables.report(comparison(seeds=2), done)
  shown = rows(section(text, "Held-out accuracy"))
  assert shown["grpo"][0] == "**80.0 ± 10.0**"
  assert shown["mine"][0] == "**90.0 ± 10.0**"
  assert "missing" not in text


def verdict(mine, other, **changed):
  done = trials("sparse", "grpo", other) | trials("sparse", "mine", mine)
  return tables.verdict(comparison(**changed), done)


def test_verdicts():
  # Differences seed by seed -.1, -.1, -.1: no error of their own.
  text = verdict([0.2, 0.5, 0.8], [0.3, 0.6, 0.9])
  assert rows(text)["sparse"] == [
    "grpo",
    "60.0 ± 17.3",
    "50.0 ± 17.3",
    "-10.0 ± 0.0",
    "20.0, other 30.0",
    "tied",
  ]
  assert "first in 0, tied in 1, behind in 0 of 1" in text
  assert rows(verdict([0.9, 0.9], [0.3, 0.6]))["sparse"][-1] == "first"
  assert rows(verdict([0.5, 0.6], [0.9, 0.9]))["sparse"][-1] == "behind"
  assert rows(verdict([0.9], [0.9]))["sparse"][-1] == "tied"
  assert rows(verdict([0.8], [0.9]))["sparse"] == [
    "grpo",
    "90.0",
    "80.0",
    "-10.0",
    "80.0, other 90.0",
    "behind",
  ]


def test_one_lost_seed_shows_in_the_verdict():
  """Its gap is as large as its standard error, whatever their number."""
  row = rows(verdict([1.0] * 5 + [0.0], [1.0] * 5 + [0.98]))["sparse"]
  assert row[3] == "-16.3 ± 16.3"
  assert row[4] == "0.0, other 98.0"


def test_the_best_other_is_the_best_of_all_that_choose():
  arms = {
    name: {"objective": {"kind": kind}}
    for name, kind in {"a": "grpo", "b": "sft", "mine": "distil"}.items()
  }
  arms["less"] = {"objective": {"kind": "distil"}, "like": "mine"}
  done = {}
  for arm, final in {"a": 0.1, "b": 0.5, "mine": 0.4, "less": 0.9}.items():
    done |= trials("sparse", arm, [final, final])
  text = tables.verdict(comparison(arms=arms), done)
  assert rows(text)["sparse"][0] == "b"


def test_no_verdict_on_the_default_alone():
  done = trials("sparse", "mine", [0.5])
  assert "No family has both `mine`" in tables.verdict(comparison(), done)
  assert "No family" in tables.verdict(comparison(), {})


def test_a_report_of_nothing_has_its_questions():
  report = tables.report(comparison(), {})
  assert "The base never succeeds" in report
  assert rows(section(report, "Families"))["sparse"][1] == "–"


def test_bases_count_alike():
  done = trials("sparse", "grpo", [0.5] * 3)  # two of base 0, one of base 1
  for trial, record in done.items():
    record["before"] = {"avg": 0.1 + 0.2 * trial.base}
  report = tables.report(comparison(), done)
  assert rows(section(report, "Families"))["sparse"][1:] == [
    "20.0",
    "100",
    f"{100 * 16 * 8}",
  ]


def test_measures():
  done = trials("sparse", "grpo", [0.5, 0.5], length=4.0)
  done |= trials("sparse", "mine", [0.5, 0.5], p_eos=0.25)
  text = section(tables.report(comparison(), done), "Other measures")
  lines = [x for x in text.splitlines() if x.startswith("| sparse")]
  grpo, mine = ([c.strip() for c in x.strip("|").split("|")] for x in lines)
  # Reward alone has no teacher.
  assert grpo[1:] == ["grpo", "0.500", "4.000", *"–" * 4, "25.0"]
  shown = ["0.500", "–", "0.250", "–", "0.900", "–", "25.0"]
  assert mine[1:] == ["mine", *shown]


def test_pass_at_k_with_gaps():
  done = trials("sparse", "grpo", [0.25, 0.5])
  text = section(tables.report(comparison(), done), "pass@k")
  line = next(x for x in text.splitlines() if x.startswith("| sparse"))
  cells = [c.strip() for c in line.strip("|").split("|")]
  assert cells == ["sparse", "grpo", "37.5", "–"]


def test_rates_at_an_end_of_their_grid_are_marked():
  grid = [1e-4, 1e-3, 1e-2]
  changed = comparison(learning_rates=grid, tuning_seeds=1)
  done = {}
  for rate in grid:
    done |= trials("sparse", "grpo", [rate], rate=rate, first=1000)
    middle = 0.5 if rate == 1e-3 else 0.1
    done |= trials("sparse", "mine", [middle], rate=rate, first=1000)
  shown = rows(section(tables.report(changed, done), "Learning rates"))
  assert shown["grpo"] == ["0.01*", "–"]
  assert shown["mine"] == ["0.001", "–"]


def test_ablations_have_tables_of_their_own():
  done = trials("sparse", "grpo", [0.9] * 3)
  done |= trials("sparse", "mine", [0.5] * 3)
  done |= trials("sparse", "less", [0.4] * 3)
  report = tables.report(comparison(), done)
  main = rows(section(report, "Held-out accuracy"))
  assert "less" not in main
  ablations = rows(section(report, "Ablations: held-out accuracy"))
  assert ablations["mine"][0] == "**50.0 ± 0.0**"
  assert ablations["less"][0] == "40.0 ± 0.0"
  assert "grpo" not in ablations


def test_tables_are_aligned():
  text = tables.markdown([["a", "number"], ["long name", "1.5"], ["b", "–"]])
  assert text == (
    "| a         | number |\n"
    "| --------- | -----: |\n"
    "| long name |    1.5 |\n"
    "| b         |      – |"
  )
