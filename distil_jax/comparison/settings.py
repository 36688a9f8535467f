"""What a comparison is asked to do."""

import pathlib
from typing import Annotated, Literal

import pydantic

from distil_jax import config as configs
from distil_jax.comparison import catalogue

Positive = Annotated[int, pydantic.Field(ge=1)]
Rate = Annotated[float, pydantic.Field(gt=0)]

# What the learning curves hold.
Measure = Literal[
  "avg", "good_route", "entropy", "length", "p_eos", "teacher", "score_share"
]


class Network(configs.Section):
  """Sizes of student and teacher."""

  width: Positive = 48
  num_layers: Positive = 2
  num_heads: Positive = 4


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
  learning_rates: tuple[Rate, ...] | None = None
  arms: tuple[str, ...] | None = None  # null: all
  score_shares: bool = True  # on the curves; one more program for each arm


class Arm(configs.Section):
  """One row of the table.

  An arm without learning rates of its own chooses from the comparison's. An
  ablation takes over what the arm named in `like` has chosen, and runs only in
  the families that it names.
  """

  objective: configs.Objective
  teacher: configs.Teacher = configs.Teacher(parameters="frozen")
  mini_batches: Positive = 1
  learning_rates: tuple[Rate, ...] | None = None
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

  families: tuple[str, ...]
  arms: tuple[str, ...]
  measures: tuple[Measure, ...]


class Comparison(configs.Section):
  """Arms, families, seeds."""

  name: str = "comparison"
  run_directory: str | None = None  # null: runs/<name of the file>
  default: str  # the arm that claims to be first or tied everywhere
  families: dict[str, FamilyRun]
  arms: dict[str, Arm]
  learning_rates: tuple[Rate, ...] = (3e-4, 1e-3, 3e-3)
  seeds: Positive = 5
  tuning_seeds: Positive = 2
  num_bases: Positive = 2
  num_held_out: Positive = 512
  pass_at: tuple[Positive, ...] = (1, 4, 16, 64)
  num_pass_problems: Positive = 64
  gradients: GradientRun = GradientRun()
  # Each is drawn as figures/NAME.png.
  figures: Annotated[dict[str, Figure], pydantic.Field(default_factory=dict)]
  jobs: Positive = 1

  @property
  def directory(self) -> pathlib.Path:
    return pathlib.Path(self.run_directory or f"runs/{self.name}")

  @pydantic.model_validator(mode="after")
  def _together(self):
    for name, run in self.families.items():
      if name not in catalogue.FAMILIES and run.config is None:
        raise ValueError(
          f"families.{name} is not known; known: {sorted(catalogue.FAMILIES)}, "
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
    return self

  def learning_rates_of(self, family: str, arm: str) -> tuple[float, ...]:
    """The grid that an arm chooses from in a family."""
    return (
      self.arms[arm].learning_rates
      or self.families[family].learning_rates
      or self.learning_rates
    )

  def tuning_seeds_of(self, family: str) -> int:
    return self.families[family].tuning_seeds or self.tuning_seeds

  @staticmethod
  def _check_names(where: str, names, known) -> None:
    for name in names:
      if name not in known:
        raise ValueError(f"{where}: {name} is not one of {sorted(known)}")
