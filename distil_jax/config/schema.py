"""A whole run: all sections, and what must hold between them."""

import pathlib
from typing import Any

import pydantic

from distil_jax.config import data as config_data
from distil_jax.config import environments, objectives, training
from distil_jax.config import model as config_model
from distil_jax.config import rollout as config_rollout
from distil_jax.config import teacher as config_teacher
from distil_jax.config import tools as tool_sections
from distil_jax.config.base import Section


class Config(Section):
  """Everything that decides what a run does."""

  name: str = "run"
  model: config_model.ModelConfig = config_model.ModelConfig()
  data: config_data.DataConfig = config_data.DataConfig()
  environment: environments.EnvironmentConfig = environments.CalculatorConfig()
  rollout: config_rollout.RolloutConfig = config_rollout.RolloutConfig()
  judging: environments.JudgingConfig = environments.JudgingConfig()
  sandbox: environments.SandboxConfig = environments.SandboxConfig()
  tools: tool_sections.ToolConfig | None = pydantic.Field(
    default=None, discriminator="kind"
  )
  teacher: config_teacher.TeacherConfig = config_teacher.TeacherConfig()
  objective: objectives.ObjectiveConfig = objectives.DistilConfig()
  optimizer: training.OptimizerConfig = training.OptimizerConfig()
  mesh: config_rollout.MeshConfig = config_rollout.MeshConfig()
  train: training.TrainConfig = training.TrainConfig()
  evaluation: training.EvaluationConfig = training.EvaluationConfig()
  checkpoint: training.CheckpointConfig = training.CheckpointConfig()
  logging: training.LoggingConfig = training.LoggingConfig()

  @property
  def run_directory(self) -> pathlib.Path:
    return pathlib.Path(self.train.run_directory or f"runs/{self.name}")

  @property
  def num_sequences(self) -> int:
    """Sequences in one training step."""
    return self.rollout.num_problems * self.rollout.group_size

  @pydantic.model_validator(mode="before")
  @classmethod
  def _kinds(cls, tree: Any) -> Any:
    """Where no kind is said it is the default's, as for every setting."""
    if not isinstance(tree, dict):
      return tree
    filled = dict(tree)
    for name in ("environment", "objective"):
      if isinstance(filled.get(name), dict):
        kind = cls.model_fields[name].default.kind
        filled[name] = {"kind": kind, **filled[name]}
    if isinstance(section := filled.get("environment"), dict):
      filled["environment"] = environments.name_own_environment(section)
    if isinstance(section := filled.get("tools"), dict):
      filled["tools"] = tool_sections.with_kind(section)
    return filled

  @pydantic.model_validator(mode="after")
  def _together(self):
    _check_sizes(self)
    _check_groups(self)
    objectives.check_teacher(self.objective, self.teacher)
    _check_something_is_told(self)
    _check_sources(self)
    _check_critiques(self)
    _check_tools(self)
    _check_deadlines(self)
    return self


def _check_sizes(config: Config) -> None:
  mini = config.optimizer.mini_batch_size
  group_size = config.rollout.group_size
  sequences = (
    f"{config.num_sequences} sequences of a step (rollout.num_problems="
    f"{config.rollout.num_problems} x rollout.group_size={group_size})"
  )
  if mini and (config.num_sequences % mini or mini % group_size):
    raise ValueError(
      f"optimizer.mini_batch_size={mini} must divide the {sequences}, and be "
      f"a multiple of the group size: a group is learned from at once"
    )
  micro = config.optimizer.micro_batch_size
  if micro and (mini or config.num_sequences) % micro:
    whole = f"optimizer.mini_batch_size={mini}" if mini else f"the {sequences}"
    raise ValueError(f"optimizer.micro_batch_size={micro} must divide {whole}")


