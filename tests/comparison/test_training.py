"""An arm on a training config sets what it names and nothing else."""

import pathlib

import pytest

from distil_jax import config as configs
from distil_jax.comparison import training
from distil_jax.comparison.settings import Arm, Comparison, FamilyRun

PATH = str(
  pathlib.Path(__file__).resolve().parents[2]
  / "configs/calculator/quickstart.yaml"
)
RUN = FamilyRun(config=PATH, num_steps=20, evaluate_every=10)


def made(arm, **changed):
  settings = {"learning_rate": 2e-4, "seed": 7, "directory": "runs/x"}
  return training.run_config(RUN, arm, **{**settings, **changed})


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
  config = made(Arm(objective=configs.GRPO()))
  found = changes(original, tree(config))
  assert {p for p in found if not p.startswith(("objective", "logging"))} == {
    "teacher.parameters",
    "optimizer.learning_rate",
    "train.num_steps",
    "train.seed",
    "train.run_directory",
    "evaluation.every",
  }
  assert config.objective == configs.GRPO()
  assert config.optimizer.learning_rate == 2e-4
  assert (config.train.seed, config.train.num_steps) == (7, 20)
  assert config.evaluation.every == 10
  assert config.run_directory == pathlib.Path("runs/x")


def test_of_the_teacher_only_what_the_arm_sets(original):
  teacher = configs.Teacher(parameters="ema", ema_rate=0.05)
  arm = Arm(objective=configs.Distil(), teacher=teacher)
  config = made(arm)
  assert config.teacher.ema_rate == 0.05
  # The prompt is the family's, though the section has defaults for it.
  kept = original["teacher"] | {"ema_rate": 0.05}
  assert tree(config)["teacher"] == kept
  assert kept["max_prompt_length"] != configs.Teacher().max_prompt_length


def test_mini_batches_and_longer_runs():
  config = made(
    Arm(objective=configs.GRPO(), mini_batches=4, num_steps_factor=10)
  )
  assert config.optimizer.mini_batch_size == config.num_sequences // 4
  assert config.train.num_steps == 200


def test_the_schedule_is_the_configs_unless_a_family_sets_it(original):
  assert original["optimizer"]["schedule"] == "constant"
  for schedule in (None, "constant", "cosine"):
    run = RUN.model_copy(update={"schedule": schedule})
    config = training.run_config(
      run, Arm(objective=configs.GRPO()), learning_rate=1, seed=0, directory=""
    )
    assert config.optimizer.schedule == (schedule or "constant")


def test_configs_are_checked_before_anything_is_run():
  comparison = Comparison.model_validate(
    {
      "default": "good",
      "families": {"sums": {"config": PATH}, "sparse": {}},
      "arms": {
        "good": {"objective": {"kind": "grpo"}},
        "bad": {"objective": {"kind": "grpo"}, "mini_batches": 5},
      },
    }
  )
  training.check(comparison, "sums", ["good"])
  training.check(comparison, "sparse", ["bad"])
  with pytest.raises(configs.ConfigError, match="mini_batch_size") as error:
    training.check(comparison, "sums", ["good", "bad"])
  assert f"families.sums.config={PATH} with arm bad" in str(error.value)
