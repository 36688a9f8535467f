"""From experience or demonstrations to the batch that an update learns from."""

import collections
import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np

from distil_jax.data import padding, shared_prefixes
from distil_jax.data import teacher_prompts as data_teacher_prompts
from distil_jax.data.tokenizer import Tokenizer
from distil_jax.training.rollouts.experience import Experience
from distil_jax.types import Array, Demonstration, Status, TrainBatch

SolutionSource = Literal["sibling", "reference", "sibling_or_reference", "none"]
FeedbackUse = Literal["when_no_solution", "always", "never"]


@dataclasses.dataclass(frozen=True)
class TeacherSettings:
  """What stands in the teacher's prompt; see `config.Teacher`.

  Attributes:
    num_sharing: prompts in a row whose common prefix is split off; 1: none.
    max_prefix_length: tokens of such a prefix.
  """

  solution: SolutionSource
  feedback: FeedbackUse
  success_threshold: float
  max_prompt_length: int
  num_sharing: int = 1
  max_prefix_length: int = 0


@dataclasses.dataclass(frozen=True)
class Lesson:
  """A batch for the update, on the host, and how it came about.

  Attributes:
    batch: NumPy arrays of this process's rows.
    teacher_prompts: as text, None where there is no signal. Length B; empty
      for demonstrations.
    num_truncated: teacher prompts whose solution or feedback was cut.
    num_without_room: samples that lost their signal because nothing fitted.
    num_feedback, num_sibling, num_reference: teacher prompts that hold the
      feedback, another sample's solution, the problem's own.
    teacher_prompt_ids, teacher_prompt_mask: whole, where the batch may have
      them split; None: there is no teacher. Shape `[B, S']`.
  """

  batch: TrainBatch
  teacher_prompts: list[str | None]
  num_truncated: int = 0
  num_without_room: int = 0
  num_feedback: int = 0
  num_sibling: int = 0
  num_reference: int = 0
  teacher_prompt_ids: Array = None
  teacher_prompt_mask: Array = None


def from_rewards(experience: Experience) -> Lesson:
  """What an objective without a teacher learns from: all that is judged."""
  count = len(experience.completions)
  nothing = np.zeros((count, 0), np.int32)
  is_judged = experience.is_judged.astype(np.int32)
  batch = _batch(experience, nothing, nothing, is_judged)
  return Lesson(batch=batch, teacher_prompts=[None] * count)


def from_experience(
  experience: Experience, tokenizer: Tokenizer, settings: TeacherSettings
) -> Lesson:
  """Builds each sample's teacher prompt from its group and its verdict.

  A sample without solution and feedback (a lone success, or a failure with
  nothing to say about it) has no signal and is masked out; and so is one whose
  judge crashed, of which nothing is known.
  """
  group_size = experience.group_size
  rows, texts = [], []
  num_truncated = num_without_room = 0
  held = collections.Counter()
  for i in range(len(experience.completions)):
    solution, source = _solution(experience, i, settings)
    feedback = _feedback(experience, i, solution, settings)
    is_told = bool(solution or feedback)
    if not is_told or not experience.is_judged[i]:
      rows.append(None)
      texts.append(None)
      continue
    fitted = data_teacher_prompts.fit_teacher_prompt(
      experience.problems[i // group_size],
      # Both may quote what the student wrote.
      solution=solution and tokenizer.disarmed(solution),
      feedback=feedback and tokenizer.disarmed(feedback),
      encode=tokenizer.encode_messages,
      encode_text=tokenizer.encode,
      decode=tokenizer.decode,
      limit=settings.max_prompt_length,
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
  batch = _batch(experience, teacher_ids, teacher_mask, has_signal)
  return Lesson(
    batch=_with_shared_prefixes(batch, rows, tokenizer.pad_id, settings),
    teacher_prompts=texts,
    num_truncated=num_truncated,
    num_without_room=num_without_room,
    num_feedback=held["feedback"],
    num_sibling=held["sibling"],
    num_reference=held["reference"],
    teacher_prompt_ids=teacher_ids,
    teacher_prompt_mask=teacher_mask,
  )


def from_demonstrations(
  demonstrations: Sequence[Demonstration],
  tokenizer: Tokenizer,
  *,
  max_prompt_length: int,
  max_completion_length: int,
) -> Lesson:
  """Prompts (with their prefix) and solutions (with an end token).

  Raises:
    ValueError: a prompt or a solution is longer than its limit.
  """
  heads = [
    tokenizer.encode_messages(d.messages) + tokenizer.encode(d.prefix)
    for d in demonstrations
  ]
  tails = [
    [*tokenizer.encode(d.solution), tokenizer.eos_ids[0]]
    for d in demonstrations
  ]
  for what, rows, limit in (
    ("prompt", heads, max_prompt_length),
    ("completion", tails, max_completion_length),
  ):
    for demonstration, row in zip(demonstrations, rows, strict=True):
      if len(row) > limit:
        raise ValueError(
          f"demonstration {demonstration.index}: its {what} has {len(row)} "
          f"tokens; raise rollout.max_{what}_length={limit}"
        )
  pad_id = tokenizer.pad_id
  prompt_ids, prompt_mask = padding.pad_left(heads, max_prompt_length, pad_id)
  ids, mask = padding.pad_right(tails, max_completion_length, pad_id)
  nothing = np.zeros((len(heads), 0), np.int32)
  batch = TrainBatch(
    prompt_ids=prompt_ids,
    prompt_mask=prompt_mask,
    teacher_prompt_ids=nothing,
    teacher_prompt_mask=nothing,
    completion_ids=ids,
    completion_mask=mask,
    sample_mask=np.ones(len(heads), np.int32),
    rewards=np.zeros(len(heads), np.float32),
    old_log_probs=np.zeros(ids.shape, np.float32),
  )
  return Lesson(batch=batch, teacher_prompts=[])


def _batch(
  experience: Experience,
  teacher_ids: np.ndarray,
  teacher_mask: np.ndarray,
  sample_mask: np.ndarray,
) -> TrainBatch:
  rollout, group_size = experience.rollout, experience.group_size
  # What is not judged has no token to learn from, by whatever objective.
  is_judged = experience.is_judged.astype(np.int32)[:, None]
  own = rollout.student_mask
  return TrainBatch(
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


def _rewards(experience: Experience) -> np.ndarray:
  """Of each sample; one that is not judged has the mean of its group's others.

  So it is no better and no worse, and the differences of the others stay: the
  advantages are those of the others alone, but for a common factor where it is
  not the mean of all members that they are counted from. Shape `[B]`.
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
  """The batch, its teacher's prompts split where that saves tokens."""
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
  """A worked solution, and whether it is a sibling's or the reference."""
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
  verdict = experience.verdicts[i]
  is_wanted = settings.feedback == "always" or (
    settings.feedback == "when_no_solution" and not solution
  )
  if not is_wanted or verdict.status == Status.CORRECT:
    return None
  return verdict.feedback
