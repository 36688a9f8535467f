"""Builds the batch of a training step from experience or demonstrations."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from distil_jax.data import demonstrations as data_demonstrations
from distil_jax.data import padding, shared_prefixes
from distil_jax.data.tokenizer import Tokenizer
from distil_jax.training import taught_tokens, teaching
from distil_jax.training.rollouts.experience import Experience
from distil_jax.training.teaching import TeacherSettings
from distil_jax.types import (
  BatchStats,
  Demonstration,
  TrainBatch,
)


@dataclasses.dataclass(frozen=True)
class BatchBuilder:
  """Builds what the update learns from, on the host.

  Attributes:
    tokenizer: of the policy.
    teacher_tokenizer: writes the teacher's prompts.
    teacher: what stands in these; None without a teacher.
    max_prompt_length: S.
    max_completion_length: T.
    ask: `(step, batch, stats) -> (batch, stats)`: asks a teacher that runs
      elsewhere for its lists; None without one.
    loss_weights: factor of the loss of each data set's samples; None means 1.
  """

  tokenizer: Tokenizer
  teacher_tokenizer: Tokenizer
  teacher: TeacherSettings | None
  max_prompt_length: int
  max_completion_length: int
  ask: Callable[..., tuple[TrainBatch, BatchStats]] | None = None
  loss_weights: Mapping[str, float] | None = None

  def __call__(
    self, problems: Sequence[Any], experience: Experience | None, step: int = 0
  ) -> tuple[TrainBatch, BatchStats]:
    """Returns the batch of a training step.

    Args:
      problems: this process's problems, or demonstrations.
      experience: their completions and verdicts; None for demonstrations.
      step: the training steps done before.
    """
    batch, stats = self._build(problems, experience, step)
    if self.loss_weights is None:
      return batch, stats
    if experience is not None:
      problems = experience.problems
    weights = [self.loss_weights[problem.source] for problem in problems]
    group_size = len(batch.sample_mask) // len(problems)
    weights = np.repeat(np.asarray(weights, np.float32), group_size)
    return dataclasses.replace(batch, sample_weights=weights), stats

  def _build(
    self, problems: Sequence[Any], experience: Experience | None, step: int
  ) -> tuple[TrainBatch, BatchStats]:
    """Returns the batch without the weights of its samples."""
    if experience is None:
      return from_demonstrations(
        problems,
        self.tokenizer,
        max_prompt_length=self.max_prompt_length,
        max_completion_length=self.max_completion_length,
      )
    if self.teacher is None:
      return from_rewards(experience)
    found = from_experience(experience, self.teacher_tokenizer, self.teacher)
    return found if self.ask is None else self.ask(step, *found)


def from_rewards(experience: Experience) -> tuple[TrainBatch, BatchStats]:
  """Builds the batch of an objective without a teacher: all that is judged."""
  count = len(experience.completions)
  nothing = np.zeros((count, 0), np.int32)
  is_judged = experience.is_judged.astype(np.int32)
  batch = _batch(experience, nothing, nothing, is_judged)
  return batch, BatchStats(teacher_prompts=[None] * count)


def from_experience(
  experience: Experience, tokenizer: Tokenizer, settings: TeacherSettings
) -> tuple[TrainBatch, BatchStats]:
  """Builds each sample's teacher prompt from its group and its verdict.

  A sample without solution and feedback (a lone success, or a failure with
  nothing to say about it) has no signal and is masked out. So is one whose
  judge crashed, of which nothing is known. In a conversation all of this holds
  for each turn.
  """
  told = [
    teaching.teach_turns(experience, i, tokenizer, settings)
    for i in range(len(experience.completions))
  ]
  rows = [[turn.ids for turn in turns] for turns in told]
  # A masked row still passes through the network: one token stands in.
  teacher_ids, teacher_mask = padding.pad_left(
    [ids or [tokenizer.pad_id] for row in rows for ids in row],
    settings.max_prompt_length,
    tokenizer.pad_id,
  )
  shape = (len(rows), settings.num_turns, -1)
  teacher_ids = teacher_ids.reshape(shape)
  teacher_mask = teacher_mask.reshape(shape)
  has_prompt = np.asarray([[ids is not None for ids in row] for row in rows])
  has_signal = np.asarray(has_prompt.any(axis=1), np.int32)
  batch = _batch(experience, teacher_ids[:, 0], teacher_mask[:, 0], has_signal)
  taught_mask = taught_tokens.find_taught_tokens(
    batch.completion_ids,
    batch.student_tokens,
    tokenizer,
    first_tokens=settings.first_tokens,
    skip=settings.skip,
  )
  batch = dataclasses.replace(batch, taught_mask=taught_mask)
  if settings.names:
    batch = dataclasses.replace(
      batch, teacher_index=_teacher_index(experience, settings.names)
    )
  stats = BatchStats(
    teacher_prompts=[
      _as_text(row, teaching.writer(experience, i, tokenizer, settings))
      for i, row in enumerate(rows)
    ],
    num_truncated=teaching.count(told, "was_truncated"),
    num_without_room=teaching.count(told, "is_without_room"),
    num_feedback=teaching.count(told, "has_feedback"),
    num_sibling=teaching.count(told, "has_sibling"),
    num_reference=teaching.count(told, "has_reference"),
    teacher_prompt_ids=teacher_ids[:, 0],
    teacher_prompt_mask=teacher_mask[:, 0],
  )
  if settings.num_turns > 1:
    batch = _by_turn(batch, experience, teacher_ids, teacher_mask, has_prompt)
    return batch, stats
  # Split after the stats are made, because the probe samples from whole
  # prompts.
  prompts = [row[0] for row in rows]
  batch = _with_shared_prefixes(batch, prompts, tokenizer.pad_id, settings)
  return batch, stats


def _as_text(
  prompts: Sequence[Sequence[int] | None], tokenizer: Tokenizer
) -> str | None:
  """Returns a sample's teacher prompts to read; None if it has none."""
  texts = {
    number: tokenizer.decode(ids, skip_special=False)
    for number, ids in enumerate(prompts, start=1)
    if ids is not None
  }
  if len(prompts) == 1 or not texts:
    return texts.get(1)
  return "\n\n".join(f"(turn {n})\n{text}" for n, text in texts.items())


