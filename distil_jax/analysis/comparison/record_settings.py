"""Derives the settings of a trial, and compares them with those in its record.

A family with a training config gets a config for each trial.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from flax import traverse_util

from distil_jax import config as configs
from distil_jax.analysis.comparison import trial_store
from distil_jax.analysis.comparison.settings import Arm, Comparison, FamilyRun
from distil_jax.analysis.comparison.trial_record import Done, Record, Trial

# Settings of families and arms that choose trials but do not change them.
_CHOOSING = {
  "arms",
  "families",
  "learning_rates",
  "like",
  "note",
  "question",
  "seeds",
  "tuning_seeds",
}
# Settings of a teacher that only one kind of its parameters has.
_KIND_OF_SETTING = {
  "ema_rate": "ema",
  "guard": "ema",
  "trust_region_rate": "trust_region",
}


def check_configs(
  comparison: Comparison, family: str, arms: Sequence[str]
) -> None:
  """Checks that a family's training config can be used with some arms.

  Args:
    comparison: What is to run.
    family: One of its families, with or without a training config.
    arms: Arms that may run; those that do not run in the family are skipped.

  Raises:
    ConfigError: Names the family, the config and the arm.
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
  """Returns the training config of a trial.

  The arm's objective replaces that of the config. Of the teacher only the
  settings that the arm names are replaced, so that its prompt stays that of the
  family.

  Args:
    run: A family with a training config.
    arm: The arm of the trial.
    learning_rate, seed: Those of the trial.
    directory: Where the run is written.

  Raises:
    ConfigError: The config does not exist, or does not fit the arm.
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
    # An arm that diverges at a rate has lost there, and is not helped on.
    "max_skipped_updates": 0,
  }
  tree["evaluation"]["every"] = run.evaluate_every
  # The learning curve takes the metrics of the steps that are evaluated.
  tree["logging"] |= {"every": 1, "tensorboard": False, "rollouts_every": 0}
  return configs.parse(tree, source=f"{run.config} with the arm's settings")


def _teacher(
  tree: dict[str, Any], teacher: configs.TeacherConfig
) -> dict[str, Any]:
  """Returns a config's teacher with the settings that an arm names.

  If the arm changes the kind of the teacher's parameters, settings that only
  the config's kind has get their defaults again.
  """
  own = teacher.model_dump(mode="json", exclude_unset=True)
  kind = own.get("parameters", tree["parameters"])
  defaults = configs.TeacherConfig().model_dump(mode="json")
  unused = [name for name, of in _KIND_OF_SETTING.items() if kind != of]
  return tree | {name: defaults[name] for name in unused} | own


def settings_of(comparison: Comparison, trial: Trial) -> dict[str, Any]:
  """Returns everything beside its name that decides what a trial finds."""
  run, arm = comparison.families[trial.family], comparison.arms[trial.arm]
  sizes = {"num_held_out", "num_pass_problems", "pass_at"}
  config = {"config": _config_settings(run, arm)} if run.config else {}
  return {
    **_sections(run, arm),
    **config,
    **comparison.model_dump(mode="json", include=sizes),
  }


def _config_settings(run: FamilyRun, arm: Arm) -> dict[str, Any]:
  """Returns a trial's config without what tells trials apart."""
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


def _sections(run: FamilyRun, arm: Arm) -> dict[str, Any]:
  return {
    "run": run.model_dump(mode="json", exclude=_CHOOSING),
    "arm": arm.model_dump(mode="json", exclude=_CHOOSING),
  }


def check_same(comparison: Comparison, trial: Trial, record: Record) -> None:
  """Checks that a trial ran with the settings that it would have now.

  Raises:
    ValueError: Lists every difference.
  """
  found = differences(comparison, trial, record)
  if found:
    path = trial_store.file_of(comparison.directory, trial.family)
    raise ValueError(
      "\n".join(
        [
          f"{path} holds {trial}, which ran with other settings of its family "
          "or arm; choose another run_directory, or delete that line (and the "
          "base model, if its settings have changed)",
          *found,
        ]
      )
    )


def differences(
  comparison: Comparison, trial: Trial, record: Record
) -> list[str]:
  """Describes the settings in which a record differs from the comparison.

  A key that the record lacks was added to the package later, with a default
  that changes nothing. Such a record counts as if it had that default.
  """
  arm = comparison.arms[trial.arm]
  defaults = _sections(FamilyRun(), Arm(objective=type(arm.objective)()))
  defaults["config"] = configs.Config().model_dump(mode="json")
  defaults = _flat(defaults)
  new = _flat(settings_of(comparison, trial))
  old = _flat(record["settings"])
  # Only keys that the old record lacks: a value that it has is compared.
  old |= {k: defaults[k] for k in new.keys() - old.keys() if k in defaults}
  return [
    f"  {key}: {old.get(key)!r} then, {new.get(key)!r} now"
    for key in sorted(old.keys() | new.keys())
    if old.get(key) != new.get(key)
  ]


def check_counted(comparison: Comparison, done: Done) -> None:
  """Checks the settings of all trials that the report counts.

  Trials of families, arms, learning rates or bases that the comparison does not
  name are not counted, and may have run with any settings.

  Raises:
    ValueError: Lists every difference of the first trial that differs.
  """
  for trial, record in done.items():
    if trial.family not in comparison.families:
      continue
    if trial.arm not in comparison.arms:
      continue
    if not comparison.is_planned(trial):
      continue
    owner = comparison.arms[trial.arm].like or trial.arm
    if trial.learning_rate in comparison.learning_rates_of(trial.family, owner):
      check_same(comparison, trial, record)


def _flat(tree: Mapping[str, Any]) -> dict[str, Any]:
  """Returns values by their dotted keys."""
  return traverse_util.flatten_dict(tree, sep=".")
