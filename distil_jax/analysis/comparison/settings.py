"""What a comparison is asked to do."""

import pathlib
import re
from typing import Annotated, Literal

import pydantic

from distil_jax import config as configs
from distil_jax.analysis.comparison import task_list

Positive = Annotated[int, pydantic.Field(ge=1)]
Rate = Annotated[float, pydantic.Field(gt=0)]
Grid = Annotated[tuple[Rate, ...], pydantic.Field(min_length=1)]
_Some = pydantic.Field(min_length=1)

# What the learning curves hold.
Measure = Literal[
  "avg", "good_route", "entropy", "length", "p_eos", "teacher", "score_share"
]


class Network(configs.Section):
  """Sizes of student and teacher."""

  width: Positive = 48
  num_layers: Positive = 2
  num_heads: Positive = 4


# What a training config says of a family that has one.
_OF_TOYS = {
  "num_problems",
  "group_size",
  "network",
  "base_steps",
  "base_batch_size",
  "base_learning_rate",
}


class FamilyRun(configs.Section):
  """How a family is run.

  Its problems are `comparison.catalogue`'s or, where it has a `config`, those
  of a training config, whose model is then the only base.
  """

  config: str | None = None

  num_steps: Positive = 100
  evaluate_every: Positive = 10
  num_problems: Positive = 16
  group_size: Positive = 8
  # Of the learning rate. null: the config's; without one, constant.
  schedule: Literal["constant", "cosine"] | None = None
  network: Network = Network()
  base_steps: Positive = 500
  base_batch_size: Positive = 128
  base_learning_rate: Rate = 4e-3
  question: str = ""  # what the family is for; only with a config
  seeds: Positive | None = None  # null: the comparison's
  tuning_seeds: Positive | None = None
  learning_rates: Grid | None = None
  arms: tuple[str, ...] | None = None  # null: all
  score_shares: bool = True  # on the curves; one more program for each arm

  @pydantic.model_validator(mode="after")
  def _of_config(self):
    ignored = sorted(self.model_fields_set & _OF_TOYS) if self.config else []
    if ignored:
      raise ValueError(
        f"{', '.join(ignored)} beside config={self.config}, which says how "
        "large a step and a model are; set it there, and drop it here"
      )
    return self


class Arm(configs.Section):
  """One row of the table.

  An arm without learning rates of its own chooses from the comparison's. An
  ablation takes over what the arm named in `like` has chosen, and runs only in
  the families that it names. In a family with a training config only those
  settings of the teacher count that the arm names; others are the config's.
  """

  objective: configs.ObjectiveConfig
  teacher: configs.TeacherConfig = configs.TeacherConfig()
  mini_batches: Positive = 1
  learning_rates: Grid | None = None
  like: str | None = None
  families: tuple[str, ...] | None = None
  num_steps_factor: Positive = 1
  note: str = ""


class GradientRun(configs.Section):
  """Whose gradients are measured at the base, in which families."""

  families: tuple[str, ...] = ()
  arms: tuple[str, ...] = ()
  num_batches: Annotated[int, pydantic.Field(ge=2)] = 64
  num_reference: Positive = 128  # batches that stand for the exact gradient


class Figure(configs.Section):
  """A picture of some arms, with a row a family and a column a measure."""

  families: Annotated[tuple[str, ...], _Some]
  arms: Annotated[tuple[str, ...], _Some]
  measures: Annotated[tuple[Measure, ...], _Some]


class Comparison(configs.Section):
  """Arms, families, seeds."""

  name: str = "comparison"
  run_directory: str | None = None  # null: runs/<name of the file>
  default: str  # the arm that claims to be first or tied everywhere
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
  # Each is drawn as figures/NAME.png.
  figures: Annotated[dict[str, Figure], pydantic.Field(default_factory=dict)]
  jobs: Positive = 1

  @property
  def accuracy_name(self) -> str:
    """Of held-out problems; a training config has samples of its own."""
    has_configs = any(run.config for run in self.families.values())
    return "accuracy" if has_configs else "avg@4"

  @property
  def directory(self) -> pathlib.Path:
    return pathlib.Path(self.run_directory or f"runs/{self.name}")

  @pydantic.model_validator(mode="after")
  def _together(self):
    for name, run in self.families.items():
      if name not in task_list.FAMILIES and run.config is None:
        raise ValueError(
          f"families.{name} is not known; known: {sorted(task_list.FAMILIES)}, "
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
    toys = [name for name, run in self.families.items() if not run.config]
    self._check_names("gradients.families", self.gradients.families, toys)
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
    for family in toys:
      for name in filter(lambda arm: self.runs(family, arm), self.arms):
        self._check_toy(family, name)
    return self

  def runs(self, family: str, arm: str) -> bool:
    """Whether an arm is to run in a family."""
    of_family = self.families[family].arms
    if of_family is not None:
      return arm in of_family
    of_arm = self.arms[arm].families
    return of_arm is None or family in of_arm

  def learning_rates_of(self, family: str, arm: str) -> tuple[float, ...]:
    """The grid that an arm chooses from in a family."""
    return (
      self.arms[arm].learning_rates
      or self.families[family].learning_rates
      or self.learning_rates
    )

  def tuning_seeds_of(self, family: str) -> int:
    return self.families[family].tuning_seeds or self.tuning_seeds

  def _check_toy(self, family: str, name: str) -> None:
    """What a training config would be refused for."""
    run, arm = self.families[family], self.arms[name]
    # A group is learned from at once.
    if run.num_problems % arm.mini_batches:
      raise ValueError(
        f"arms.{name}: mini_batches={arm.mini_batches} must divide "
        f"families.{family}.num_problems={run.num_problems}"
      )
    try:
      configs.check_teacher(arm.objective, arm.teacher)
    except configs.ConfigError as error:
      raise ValueError(f"arms.{name}: {error}") from error

  @staticmethod
  def _check_names(where: str, names, known) -> None:
    for name in names:
      if name not in known:
        raise ValueError(f"{where}: {name} is not one of {sorted(known)}")