def _by_turn(
  batch: TrainBatch,
  experience: Experience,
  teacher_ids: np.ndarray,
  teacher_mask: np.ndarray,
  has_prompt: np.ndarray,
) -> TrainBatch:
  """Returns the batch with a teacher's prompt for each turn.

  Args:
    batch: has the prompts of first turns.
    experience: whose turns they are.
    teacher_ids, teacher_mask: prompts of all turns. Shape `[B, K, S']`.
    has_prompt: True if the turn has one. Shape `[B, K]`.
  """
  numbers = experience.turn_numbers
  is_taught = np.take_along_axis(has_prompt, numbers, axis=1)
  return dataclasses.replace(
    batch,
    turn_numbers=np.where(is_taught, numbers, -1).astype(np.int32),
    later_prompt_ids=teacher_ids[:, 1:],
    later_prompt_mask=teacher_mask[:, 1:],
  )


def from_demonstrations(
  demonstrations: Sequence[Demonstration],
  tokenizer: Tokenizer,
  *,
  max_prompt_length: int,
  max_completion_length: int,
) -> tuple[TrainBatch, BatchStats]:
  """Builds a supervised batch.

  A prompt ends with the demonstration's prefix, a completion with an end token.

  Args:
    demonstrations: one for each sequence.
    tokenizer: of the policy.
    max_prompt_length: S.
    max_completion_length: T.

  Raises:
    ValueError: a prompt or a solution is longer than its limit.
  """
  prompts, completions = zip(
    *(data_demonstrations.encode(d, tokenizer) for d in demonstrations),
    strict=True,
  )
  for name, rows, limit in (
    ("prompt", prompts, max_prompt_length),
    ("completion", completions, max_completion_length),
  ):
    for demonstration, row in zip(demonstrations, rows, strict=True):
      if len(row) > limit:
        raise ValueError(
          f"data.train: row {demonstration.index + 1}: its {name} has "
          f"{len(row)} tokens; raise rollout.max_{name}_length={limit}"
        )
  pad_id = tokenizer.pad_id
  prompt_ids, prompt_mask = padding.pad_left(prompts, max_prompt_length, pad_id)
  ids, mask = padding.pad_right(completions, max_completion_length, pad_id)
  nothing = np.zeros((len(prompts), 0), np.int32)
  batch = TrainBatch(
    prompt_ids=prompt_ids,
    prompt_mask=prompt_mask,
    teacher_prompt_ids=nothing,
    teacher_prompt_mask=nothing,
    completion_ids=ids,
    completion_mask=mask,
    sample_mask=np.ones(len(prompts), np.int32),
    rewards=np.zeros(len(prompts), np.float32),
    old_log_probs=np.zeros(ids.shape, np.float32),
  )
  return batch, BatchStats(teacher_prompts=[])


