"""Declares the config of a comparison: arms, families and seeds."""

import pathlib
import re
from typing import Annotated, Literal

import pydantic

from distil_jax.analysis.comparison import builtin_families
from distil_jax.analysis.comparison.trial_record import FIRST_TUNING_SEED, Trial
from distil_jax.config.base import ConfigError, Section
from distil_jax.config.objectives import ObjectiveConfig, check_teacher
from distil_jax.config.teacher import TeacherConfig

Positive = Annotated[int, pydantic.Field(ge=1)]
Rate = Annotated[float, pydantic.Field(gt=0)]
Grid = Annotated[tuple[Rate, ...], pydantic.Field(min_length=1)]
_Some = pydantic.Field(min_length=1)

# The measures that learning curves hold.
Measure = Literal[
  "avg", "good_route", "entropy", "length", "p_eos", "teacher", "score_share"
]


class Network(Section):
  """Holds the sizes of student and teacher."""

  width: Positive = 48
  num_layers: Positive = 2
  num_heads: Positive = 4


# Settings that a family with a training config takes from that config.
_BUILTIN_SETTINGS = {
  "num_problems",
  "group_size",
  "network",
  "base_steps",
  "base_batch_size",
  "base_learning_rate",
}


class FamilyRun(Section):
  """Says how a family is run.

  Its problems come from `builtin_families` or, if it has a `config`, from that
  training config, whose model is then the only base.
  """

  config: str | None = None

  num_steps: Positive = 100
  evaluate_every: Positive = 10
  num_problems: Positive = 16
  group_size: Positive = 8
  # Schedule of the learning rate. null: that of the config, else constant.
  schedule: Literal["constant", "cosine"] | None = None
  network: Network = Network()
  base_steps: Positive = 500
  base_batch_size: Positive = 128
  base_learning_rate: Rate = 4e-3
  question: str = ""  # why the family is there; only with a config
  seeds: Positive | None = None  # null: those of the comparison
  tuning_seeds: Positive | None = None
  learning_rates: Grid | None = None
  arms: tuple[str, ...] | None = None  # null: all
  score_shares: bool = True  # measures score_share; one more program per arm

  @pydantic.model_validator(mode="after")
  def _check_config(self):
    ignored = (
      sorted(self.model_fields_set & _BUILTIN_SETTINGS) if self.config else []
    )
    if ignored:
      raise ValueError(
        f"{', '.join(ignored)} cannot be set beside config={self.config}, "
        "which holds the sizes of steps and model; set them there, and drop "
        "them here"
      )
    return self


class Arm(Section):
  """Describes one row of the table: an objective with its teacher.

  An arm without learning rates chooses from those of the comparison. An
  ablation (an arm with `like`) uses the rate that the arm named there has
  chosen, and runs only in the families that it names. In a family with a
  training config the arm replaces only those settings of the teacher that it
  names.
  """

  objective: ObjectiveConfig
  teacher: TeacherConfig = TeacherConfig()
  mini_batches: Positive = 1
  learning_rates: Grid | None = None
  like: str | None = None
  families: tuple[str, ...] | None = None
  num_steps_factor: Positive = 1
  note: str = ""


class GradientRun(Section):
  """Names arms and families whose gradients are measured at the base."""

  families: tuple[str, ...] = ()
  arms: tuple[str, ...] = ()
  num_batches: Annotated[int, pydantic.Field(ge=2)] = 64
  num_reference: Positive = 128  # batches that stand for the exact gradient


class Figure(Section):
  """Describes a figure with a row per family and a column per measure."""

  families: Annotated[tuple[str, ...], _Some]
  arms: Annotated[tuple[str, ...], _Some]
  measures: Annotated[tuple[Measure, ...], _Some]


