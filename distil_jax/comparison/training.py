"""A trial on real text: a whole training run, with an arm's objective."""

from collections.abc import Mapping, Sequence
from typing import Any

from distil_jax import config as configs
from distil_jax import learner
from distil_jax.comparison.settings import Arm, Comparison, FamilyRun
from distil_jax.io import reports

# What the learning curve takes from the metrics of a step.
_METRICS = {
  "entropy": "entropy",
  "completion_length": "length",
  "teacher/accuracy": "teacher",
}


def check(comparison: Comparison, family: str, arms: Sequence[str]) -> None:
  """Refuses a training config that cannot be used, before anything is run.

  Args:
    comparison: what is to run.
    family: one of its families, with a training config or without.
    arms: those that may run.

  Raises:
    ConfigError: names the family and, where it matters, the arm.
  """
  run = comparison.families[family]
  if run.config is None:
    return
  for name in arms:
    try:
      run_config(
        run,
        comparison.arms[name],
        learning_rate=1.0,
        seed=0,
        directory=str(comparison.directory),
      )
    except configs.ConfigError as error:
      raise configs.ConfigError(
        f"families.{family}.config={run.config} with arm {name}: {error}"
      ) from error


def run_config(
  run: FamilyRun, arm: Arm, *, learning_rate: float, seed: int, directory: str
) -> configs.Config:
  """The training config of a trial.

  The arm's objective replaces the config's; of the teacher only what the arm
  sets, so that its prompt stays the family's.
  """
  assert run.config is not None
  tree = configs.load(run.config).model_dump(mode="json")
  sequences = tree["rollout"]["num_problems"] * tree["rollout"]["group_size"]
  tree["objective"] = arm.objective.model_dump(mode="json")
  tree["teacher"] |= arm.teacher.model_dump(mode="json", exclude_unset=True)
  tree["optimizer"]["learning_rate"] = learning_rate
  if run.schedule is not None:
    tree["optimizer"]["schedule"] = run.schedule
  if arm.mini_batches > 1:
    tree["optimizer"]["mini_batch_size"] = sequences // arm.mini_batches
  tree["train"] |= {
    "num_steps": run.num_steps * arm.num_steps_factor,
    "seed": seed,
    "run_directory": directory,
  }
  tree["evaluation"]["every"] = run.evaluate_every
  # The curve takes the metrics of the steps that are evaluated.
  tree["logging"] |= {"every": 1, "tensorboard": False, "rollouts_every": 0}
  return configs.parse(tree, source=f"{run.config} with the arm's settings")


def train(config: configs.Config) -> dict[str, Any]:
  """Trains once; the part of a trial's record that is not its name."""
  summary = learner.Learner(config).train()
  folder = config.run_directory
  metrics = {
    line["step"]: line for line in reports.read_lines(folder / reports.METRICS)
  }
  accuracy = f"avg@{config.evaluation.num_samples}"
  curve = []
  for line in reports.read_lines(folder / reports.EVALUATIONS):
    if line["step"]:
      point = {"step": line["step"], "avg": line[accuracy]}
      curve.append(point | _of_step(metrics[line["step"]]))
  # The first step holds the compilation, unless it is the only one.
  steps = [line["time/step_seconds"] for line in metrics.values()]
  steps = sorted(steps[1:] or steps)
  return {
    "num_sequences": config.num_sequences,
    "step_seconds": steps[len(steps) // 2],
    "before": _of_evaluation(summary["before"], accuracy),
    "after": _of_evaluation(summary["after"], accuracy),
    "curve": curve,
    "seconds": summary["seconds"],
  }


def _of_step(line: Mapping[str, Any]) -> dict[str, float]:
  return {name: line[key] for key, name in _METRICS.items() if key in line}


def _of_evaluation(
  values: Mapping[str, Any], accuracy: str
) -> dict[str, float]:
  passed = {k: v for k, v in values.items() if k.startswith("pass@")}
  return {"avg": values[accuracy], **passed}