def _batch(
  experience: Experience,
  teacher_ids: np.ndarray,
  teacher_mask: np.ndarray,
  sample_mask: np.ndarray,
) -> TrainBatch:
  rollout, group_size = experience.rollout, experience.group_size
  # No objective may learn from a token of a sample that was not judged.
  is_judged = experience.is_judged.astype(np.int32)[:, None]
  own = rollout.student_mask
  return TrainBatch(
    # A rollout has one prompt for each problem, a batch one for each sample.
    prompt_ids=np.repeat(rollout.prompt_ids, group_size, axis=0),
    prompt_mask=np.repeat(rollout.prompt_mask, group_size, axis=0),
    teacher_prompt_ids=teacher_ids,
    teacher_prompt_mask=teacher_mask,
    completion_ids=rollout.completion_ids,
    completion_mask=rollout.completion_mask * is_judged,
    sample_mask=sample_mask,
    rewards=_rewards(experience).astype(np.float32),
    old_log_probs=np.asarray(rollout.log_probs, np.float32),
    student_mask=own if own is None else own * is_judged,
  )


def _teacher_index(experience: Experience, names: Sequence[str]) -> np.ndarray:
  """Returns the number of each sample's teacher. Shape `[B]`."""
  numbers = [names.index(problem.teacher) for problem in experience.problems]
  return np.repeat(np.asarray(numbers, np.int32), experience.group_size)


def _rewards(experience: Experience) -> np.ndarray:
  """Returns the reward of each sample. Shape `[B]`.

  A sample that was not judged gets the mean of its group's others. So it is no
  better and no worse, and the differences of the others stay: their advantages
  are those of a group without it, up to a common factor if advantages are
  leave-one-out.
  """
  rewards = experience.rewards
  is_judged = experience.is_judged.reshape(rewards.shape)
  if is_judged.all():
    return rewards.reshape(-1)
  sums = np.where(is_judged, rewards, 0).sum(axis=1, keepdims=True)
  counts = is_judged.sum(axis=1, keepdims=True)
  return np.where(is_judged, rewards, sums / np.maximum(counts, 1)).reshape(-1)


def _with_shared_prefixes(
  batch: TrainBatch,
  rows: Sequence[Sequence[int] | None],
  pad_id: int,
  settings: TeacherSettings,
) -> TrainBatch:
  """Returns the batch with prefixes split off if that saves tokens."""
  if settings.num_sharing == 1:
    return batch
  split = shared_prefixes.split(
    rows,
    num_sharing=settings.num_sharing,
    max_prefix_length=settings.max_prefix_length,
    max_prompt_length=settings.max_prompt_length,
    pad_id=pad_id,
  )
  if split is None:
    return batch
  return dataclasses.replace(
    batch,
    teacher_prefix_ids=split.prefix_ids,
    teacher_prefix_mask=split.prefix_mask,
    teacher_prompt_ids=split.ids,
    teacher_prompt_mask=split.mask,
  )
