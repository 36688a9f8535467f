"""Checks of what must hold between the sections of a config.

Each check takes the sections that it compares and raises a ValueError with the
paths of the keys, their values and the cure.
"""

from typing import Any

from distil_jax.config.environments import CodeConfig, JudgingConfig
from distil_jax.config.mixture import DataSetConfig
from distil_jax.config.model import ModelConfig
from distil_jax.config.objectives import ObjectiveConfig
from distil_jax.config.optimizers import OptimizerConfig
from distil_jax.config.rollout import RolloutConfig
from distil_jax.config.teacher import TeacherConfig
from distil_jax.config.tools import PythonToolConfig, ToolConfig
from distil_jax.config.training import (
  CheckpointConfig,
  EvaluationConfig,
  TrainConfig,
)


def check_batch_sizes(
  rollout: RolloutConfig, optimizer: OptimizerConfig
) -> None:
  """Checks that mini-batches and micro-batches divide what they cut."""
  num_sequences = rollout.num_problems * rollout.group_size
  mini = optimizer.mini_batch_size
  sequences = (
    f"{num_sequences} sequences of a step (rollout.num_problems="
    f"{rollout.num_problems} x rollout.group_size={rollout.group_size})"
  )
  if mini and (num_sequences % mini or mini % rollout.group_size):
    raise ValueError(
      f"optimizer.mini_batch_size={mini} must divide the {sequences}, and be "
      "a multiple of the group size, because an update learns from whole groups"
    )
  micro = optimizer.micro_batch_size
  if micro and (mini or num_sequences) % micro:
    whole = f"optimizer.mini_batch_size={mini}" if mini else f"the {sequences}"
    raise ValueError(f"optimizer.micro_batch_size={micro} must divide {whole}")


def check_schedule(optimizer: OptimizerConfig, train: TrainConfig) -> None:
  """Checks that warm-up and fall of a wsd schedule fit into the run."""
  if optimizer.schedule != "wsd":
    return
  needed = optimizer.warmup_steps + (optimizer.decay_steps or 0)
  if needed > train.num_steps:
    raise ValueError(
      f"optimizer.warmup_steps={optimizer.warmup_steps} and "
      f"optimizer.decay_steps={optimizer.decay_steps} are more than "
      f"train.num_steps={train.num_steps}; lower them, or train for longer"
    )


def check_retention(
  checkpoint: CheckpointConfig, evaluation: EvaluationConfig
) -> None:
  """Checks that the steps to keep are saved at all."""
  every = checkpoint.every
  if checkpoint.keep_every is not None and checkpoint.keep_every % every:
    raise ValueError(
      f"checkpoint.keep_every={checkpoint.keep_every} must be a multiple of "
      f"checkpoint.every={every}: no other steps are saved"
    )
  if checkpoint.keep_best and not evaluation.every:
    raise ValueError(
      f"checkpoint.keep_best={checkpoint.keep_best} compares evaluations, but "
      "evaluation.every=0; set it to a multiple of checkpoint.every"
    )
  if checkpoint.keep_best and evaluation.every % every:
    raise ValueError(
      f"checkpoint.keep_best={checkpoint.keep_best} needs a checkpoint of each "
      f"step that is evaluated: evaluation.every={evaluation.every} must be a "
      f"multiple of checkpoint.every={every}"
    )


def check_rounding(optimizer: OptimizerConfig, model: ModelConfig) -> None:
  """Checks that there is something to round."""
  if optimizer.stochastic_rounding and model.param_dtype != "bfloat16":
    raise ValueError(
      "optimizer.stochastic_rounding=true rounds to bfloat16, but "
      f"model.param_dtype={model.param_dtype}; set the one to false, or the "
      "other to bfloat16"
    )


