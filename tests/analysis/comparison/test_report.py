"""What a report says to somebody who has not seen the comparison run."""

from distil_jax.analysis.comparison import (
  provenance,
  report,
  results,
  statistics,
)
from tests.analysis.comparison.made_up import comparison, rows, trials
from tests.paths import ROOT


def section(text, title):
  parts = text.split("\n## ")
  return next(part for part in parts if part.startswith(title))


def test_a_report_of_nothing_has_its_questions():
  text = report.report(comparison(), {})
  assert "The base never succeeds" in text
  assert rows(section(text, "Families"))["sparse"][1] == "–"
  assert "Ablations" not in text


def test_bases_count_alike():
  done = trials("sparse", "grpo", [0.5] * 3)  # two of base 0, one of base 1
  for trial, record in done.items():
    record["before"] = {"avg": 0.1 + 0.2 * trial.base}
  # What chooses a rate is measured on other problems.
  tuning = trials("sparse", "grpo", [0.5], first=1000)
  for record in tuning.values():
    record["before"] = {"avg": 0.9}
  made = comparison(num_bases=2)
  found = results.collect(made, done | tuning)
  shown = rows(provenance.families(made, found))
  assert shown["sparse"][1:] == [
    "20.0",
    "100",
    f"{100 * 16 * 8}",
    "52,896 parameters",
    "2",
    "3",
    "2",
  ]


def test_rollouts_of_a_family_with_a_config_are_its_configs():
  config = str(ROOT / "configs/calculator/small_batches.yaml")
  made = comparison(families={"sums": {"config": config, "question": "q"}})
  for done in ({}, trials("sums", "grpo", [0.5, 0.5, 0.5])):
    shown = rows(provenance.families(made, results.collect(made, done)))
    assert shown["sums"][3] == f"{100 * (8 if done else 8 * 8)}"


def test_rates_at_an_end_of_their_grid_are_marked():
  grid = [1e-4, 1e-3, 1e-2]
  changed = comparison(learning_rates=grid, tuning_seeds=1)
  done = {}
  for rate in grid:
    done |= trials("sparse", "grpo", [rate], rate=rate, first=1000)
    middle = 0.5 if rate == 1e-3 else 0.1
    done |= trials("sparse", "mine", [middle], rate=rate, first=1000)
  shown = rows(
    provenance.learning_rates(changed, report._chosen_rates(changed, done))
  )
  assert shown["grpo"] == ["0.01*", "–"]
  assert shown["mine"] == ["0.001", "–"]


def test_what_a_table_rests_on():
  made = comparison(
    families={"sparse": {"network": {"width": 24}}, "early": {}}
  )
  done = trials("sparse", "grpo", [0.5, 0.5])
  done |= trials("early", "grpo", [0.5])
  done |= trials("early", "less", [0.5] * 5)
  found = results.collect(made, done)
  # Two layers of 6,396, twenty tokens in and out, a norm.
  assert provenance.basis(made, found, ["grpo"]) == (
    "1 to 2 seeds on 2 base models (13,776 parameters; 52,896 parameters); "
    "16 rollouts a trial."
  )
  for record in found["early"]["grpo"]:
    record["num_sequences"] = 800
  assert "16 to 1,600 rollouts" in provenance.basis(made, found, ["grpo"])
  assert "No trial" in provenance.basis(made, found, ["mine"])


def test_where_it_was_made():
  done = trials("sparse", "grpo", [0.5, 0.5, 0.5])
  first, second, _ = done.values()
  first["revision"] = None
  second["revision"] = {"commit": "f" * 40, "dirty": True}
  second["device"] = "1 x TPU"
  text = provenance.made_by(
    statistics.records_of(results.collect(comparison(), done))
  )
  assert text == (
    "Commits: 0123456789ab, ffffffffffff with changes, unknown.\n"
    "Computed on: 1 x TPU, unknown.\n"
  )


def test_arms_say_what_they_are():
  arms = {
    "grpo": {"objective": {"kind": "grpo", "clip_low": 0.1}},
    "mine": {"objective": {"kind": "distil", "future_weight": 2.0}},
    "less": {
      "objective": {"kind": "distil", "future_weight": 0.0, "top_k": 4},
      "teacher": {"parameters": "current"},
      "like": "mine",
      "mini_batches": 4,
      "note": "for a reason",
    },
  }
  shown = rows(provenance.arms(comparison(arms=arms)))
  objective, teacher, beside = shown["grpo"]
  assert objective.startswith("kind=grpo ")
  assert "clip_low=0.1" in objective
  assert "normalize_std" not in objective
  assert (teacher, beside) == ("parameters=frozen", "")
  assert shown["less"] == [
    "future_weight=0.0 top_k=4",
    "parameters=current",
    "like=mine mini_batches=4 for a reason",
  ]


def test_the_whole_report(tmp_path):
  """Of a comparison that has been stopped: some trials of some families."""
  made = comparison(run_directory=str(tmp_path / "run"))
  done = trials("sparse", "grpo", [0.5, 0.5, 0.5])
  done |= trials("sparse", "mine", [0.5, 0.5, 0.6])
  done |= trials("sparse", "less", [0.4])
  path = report.save(made, done)
  text = path.read_text(encoding="utf-8")
  assert text.startswith("# trial\n\nCommits: 0123456789ab.\n")
  short = (tmp_path / "run/table.md").read_text(encoding="utf-8")
  assert short.strip() in section(text, "In short")
  assert rows(short)["**mine**"] == ["**53.3 ± 3.3 ★**"]
  assert "`mine` is first in 1 (sparse)" in short
  assert "Without a result yet: early." in short
  assert "3 seeds on 2 base models" in short
  for title in ("Held-out", "Mean over", "pass@k", "Other", "Is the default"):
    assert "3 seeds on 2 base models" in section(text, title), title
  assert "less" not in rows(section(text, "Held-out accuracy"))
  assert "1 seed on 1 base model (" in section(
    text, "Ablations: held-out accuracy"
  )
  assert rows(section(text, "Ablations: mean"))["less"] == ["-5.0"]
