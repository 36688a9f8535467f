"""A trial on real text: a whole training run, with an arm's objective."""

from collections.abc import Mapping, Sequence
from typing import Any

from distil_jax import config as configs
from distil_jax.analysis.comparison.settings import Arm, Comparison, FamilyRun
from distil_jax.training import trainer
from distil_jax.training.logging import run_folder

# What the learning curve takes from the metrics of a step.
_METRICS = {
  "entropy": "entropy",
  "completion_length": "length",
  "teacher/accuracy": "teacher",
}


# Settings of a teacher that only one kind of parameters has.
_OF_A_KIND = {
  "ema_rate": "ema",
  "guard": "ema",
  "trust_region_rate": "trust_region",
}


def check(comparison: Comparison, family: str, arms: Sequence[str]) -> None:
  """Refuses a training config that cannot be used, before anything is run.

  Args:
    comparison: what is to run.
    family: one of its families, with a training config or without.
    arms: those that may run; others than the family's are left out.

  Raises:
    ConfigError: names the family and, where it matters, the arm.
  """
  run = comparison.families[family]
  if run.config is None:
    return
  for name in filter(lambda arm: comparison.runs(family, arm), arms):
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
  tree["teacher"] = _teacher(tree["teacher"], arm.teacher)
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


def settings_of(run: FamilyRun, arm: Arm) -> dict[str, Any]:
  """All that a trial's config says, but for what tells the trial apart."""
  config = run_config(run, arm, learning_rate=1.0, seed=0, directory="")
  return config.model_dump(
    mode="json",
    exclude={
      "name": True,
      "judging": True,
      "logging": True,
      "optimizer": {"learning_rate"},
      "train": {"seed", "run_directory"},
    },
  )


def lost(
  curve: Sequence[Mapping[str, float]], *, every: int, num_steps: int
) -> list[dict[str, float]]:
  """The points of a curve that a run which diverged did not come to."""
  last = curve[-1] if curve else {"step": 0}
  steps = range(int(last["step"]) + every, num_steps + 1, every)
  return [{**last, "avg": 0.0, "step": step} for step in steps]


def _teacher(
  tree: dict[str, Any], teacher: configs.TeacherConfig
) -> dict[str, Any]:
  """A config's teacher with what an arm sets of it.

  What is only of the config's kind of teacher goes with that kind.
  """
  own = teacher.model_dump(mode="json", exclude_unset=True)
  kind = own.get("parameters", tree["parameters"])
  defaults = configs.TeacherConfig().model_dump(mode="json")
  gone = [name for name, of in _OF_A_KIND.items() if kind != of]
  return tree | {name: defaults[name] for name in gone} | own


def train(config: configs.Config) -> dict[str, Any]:
  """Trains once; the part of a trial's record that is not its name.

  A run that diverges is lost, whatever its last good parameters could do.
  """
  try:
    summary = trainer.Trainer(config).train()
  except trainer.TrainingError:
    summary = None
  folder = config.run_directory
  metrics = {
    line["step"]: line
    for line in run_folder.read_lines(folder / run_folder.METRICS)
  }
  accuracy = f"avg@{config.evaluation.num_samples}"
  evaluations = {
    line["step"]: line
    for line in run_folder.read_lines(folder / run_folder.EVALUATIONS)
  }
  before = _of_evaluation(evaluations.pop(0), accuracy)
  curve = [
    {"step": step, "avg": line[accuracy]} | _of_step(metrics[step])
    for step, line in evaluations.items()
  ]
  # The first step holds the compilation, unless it is the only one.
  times = [line["time/step_seconds"] for line in metrics.values()]
  steps = sorted(times[1:] or times or [0.0])
  if summary is None:
    after = dict.fromkeys(before, 0.0)
    curve += lost(
      curve, every=config.evaluation.every, num_steps=config.train.num_steps
    )
    seconds = sum(times)
  else:
    after = _of_evaluation(summary["after"], accuracy)
    seconds = summary["seconds"]
  return {
    "num_sequences": config.num_sequences,
    "step_seconds": steps[len(steps) // 2],
    "before": before,
    "after": after,
    "curve": curve,
    "diverged_at": max(metrics, default=0) if summary is None else None,
    "seconds": seconds,
  }


def _of_step(line: Mapping[str, Any]) -> dict[str, float]:
  return {name: line[key] for key, name in _METRICS.items() if key in line}


def _of_evaluation(
  values: Mapping[str, Any], accuracy: str
) -> dict[str, float]:
  passed = {k: v for k, v in values.items() if k.startswith("pass@")}
  return {"avg": values[accuracy], **passed}
