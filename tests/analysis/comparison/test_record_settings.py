"""An arm on a training config sets what it names and nothing else."""

import pathlib

import pytest
import yaml

from distil_jax import config as configs
from distil_jax.analysis.comparison import record_settings, study
from distil_jax.analysis.comparison.settings import Arm, Comparison, FamilyRun
from distil_jax.analysis.comparison.trial_record import Trial
from distil_jax.cli import compare
from tests.paths import ROOT

PATH = str(ROOT / "configs/calculator/quickstart.yaml")
RUN = FamilyRun(config=PATH, num_steps=20, evaluate_every=10)


def made(arm, **changed):
  settings = {"learning_rate": 2e-4, "seed": 7, "directory": "runs/x"}
  return record_settings.run_config(RUN, arm, **{**settings, **changed})


def changes(before, after, path=""):
  """Paths at which two trees differ."""
  if isinstance(before, dict) and isinstance(after, dict):
    return {
      found
      for key in before.keys() | after.keys()
      for found in changes(
        before.get(key), after.get(key), f"{path}.{key}".lstrip(".")
      )
    }
  return set() if before == after else {path}


def tree(config):
  return config.model_dump(mode="json")


@pytest.fixture
def original():
  return tree(configs.load(PATH))


def test_only_what_a_trial_decides_changes(original):
  config = made(Arm(objective=configs.GRPOConfig()))
  found = changes(original, tree(config))
  assert {p for p in found if not p.startswith(("objective", "logging"))} == {
    "optimizer.learning_rate",
    "train.num_steps",
    "train.seed",
    "train.run_directory",
    "train.max_skipped_updates",
    "evaluation.every",
  }
  assert config.objective == configs.GRPOConfig()
  assert config.optimizer.learning_rate == 2e-4
  assert (config.train.seed, config.train.num_steps) == (7, 20)
  assert config.evaluation.every == 10
  assert config.run_directory == pathlib.Path("runs/x")


def test_of_the_teacher_only_what_the_arm_sets(original):
  teacher = configs.TeacherConfig(parameters="ema", ema_rate=0.05)
  arm = Arm(objective=configs.DistilConfig(), teacher=teacher)
  config = made(arm)
  assert config.teacher.ema_rate == 0.05
  # The prompt is the family's, though the section has defaults for it.
  kept = original["teacher"] | {"ema_rate": 0.05}
  assert tree(config)["teacher"] == kept
  assert kept["max_prompt_length"] != configs.TeacherConfig().max_prompt_length


@pytest.mark.parametrize(
  ("teacher", "expected"),
  [
    ({}, ("ema", 0.05, {"margin": 0.1})),
    ({"parameters": "frozen"}, ("frozen", 0.01, None)),
    ({"parameters": "trust_region"}, ("trust_region", 0.01, None)),
    ({"parameters": "ema"}, ("ema", 0.05, {"margin": 0.1})),
  ],
)
def test_another_kind_of_teacher_takes_the_olds_settings_along(
  tmp_path, teacher, expected
):
  tree_ = yaml.safe_load(pathlib.Path(PATH).read_text())
  tree_["teacher"] |= {
    "parameters": "ema",
    "ema_rate": 0.05,
    "guard": {"margin": 0.1},
  }
  path = tmp_path / "moving.yaml"
  path.write_text(yaml.safe_dump(tree_))
  arm = Arm.model_validate(
    {"objective": {"kind": "distil"}, "teacher": teacher}
  )
  found = record_settings.run_config(
    RUN.model_copy(update={"config": str(path)}),
    arm,
    learning_rate=1e-3,
    seed=0,
    directory="",
  ).teacher
  guard = found.guard and {"margin": found.guard.margin}
  assert (found.parameters, found.ema_rate, guard) == expected


def test_a_run_that_diverges_is_a_record_like_others(tmp_path):
  tree_ = yaml.safe_load(pathlib.Path(PATH).read_text())
  tree_["rollout"] |= {
    "num_problems": 8,
    "group_size": 2,
    "max_completion_length": 8,
  }
  tree_["data"] |= {"num_train": 16, "num_evaluation": 8}
  tree_["evaluation"] |= {"num_problems": 8, "num_samples": 2, "pass_at": [1]}
  tree_["optimizer"]["warmup_steps"] = 0
  path = tmp_path / "small.yaml"
  path.write_text(yaml.safe_dump(tree_))
  comparison = Comparison.model_validate(
    {
      "default": "it",
      "run_directory": str(tmp_path / "run"),
      "families": {
        "sums": {"config": str(path), "num_steps": 3, "evaluate_every": 1}
      },
      "arms": {"it": {"objective": {"kind": "minillm"}}},
    }
  )
  record = study._run_config_trial(
    comparison, Trial("sums", "it", 0, 0, 1e38), compare.train_or_none
  )
  assert record["diverged_at"] in (1, 2)
  assert record["after"] == {"avg": 0.0, "pass@1": 0.0}
  assert record["before"].keys() == record["after"].keys()
  assert [point["step"] for point in record["curve"]] == [1, 2, 3]
  assert record["curve"][-1]["avg"] == 0
  assert not [*(tmp_path / "run/runs").iterdir()]


def test_mini_batches_and_longer_runs():
  config = made(
    Arm(objective=configs.GRPOConfig(), mini_batches=4, num_steps_factor=10)
  )
  assert config.optimizer.mini_batch_size == config.num_sequences // 4
  assert config.train.num_steps == 200


def test_the_schedule_is_the_configs_unless_a_family_sets_it(original):
  assert original["optimizer"]["schedule"] == "constant"
  for schedule in (None, "constant", "cosine"):
    run = RUN.model_copy(update={"schedule": schedule})
    config = record_settings.run_config(
      run,
      Arm(objective=configs.GRPOConfig()),
      learning_rate=1,
      seed=0,
      directory="",
    )
    assert config.optimizer.schedule == (schedule or "constant")


def test_configs_are_checked_before_anything_is_run():
  comparison = Comparison.model_validate(
    {
      "default": "good",
      "families": {"sums": {"config": PATH}, "sparse": {}},
      "arms": {
        "good": {"objective": {"kind": "grpo"}},
        "bad": {
          "objective": {"kind": "grpo"},
          "mini_batches": 5,
          "families": ["sums"],
        },
      },
    }
  )
  record_settings.check_configs(comparison, "sums", ["good"])
  record_settings.check_configs(comparison, "sparse", ["bad"])
  elsewhere = comparison.arms["bad"].model_copy(update={"families": ("a",)})
  arms = {**comparison.arms, "bad": elsewhere}
  record_settings.check_configs(
    comparison.model_copy(update={"arms": arms}), "sums", ["good", "bad"]
  )
  with pytest.raises(configs.ConfigError, match="mini_batch_size") as error:
    record_settings.check_configs(comparison, "sums", ["good", "bad"])
  assert f"families.sums.config={PATH} with arm bad" in str(error.value)
