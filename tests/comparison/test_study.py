"""Which learning rate is chosen, and what is read back from the disk."""

import json

import pytest

from distil_jax.comparison import study
from distil_jax.comparison.settings import Comparison
from distil_jax.comparison.study import Trial

GRID = (3e-4, 1e-3, 3e-3)


def comparison(**changed):
  return Comparison.model_validate(
    {
      "default": "grpo",
      "families": {"sparse": {}, "early": {}},
      "arms": {
        "grpo": {"objective": {"kind": "grpo"}},
        "fixed": {"objective": {"kind": "sft"}, "learning_rates": [5e-4]},
        "longer": {
          "objective": {"kind": "grpo"},
          "like": "grpo",
          "num_steps_factor": 10,
        },
        "here": {"objective": {"kind": "opsd"}, "families": ["early"]},
      },
      "learning_rates": GRID,
      "tuning_seeds": 2,
      **changed,
    }
  )


def tuned(finals, *, curves=None, family="sparse", arm="grpo", first=1000):
  """Trials whose final accuracies are given for each rate."""
  done = {}
  for rate, values in finals.items():
    for i, value in enumerate(values):
      levels = curves[rate] if curves else [value, value]
      trial = Trial(family, arm, i % 2, first + i, rate)
      done[trial] = {
        "after": {"avg": value},
        "curve": [{"avg": level} for level in levels],
      }
  return done


def chosen(done, arm="grpo", family="sparse"):
  return study.chosen_rate(comparison(), family, arm, done)


def test_the_best_final_accuracy_is_chosen():
  assert chosen(tuned({3e-4: [0.5, 0.9], 1e-3: [0.6, 0.6], 3e-3: [0, 1]})) == (
    3e-4
  )


def test_the_earlier_curve_decides_between_equals():
  # .694 and .686 are both .69.
  finals = {3e-4: [0.694, 0.694], 1e-3: [0.686, 0.686], 3e-3: [0.6, 0.6]}
  curves = {3e-4: [0.1, 0.7], 1e-3: [0.5, 0.7], 3e-3: [0.9, 0.9]}
  assert chosen(tuned(finals, curves=curves)) == 1e-3


def test_the_middle_decides_where_nothing_was_learned():
  assert chosen(tuned({rate: [0.0, 0.0] for rate in GRID})) == 1e-3


def test_no_rate_before_all_tuning_trials_are_there():
  done = tuned({3e-4: [0.5, 0.5], 1e-3: [0.6, 0.6], 3e-3: [0.7]})
  assert chosen(done) is None
  assert chosen({}) is None


def test_reported_seeds_other_arms_and_families_have_no_say():
  done = tuned({3e-4: [0.7, 0.7], 1e-3: [0.6, 0.6], 3e-3: [0.5, 0.5]})
  loud = {rate: [1.0, 1.0] for rate in (1e-3, 3e-3)}
  done |= tuned(loud, first=0)
  done |= tuned(loud, arm="fixed")
  done |= tuned(loud, family="early")
  assert chosen(done) == 3e-4


def test_a_grid_of_one_needs_no_trials():
  assert chosen({}, arm="fixed") == 5e-4


def test_an_ablation_takes_over_its_models_rate():
  done = tuned({3e-4: [0.1, 0.1], 1e-3: [0.2, 0.2], 3e-3: [0.3, 0.3]})
  done |= tuned({3e-4: [0.9, 0.9]}, arm="longer")
  assert chosen(done, arm="longer") == 3e-3


def test_where_an_arm_runs():
  runs = {
    (family, arm)
    for family in ("sparse", "early")
    for arm in ("grpo", "here")
    if study._runs(comparison(), family, arm)
  }
  assert runs == {("sparse", "grpo"), ("early", "grpo"), ("early", "here")}
  # What a family names counts more than where an arm wants to run.
  named = comparison(families={"sparse": {"arms": ["here"]}, "early": {}})
  assert study._runs(named, "sparse", "here")
  assert not study._runs(named, "sparse", "grpo")


def test_seeds_of_tuning_and_report_are_apart():
  assert Trial("f", "a", 0, 1000, 1e-3).is_tuning
  assert not Trial("f", "a", 0, 999, 1e-3).is_tuning


def test_settings_of_an_arm_reach_the_trial():
  made = comparison()
  run = made.families["sparse"].model_copy(
    update={"num_problems": 4, "group_size": 2}
  )
  arm = made.arms["grpo"].model_copy(update={"mini_batches": 2})
  setting = study.setting_of("sparse", run, arm)
  assert setting.num_sequences == 8
  assert setting.mini_batch_size == 4
  assert setting.objective == arm.objective
  assert setting.teacher.parameters == "frozen"
  assert study.setting_of("sparse", run, made.arms["grpo"]) != setting


@pytest.fixture
def folder(tmp_path):
  (tmp_path / "trials").mkdir()
  return tmp_path


def line(seed):
  return json.dumps(
    {
      "family": "sparse",
      "arm": "grpo",
      "base": 1,
      "seed": seed,
      "learning_rate": 3e-4,
      "value": seed / 3,
    }
  )


def test_trials_are_read_from_all_families(folder):
  (folder / "trials/a.jsonl").write_text(f"{line(0)}\n{line(1)}\n")
  (folder / "trials/b.jsonl").write_text(f"{line(2)}\n")
  done = study.read_trials(folder)
  assert {trial.seed: r["value"] for trial, r in done.items()} == {
    0: 0,
    1: 1 / 3,
    2: 2 / 3,
  }
  assert Trial("sparse", "grpo", 1, 2, 3e-4) in done


def test_a_line_that_is_cut_off_does_not_count(folder):
  """Killed while writing, or another process is writing it now."""
  whole = f"{line(0)}\n{line(1)}"
  for length in (len(whole) - 9, len(whole)):
    (folder / "trials/a.jsonl").write_text(whole[:length])
    assert [trial.seed for trial in study.read_trials(folder)] == [0]


def test_no_folder_no_trials(tmp_path):
  assert study.read_trials(tmp_path / "nowhere") == {}