class Comparison(Section):
  """Holds the whole config of a comparison."""

  name: str = "comparison"
  run_directory: str | None = None  # null: runs/<name of the file>
  default: str  # the arm that is claimed to be first or tied everywhere
  families: dict[str, FamilyRun]
  arms: dict[str, Arm]
  learning_rates: Grid = (3e-4, 1e-3, 3e-3)
  seeds: Positive = 5
  tuning_seeds: Positive = 2
  num_bases: Positive = 2
  num_held_out: Positive = 512
  pass_at: Annotated[tuple[Positive, ...], _Some] = (1, 4, 16, 64)
  num_pass_problems: Positive = 64
  gradients: GradientRun = GradientRun()
  # Each figure is written to figures/NAME.png.
  figures: Annotated[dict[str, Figure], pydantic.Field(default_factory=dict)]
  jobs: Positive = 1

  @property
  def accuracy_name(self) -> str:
    """Returns the name of held-out accuracy.

    Training configs may use another number of samples than four.
    """
    has_configs = any(run.config for run in self.families.values())
    return "accuracy" if has_configs else "avg@4"

  @property
  def directory(self) -> pathlib.Path:
    return pathlib.Path(self.run_directory or f"runs/{self.name}")

  @property
  def main_arms(self) -> list[str]:
    """Returns the arms that choose a learning rate; others are ablations."""
    return [name for name, arm in self.arms.items() if arm.like is None]

  @pydantic.model_validator(mode="after")
  def _check_together(self):
    for name, run in self.families.items():
      if name not in builtin_families.FAMILIES and run.config is None:
        raise ValueError(
          f"families.{name} is not known; known: "
          f"{sorted(builtin_families.FAMILIES)}, "
          "or any name with a training config (families.NAME.config)"
        )
      if run.num_steps % run.evaluate_every:
        raise ValueError(
          f"families.{name}: evaluate_every={run.evaluate_every} must divide "
          f"num_steps={run.num_steps}"
        )
      self._check_names(f"families.{name}.arms", run.arms or (), self.arms)
    self._check_names("default", (self.default,), self.arms)
    self._check_names("gradients.arms", self.gradients.arms, self.arms)
    builtin = [name for name, run in self.families.items() if not run.config]
    self._check_names("gradients.families", self.gradients.families, builtin)
    for name, figure in self.figures.items():
      where = f"figures.{name}"
      if not re.fullmatch(r"[\w-]+", name):
        raise ValueError(
          f"{where}: {name!r} names a file; use letters, digits, _ and - alone"
        )
      self._check_names(f"{where}.families", figure.families, self.families)
      self._check_names(f"{where}.arms", figure.arms, self.arms)
    for name, arm in self.arms.items():
      self._check_names(
        f"arms.{name}.families", arm.families or (), self.families
      )
      if arm.like is not None:
        self._check_names(f"arms.{name}.like", (arm.like,), self.arms)
        if arm.learning_rates:
          raise ValueError(
            f"arms.{name}: learning_rates={list(arm.learning_rates)} beside "
            f"like={arm.like}, whose rate it takes over; drop one of them"
          )
        if self.arms[arm.like].like is not None:
          raise ValueError(
            f"arms.{name}.like={arm.like}, which itself is like another; name "
            "an arm that chooses its own learning rate"
          )
    for family in builtin:
      for name in filter(lambda arm: self.runs(family, arm), self.arms):
        self._check_builtin(family, name)
    return self

  def runs(self, family: str, arm: str) -> bool:
    """Returns True if an arm is to run in a family."""
    arms = self.families[family].arms
    if arms is not None:
      return arm in arms
    families = self.arms[arm].families
    return families is None or family in families

  def learning_rates_of(self, family: str, arm: str) -> tuple[float, ...]:
    """Returns the grid from which an arm chooses in a family."""
    return (
      self.arms[arm].learning_rates
      or self.families[family].learning_rates
      or self.learning_rates
    )

  def tuning_seeds_of(self, family: str) -> int:
    return self.families[family].tuning_seeds or self.tuning_seeds

  def planned_seeds(self, family: str) -> int:
    return self.families[family].seeds or self.seeds

  def base_of(self, family: str, seed: int) -> int:
    """Returns the number of the base model from which a seed starts."""
    if self.families[family].config:
      return 0  # the config's model is the only base
    # Tuning seeds begin with the same base as the others, so that rates are
    # chosen on all bases alike.
    is_tuning = seed >= FIRST_TUNING_SEED
    return (seed - FIRST_TUNING_SEED * is_tuning) % self.num_bases

  def is_planned(self, trial: Trial) -> bool:
    """Returns True if a trial's base is the one that its seed has now.

    A changed `num_bases` gives some seeds another base.
    """
    return trial.base == self.base_of(trial.family, trial.seed)

  def _check_builtin(self, family: str, name: str) -> None:
    """Checks what the schema of a training config would check."""
    run, arm = self.families[family], self.arms[name]
    # All samples of a problem belong to one update.
    if run.num_problems % arm.mini_batches:
      raise ValueError(
        f"arms.{name}: mini_batches={arm.mini_batches} must divide "
        f"families.{family}.num_problems={run.num_problems}"
      )
    try:
      check_teacher(arm.objective, arm.teacher)
    except ConfigError as error:
      raise ValueError(f"arms.{name}: {error}") from error

  @staticmethod
  def _check_names(where: str, names, known) -> None:
    for name in names:
      if name not in known:
        raise ValueError(f"{where}: {name} is not one of {sorted(known)}")