def check_groups(objective: ObjectiveConfig, rollout: RolloutConfig) -> None:
  """Checks that an objective that compares siblings has some."""
  if rollout.group_size >= 2:
    return
  needs = objective.group_settings
  if needs:
    names = ", ".join(f"objective.{name}" for name in needs)
    raise ValueError(
      f"{names}: compares the members of a group and needs "
      "rollout.group_size of at least 2, got 1; raise it, or use "
      f"{', '.join(needs.values())}"
    )


def check_teacher_prompt(
  objective: ObjectiveConfig, teacher: TeacherConfig, rollout: RolloutConfig
) -> None:
  """Checks that something can stand in the teacher's prompt."""
  has_no_solution = teacher.solution == "none" or (
    teacher.solution == "sibling" and rollout.group_size == 1
  )
  if (
    objective.needs_teacher and teacher.feedback == "never" and has_no_solution
  ):
    raise ValueError(
      f"teacher.solution={teacher.solution} and teacher.feedback=never with "
      f"rollout.group_size={rollout.group_size} leave the teacher's prompt "
      "without solution and feedback, so that nothing could be learned; allow "
      "one of the two"
    )


def check_several_teachers(
  teacher: TeacherConfig, optimizer: OptimizerConfig
) -> None:
  """Checks that micro-batches are cut by teacher, not by length."""
  if teacher.models and optimizer.tokens_per_micro_batch:
    raise ValueError(
      f"optimizer.tokens_per_micro_batch={optimizer.tokens_per_micro_batch} "
      "sorts sequences by length, and those of several teachers "
      f"(teacher.models={', '.join(teacher.models)}) are sorted by teacher; "
      "set it to null, and optimizer.micro_batch_size"
    )


def check_data(data_set: DataSetConfig, where: str = "") -> None:
  """Checks that an environment that makes no problems has files of them.

  An environment of the user's own is asked when it exists.

  Args:
    data_set: its data and its environment.
    where: path of their sections, with a point at its end.
  """
  environment, name = data_set.environment, f"{where}environment"
  if (inner := getattr(environment, "of", None)) is not None:
    environment, name = inner, f"{name}.of"
  generates = environment.generates_problems
  is_used = {
    "train": data_set.is_trained_on,
    "evaluation": data_set.evaluation is not None,
  }
  for key, is_read in is_used.items():
    is_generated = getattr(data_set.data, key) == "generated"
    if is_read and is_generated and not generates:
      raise ValueError(
        f"{where}data.{key}=generated, but {name}.kind={environment.kind} "
        "makes no problems; give a file"
      )


def check_limits(
  data_set: DataSetConfig,
  where: str,
  rollout: RolloutConfig,
  tools: ToolConfig | None,
) -> None:
  """Checks what one set of a mixture has of its own.

  Args:
    data_set: the set.
    where: path of its section, with a point at its end.
    rollout, tools: sections of the run.
  """
  for name in ("max_prompt_length", "max_completion_length"):
    own, longest = getattr(data_set, name), getattr(rollout, name)
    if own is not None and own > longest:
      raise ValueError(
        f"{where}{name}={own} is more than rollout.{name}={longest}, for which "
        "the step is compiled; raise that one, or lower this one"
      )
  if data_set.environment.kind == "self_evaluation":
    raise ValueError(
      f"{where}environment.kind=self_evaluation: all completions of a step get "
      "their critiques from one environment; train on it alone, or use what is "
      "in environment.of"
    )
  if tools is None:
    return
  if data_set.max_completion_length is not None:
    raise ValueError(
      f"{where}max_completion_length={data_set.max_completion_length}, but "
      f"with tools={tools.kind} all episodes of a step have "
      "rollout.max_completion_length; set it to null, or tools=null"
    )
  evaluation = data_set.evaluation
  longest = evaluation and evaluation.max_completion_length
  if longest and tools.max_output_tokens >= longest:
    raise ValueError(
      f"tools.max_output_tokens={tools.max_output_tokens} leaves no room in "
      f"{where}evaluation.max_completion_length={longest}; lower the one, or "
      "raise the other"
    )


