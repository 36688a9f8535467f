"""Where arms run, on what they are set, and what becomes of bases."""

import pytest

from distil_jax.analysis.comparison import (
  build_program_setting,
  record_settings,
  study,
)
from distil_jax.analysis.comparison.trial_record import Trial
from tests.analysis.comparison.made_up import tuned_comparison as comparison


def test_where_an_arm_runs():
  made = comparison()
  runs = {
    (family, arm)
    for family in ("sparse", "early")
    for arm in ("grpo", "here")
    if made.runs(family, arm)
  }
  assert runs == {("sparse", "grpo"), ("early", "grpo"), ("early", "here")}
  # What a family names counts more than where an arm wants to run.
  named = comparison(families={"sparse": {"arms": ["here"]}, "early": {}})
  assert named.runs("sparse", "here")
  assert not named.runs("sparse", "grpo")


def test_settings_of_an_arm_reach_the_trial():
  made = comparison()
  run = made.families["sparse"].model_copy(
    update={"num_problems": 4, "group_size": 2}
  )
  arm = made.arms["grpo"].model_copy(update={"mini_batches": 2})
  setting = build_program_setting.build_setting("sparse", run, arm)
  assert setting.num_sequences == 8
  assert setting.mini_batch_size == 4
  assert setting.objective == arm.objective
  assert setting.teacher.parameters == "frozen"
  assert (
    build_program_setting.build_setting("sparse", run, made.arms["grpo"])
    != setting
  )


def test_a_base_of_other_settings_is_refused(tmp_path):
  made = comparison(run_directory=str(tmp_path), num_bases=2)
  folder = tmp_path / "bases/sparse-1"  # the second: nothing is made before
  folder.mkdir(parents=True)
  (folder / "config.json").write_text("{}")
  (folder / "base.json").write_text('{"base_steps": 500, "network": 1}')
  with pytest.raises(ValueError, match="sparse-1 holds a base model") as error:
    study._bases(made, "sparse", made.families["sparse"], print)
  message = str(error.value)
  for words in (
    "families.sparse: base_batch_size=None then, 128 now",
    "network=1 then, {'width': 48",
    "choose another run_directory, or delete that folder",
    "trials/sparse.jsonl",
  ):
    assert words in message
  assert "base_steps" not in message
  assert not (tmp_path / "bases/sparse-0").exists()


def test_now_and_then_it_says_how_far_a_base_is(monkeypatch):
  said = []
  study._reporter("early: base 0", 40, said.append)(20, 0.5)
  assert said == []
  monkeypatch.setattr(study, "_SECONDS_BETWEEN_LINES", 0.0)
  study._reporter("early: base 0", 40, said.append)(20, 0.5)
  assert said == [
    "early: base 0, step 20 of 40: 0.5000 nats per token from its targets"
  ]


def test_the_base_is_measured_anew_where_settings_differ():
  made = comparison()
  old, new = (Trial("sparse", "grpo", 0, seed, 1e-3) for seed in (0, 2))
  record = {
    "before": {"avg": 0.5},
    "settings": record_settings.settings_of(made, old),
  }
  assert study._base_accuracy(made, new, {old: record}) == {"avg": 0.5}
  other = comparison(num_held_out=7)
  assert study._base_accuracy(other, new, {old: record}) is None
  gone = Trial("sparse", "gone", 0, 0, 1e-3)
  assert study._base_accuracy(made, new, {gone: record}) is None