def _check_deadlines(config: Config) -> None:
  """An environment's own deadline must come before that of its judge."""
  section: Any = config.environment
  section = getattr(section, "of", None) or section
  if not isinstance(section, environments.CodeConfig):
    return
  # The last test may begin just before the time is up.
  longest = section.total_seconds + 2 * section.seconds + 2
  if longest > config.judging.seconds:
    raise ValueError(
      f"judging.seconds={config.judging.seconds:g} is less than the "
      f"{longest:g} s that judging a program may take (environment."
      f"total_seconds={section.total_seconds:g}, and twice environment.seconds="
      f"{section.seconds:g} and 2 for the last test); raise it, or lower these"
    )


def _check_groups(config: Config) -> None:
  if config.rollout.group_size >= 2:
    return
  needs = config.objective.group_settings
  if needs:
    names = ", ".join(f"objective.{name}" for name in needs)
    raise ValueError(
      f"{names}: compares the members of a group and needs "
      "rollout.group_size of at least 2, got 1; raise it, or use "
      f"{', '.join(needs.values())}"
    )


def _check_something_is_told(config: Config) -> None:
  """Else nothing would ever stand in the teacher's prompt."""
  teacher = config.teacher
  is_silent = teacher.solution == "none" or (
    teacher.solution == "sibling" and config.rollout.group_size == 1
  )
  if (
    config.objective.needs_teacher and teacher.feedback == "never" and is_silent
  ):
    raise ValueError(
      f"teacher.solution={teacher.solution} and teacher.feedback=never with "
      f"rollout.group_size={config.rollout.group_size} leave the teacher "
      "nothing to tell; let it have one of the two"
    )


def _check_sources(config: Config) -> None:
  # One of the user's own says so itself, once it is there.
  inner = getattr(config.environment, "of", None)
  judge, name = config.environment, "environment"
  if inner is not None:
    judge, name = inner, "environment.of"
  generates = judge.kind in ("calculator", "reasoning_gym", "own")
  for key in ("train", "evaluation"):
    if getattr(config.data, key) == "generated" and not generates:
      raise ValueError(
        f"data.{key}=generated, but {name}.kind={judge.kind} makes no "
        "problems; give a file"
      )


def _check_critiques(config: Config) -> None:
  section, teacher = config.environment, config.teacher
  if section.kind != "self_evaluation":
    return
  is_told = config.objective.needs_teacher and teacher.feedback != "never"
  if section.of is not None and not is_told:
    raise ValueError(
      "environment.kind=self_evaluation asks for critiques that no teacher is "
      f"told with objective.kind={config.objective.kind} and teacher.feedback="
      f"{teacher.feedback}; give environment what environment.of has"
    )
  if section.of is None and teacher.guard:
    raise ValueError(
      "teacher.guard judges by rewards, but without environment.of there are "
      "none before a critique; set environment.of, or teacher.guard=null"
    )


def _check_tools(config: Config) -> None:
  """What a tool says has room, and nothing is asked that it has no part in."""
  if config.tools is None:
    return
  longest = config.tools.max_output_tokens
  for name, limit in (
    ("rollout", config.rollout.max_completion_length),
    ("evaluation", config.evaluation.max_completion_length),
  ):
    if limit is not None and longest >= limit:
      raise ValueError(
        f"tools.max_output_tokens={longest} leaves no room in {name}."
        f"max_completion_length={limit}, which holds all turns and outputs of "
        "an episode; lower the one, or raise the other"
      )
  if config.teacher.guard is not None:
    raise ValueError(
      "teacher.guard has the teacher answer in one turn, without tools="
      f"{config.tools.kind}, and would measure something else than what is "
      "taught; set teacher.guard=null, or tools=null"
    )
  if not isinstance(config.tools, tool_sections.PythonToolConfig):
    return
  seconds, most = config.tools.seconds, config.tools.call_seconds
  # As the sandbox ends what waits and takes no CPU.
  if 2 * seconds + 2 > most:
    raise ValueError(
      f"tools.call_seconds={most:g} is less than the {2 * seconds + 2:g} s "
      f"that a block may take (twice tools.seconds={seconds:g}, and 2); raise "
      "the one, or lower the other"
    )
