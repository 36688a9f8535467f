"""The schema of a whole run: all sections, and what must hold between them."""

import pathlib
from collections.abc import Mapping
from typing import Any

import pydantic

from distil_jax.config import checks
from distil_jax.config.base import Section
from distil_jax.config.data import DataConfig
from distil_jax.config.environments import (
  CalculatorConfig,
  EnvironmentConfig,
  JudgingConfig,
  SandboxConfig,
  name_own_environment,
)
from distil_jax.config.mesh import MeshConfig
from distil_jax.config.mixture import (
  DataSetConfig,
  Mixture,
  check_names,
  check_shares,
  fill_in,
)
from distil_jax.config.model import ModelConfig
from distil_jax.config.objectives import (
  DistilConfig,
  ObjectiveConfig,
  check_teacher,
)
from distil_jax.config.optimizers import AdamWConfig, OptimizerConfig
from distil_jax.config.rollout import RolloutConfig
from distil_jax.config.teacher import TeacherConfig
from distil_jax.config.tools import ToolConfig, with_kind
from distil_jax.config.training import (
  CheckpointConfig,
  CompilationConfig,
  EvaluationConfig,
  LoggingConfig,
  ProfileConfig,
  TrainConfig,
)


class Config(Section):
  """Everything that decides what a run does."""

  name: str = "run"
  model: ModelConfig = ModelConfig()
  data: DataConfig = DataConfig()
  environment: EnvironmentConfig = CalculatorConfig()
  mixture: Mixture = pydantic.Field(default={})
  rollout: RolloutConfig = RolloutConfig()
  judging: JudgingConfig = JudgingConfig()
  sandbox: SandboxConfig = SandboxConfig()
  tools: ToolConfig | None = pydantic.Field(default=None, discriminator="kind")
  teacher: TeacherConfig = TeacherConfig()
  objective: ObjectiveConfig = DistilConfig()
  optimizer: OptimizerConfig = AdamWConfig()
  mesh: MeshConfig = MeshConfig()
  train: TrainConfig = TrainConfig()
  evaluation: EvaluationConfig = EvaluationConfig()
  checkpoint: CheckpointConfig = CheckpointConfig()
  logging: LoggingConfig = LoggingConfig()
  compilation: CompilationConfig = CompilationConfig()
  profile: ProfileConfig = ProfileConfig()

  @property
  def run_directory(self) -> pathlib.Path:
    """The run's folder."""
    return pathlib.Path(self.train.run_directory or f"runs/{self.name}")

  @property
  def data_sets(self) -> Mapping[str, DataSetConfig]:
    """The data sets by name; without a mixture there is one, without a name."""
    if self.mixture:
      return self.mixture
    return {
      "": DataSetConfig(
        data=self.data,
        environment=self.environment,
        evaluation=self.evaluation,
      )
    }

  @property
  def num_sequences(self) -> int:
    """Sequences in one training step."""
    return self.rollout.num_problems * self.rollout.group_size

  @pydantic.model_validator(mode="before")
  @classmethod
  def _fill_kinds(cls, tree: Any) -> Any:
    """Fills in the default kind of a section that does not name its kind."""
    if not isinstance(tree, dict):
      return tree
    filled = dict(tree)
    # A union is chosen by its kind, so the kind must be there before
    # validation.
    for name in ("environment", "objective", "optimizer"):
      if isinstance(filled.get(name), dict):
        kind = cls.model_fields[name].default.kind
        filled[name] = {"kind": kind, **filled[name]}
    if isinstance(section := filled.get("environment"), dict):
      filled["environment"] = name_own_environment(section)
    if "mixture" in filled:
      filled["mixture"] = fill_in(filled["mixture"], filled.get("evaluation"))
    if isinstance(section := filled.get("tools"), dict):
      filled["tools"] = with_kind(section)
    return filled

  @pydantic.model_validator(mode="after")
  def _check_sections(self):
    checks.check_batch_sizes(self.rollout, self.optimizer)
    checks.check_schedule(self.optimizer, self.train)
    checks.check_retention(self.checkpoint, self.evaluation)
    checks.check_rounding(self.optimizer, self.model)
    checks.check_groups(self.objective, self.rollout)
    check_teacher(self.objective, self.teacher)
    checks.check_teacher_prompt(self.objective, self.teacher, self.rollout)
    checks.check_several_teachers(self.teacher, self.optimizer)
    checks.check_refill(self.rollout, self.objective, self.environment)
    checks.check_critiques(self.environment, self.objective, self.teacher)
    checks.check_tools(self.tools, self.rollout, self.evaluation, self.teacher)
    self._check_data_sets()
    return self

  def _check_data_sets(self) -> None:
    if self.mixture:
      for name in ("data", "environment"):
        if getattr(self, name) != type(self).model_fields[name].default:
          raise ValueError(
            f"{name} and mixture are both set, but the sets of a mixture have "
            f"their own; move {name} into mixture.NAME.{name}"
          )
    check_names(self.mixture)
    check_shares(self.mixture)
    for name, section in self.data_sets.items():
      where = f"mixture.{name}." if name else ""
      checks.check_data(section, where)
      checks.check_deadlines(section.environment, self.judging, where)
      if section.teacher is not None:
        self.teacher.check_name(f"{where}teacher", section.teacher)
      if name:
        checks.check_limits(section, where, self.rollout, self.tools)