def check_refill(
  rollout: RolloutConfig, objective: ObjectiveConfig, environment: Any
) -> None:
  """Checks that groups can be judged by their signal before the update."""
  if rollout.refill is None:
    return
  if not objective.uses_rollouts:
    raise ValueError(
      f"rollout.refill is set, but objective.kind={objective.kind} samples "
      "nothing that could be without signal; set rollout.refill=null"
    )
  if environment.kind == "self_evaluation":
    raise ValueError(
      "rollout.refill with environment.kind=self_evaluation: every failure "
      "gets a critique, so that hardly a group is without signal; set "
      "rollout.refill=null"
    )


def check_critiques(
  environment: Any, objective: ObjectiveConfig, teacher: TeacherConfig
) -> None:
  """Checks that critiques have a reader, and a guard has rewards."""
  if environment.kind != "self_evaluation":
    return
  is_read = objective.needs_teacher and teacher.feedback != "never"
  if environment.of is not None and not is_read:
    raise ValueError(
      "environment.kind=self_evaluation asks for critiques, but no teacher "
      f"reads them with objective.kind={objective.kind} and teacher.feedback="
      f"{teacher.feedback}; set environment to what environment.of is"
    )
  if environment.of is None and teacher.guard:
    raise ValueError(
      "teacher.guard judges by rewards, but without environment.of there are "
      "none before a critique; set environment.of, or teacher.guard=null"
    )
  if environment.of is not None and environment.of.max_turns > 1:
    raise ValueError(
      f"environment.of.kind={environment.of.kind} with "
      f"{environment.of.max_turns} turns: a critic judges one answer, so that "
      "nobody would reply to a turn; let "
      f"environment.of.kind={environment.of.kind} have one turn"
    )


def check_tools(
  tools: ToolConfig | None,
  rollout: RolloutConfig,
  evaluation: EvaluationConfig,
  teacher: TeacherConfig,
) -> None:
  """Checks that tools have room and time, and no guard that ignores them."""
  if tools is None:
    return
  longest = tools.max_output_tokens
  for name, limit in (
    ("rollout", rollout.max_completion_length),
    ("evaluation", evaluation.max_completion_length),
  ):
    if limit is not None and longest >= limit:
      raise ValueError(
        f"tools.max_output_tokens={longest} leaves no room in {name}."
        f"max_completion_length={limit}, which holds all turns and outputs of "
        "an episode; lower the one, or raise the other"
      )
  if teacher.guard is not None:
    raise ValueError(
      "teacher.guard lets the teacher answer in one turn without tools, so "
      f"that with tools={tools.kind} it would not measure what is taught; set "
      "teacher.guard=null, or tools=null"
    )
  if not isinstance(tools, PythonToolConfig):
    return
  # The sandbox ends a program that waits without using CPU after this time.
  longest_block = 2 * tools.seconds + 2
  if longest_block > tools.call_seconds:
    raise ValueError(
      f"tools.call_seconds={tools.call_seconds:g} is less than the "
      f"{longest_block:g} s that a block may take (twice tools.seconds="
      f"{tools.seconds:g}, plus 2); raise the one, or lower the other"
    )


def check_deadlines(
  environment: Any, judging: JudgingConfig, where: str = ""
) -> None:
  """Checks that an environment's own deadline comes before its judge's.

  Args:
    environment: a section.
    judging: the section.
    where: path of the environment's section, with a point at its end.
  """
  section = getattr(environment, "of", None) or environment
  if not isinstance(section, CodeConfig):
    return
  # The last test may begin just before the total time is up.
  longest = section.total_seconds + 2 * section.seconds + 2
  if longest > judging.seconds:
    raise ValueError(
      f"judging.seconds={judging.seconds:g} is less than the {longest:g} s "
      f"that judging a program may take ({where}environment.total_seconds="
      f"{section.total_seconds:g}, plus twice {where}environment.seconds="
      f"{section.seconds:g} and 2 for the last test); raise it, or lower these"
    )
