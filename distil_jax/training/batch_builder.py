"""Builds the batch of a training step from experience or demonstrations."""

import collections
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from distil_jax.data import demonstrations as data_demonstrations
from distil_jax.data import padding, shared_prefixes, teacher_templates
from distil_jax.data import teacher_prompts as data_teacher_prompts
from distil_jax.data.teacher_templates import Template
from distil_jax.data.tokenizer import Tokenizer
from distil_jax.training.rollouts.experience import Experience
from distil_jax.types import BatchStats, Demonstration, Status, TrainBatch

SolutionSource = Literal["sibling", "reference", "sibling_or_reference", "none"]
FeedbackUse = Literal["when_no_solution", "always", "never"]


@dataclasses.dataclass(frozen=True)
class TeacherSettings:
  """Says what stands in the teacher's prompt; see `config.TeacherConfig`.

  Attributes:
    solution: which solution stands in the prompt.
    feedback: when the environment's feedback stands in the prompt.
    success_threshold: a reward from here on is a success.
    max_prompt_length: tokens of the prompt.
    template: the form of the prompt.
    num_sharing: prompts in a row whose common prefix is split off; 1 splits
      nothing.
    max_prefix_length: tokens of such a prefix.
    vocab_size: the number of tokens that the teacher knows; a sample with
      another, of a student's padded vocabulary, has no signal. None means
      that it knows all.
  """

  solution: SolutionSource
  feedback: FeedbackUse
  success_threshold: float
  max_prompt_length: int
  template: Template = teacher_templates.block
  num_sharing: int = 1
  max_prefix_length: int = 0
  vocab_size: int | None = None


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
  """

  tokenizer: Tokenizer
  teacher_tokenizer: Tokenizer
  teacher: TeacherSettings | None
  max_prompt_length: int
  max_completion_length: int
  ask: Callable[..., tuple[TrainBatch, BatchStats]] | None = None

  def __call__(
    self, problems: Sequence[Any], experience: Experience | None, step: int = 0
  ) -> tuple[TrainBatch, BatchStats]:
    """Returns the batch of a training step.

    Args:
      problems: this process's problems, or demonstrations.
      experience: their completions and verdicts; None for demonstrations.
      step: the training steps done before.
    """
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
  judge crashed, of which nothing is known.
  """
  group_size = experience.group_size
  rows, texts = [], []
  num_truncated = num_without_room = 0
  held = collections.Counter()
  for i in range(len(experience.completions)):
    solution, source = _solution(experience, i, settings)
    feedback = _feedback(experience, i, solution, settings)
    has_content = bool(solution or feedback)
    if not has_content or not experience.is_judged[i]:
      rows.append(None)
      texts.append(None)
      continue
    fitted = data_teacher_prompts.fit_teacher_prompt(
      experience.problems[i // group_size],
      # Both may quote what the student wrote.
      solution=solution and tokenizer.escape_special_tokens(solution),
      feedback=feedback and tokenizer.escape_special_tokens(feedback),
      attempt=tokenizer.escape_special_tokens(experience.completions[i]),
      tokenizer=tokenizer,
      limit=settings.max_prompt_length,
      template=settings.template,
    )
    num_without_room += fitted is None
    num_truncated += fitted is not None and fitted.was_truncated
    held["feedback"] += fitted is not None and fitted.has_feedback
    held[source] += fitted is not None and fitted.has_solution
    rows.append(fitted and fitted.ids)
    texts.append(fitted and tokenizer.decode(fitted.ids, skip_special=False))
  # A masked row still passes through the network: one token stands in.
  teacher_ids, teacher_mask = padding.pad_left(
    [row or [tokenizer.pad_id] for row in rows],
    settings.max_prompt_length,
    tokenizer.pad_id,
  )
  has_signal = np.asarray([row is not None for row in rows], np.int32)
  has_signal *= _is_known(experience, settings.vocab_size)
  batch = _batch(experience, teacher_ids, teacher_mask, has_signal)
  stats = BatchStats(
    teacher_prompts=texts,
    num_truncated=num_truncated,
    num_without_room=num_without_room,
    num_feedback=held["feedback"],
    num_sibling=held["sibling"],
    num_reference=held["reference"],
    teacher_prompt_ids=teacher_ids,
    teacher_prompt_mask=teacher_mask,
  )
  # Split after the stats are made, because the probe samples from whole
  # prompts.
  batch = _with_shared_prefixes(batch, rows, tokenizer.pad_id, settings)
  return batch, stats


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


def _is_known(experience: Experience, vocab_size: int | None) -> np.ndarray:
  """Returns 1 for samples whose tokens the teacher knows. Shape `[B]`."""
  rollout = experience.rollout
  ids = np.where(rollout.completion_mask == 1, rollout.completion_ids, 0)
  limit = np.inf if vocab_size is None else vocab_size
  return np.asarray((ids < limit).all(axis=1), np.int32)


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


def _solution(
  experience: Experience, i: int, settings: TeacherSettings
) -> tuple[str | None, str]:
  """Returns a worked solution, and its source: sibling, reference or none."""
  problem, member = divmod(i, experience.group_size)
  if settings.solution in ("sibling", "sibling_or_reference"):
    start = problem * experience.group_size
    solution = data_teacher_prompts.choose_solution(
      experience.rewards[problem].tolist(),
      experience.completions[start : start + experience.group_size],
      member,
      threshold=settings.success_threshold,
    )
    if solution is not None:
      return solution, "sibling"
  if "reference" in settings.solution:
    return experience.problems[problem].solution, "reference"
  return None, "none"


def _feedback(
  experience: Experience,
  i: int,
  solution: str | None,
  settings: TeacherSettings,
) -> str | None:
  """Returns the feedback that stands in the teacher's prompt, if any does."""
  verdict = experience.verdicts[i]
  is_wanted = settings.feedback == "always" or (
    settings.feedback == "when_no_solution" and not solution
  )
  if not is_wanted or verdict.status == Status.CORRECT:
    return None
  return verdict.feedback
