"""Metrics of a training step."""

import collections
import math
from collections.abc import Mapping

from distil_jax.distributed import collectives
from distil_jax.training import batch_builder
from distil_jax.training.logging import rollout_pages
from distil_jax.training.rollouts.experience import Experience
from distil_jax.training.teacher_guard import GuardState
from distil_jax.types import Status, StopReason

# Of what is counted about critiques, shares of all completions.
_OF_ALL = ("asked", "no_room")


class MismatchWatch:
  """Says when the sampler is too far from training, and seldom again.

  A run that is resumed begins anew, and may say it once more.
  """

  def __init__(self, limit: float | None):
    """Waits for the limit, nats a token; None: for nothing."""
    self._limit = limit
    self._next = math.inf if limit is None else limit

  def warning(self, step: int, metrics: Mapping[str, float]) -> str | None:
    """What to tell of a step, the first time and at each doubling.

    Args:
      step: counted from 1.
      metrics: of the step; nothing was sampled where they have no mismatch.
    """
    mean = metrics.get("mismatch/mean", 0.0)
    if math.isnan(mean):
      mean = math.inf  # no number is no agreement
    if mean <= self._next:
      return None
    self._next = 2 * mean
    return (
      f"step {step}: the log-probabilities that the sampler recorded are "
      f"{mean:.2g} nats a token from those of the training step, the largest "
      f"{metrics['mismatch/max']:.2g}, under the same parameters "
      f"(logging.mismatch_limit={self._limit}): the gradient is that of "
      "another policy than the one that sampled, and runs have collapsed by "
      "it. If it is rounding, rollout.cache_dtype=float32 or "
      "model.compute_dtype=float32 takes it away; if it stays, attention of "
      "the two passes differs. rollout.temperature, top_k, top_p and "
      "min_p have no part in it"
    )


def guard_metrics(state: GuardState | None) -> dict[str, float]:
  """What is known of a guarded teacher; nothing before the first look."""
  if state is None or not int(state.num_looks):
    return {}
  return {
    "teacher/accuracy": float(state.accuracy),
    "teacher/guard": float(state.is_holding),
  }


def experience_metrics(
  experience: Experience, lesson: batch_builder.Lesson
) -> dict[str, float]:
  """Of all completions of the step, of all processes.

  Means; under `status/` and `signal/` counts.
  """
  statuses = collections.Counter(v.status for v in experience.verdicts)
  num_signals = float(lesson.batch.sample_mask.sum())
  lesson_counts = {
    "signal_fraction": num_signals,
    "teacher/truncated": lesson.num_truncated,
    "teacher/no_room": lesson.num_without_room,
  }
  counts = {
    **{f"status/{status}": statuses[status] for status in Status},
    "signal/feedback": lesson.num_feedback,
    "signal/sibling": lesson.num_sibling,
    "signal/reference": lesson.num_reference,
    "signal/none": len(experience.verdicts) - num_signals,
  }
  sums = {
    "reward": float(experience.rewards.sum()),
    "completion_length": float(experience.lengths.sum()),
    "cut_off": float(experience.is_cut_off.sum()),
    **lesson_counts,
    **{f"verdict/{status}": statuses[status] for status in Status},
    **{k: float(x.sum()) for k, x in experience.tool_counts.items()},
    "count": len(experience.verdicts),
  }
  sums = collectives.global_sums(sums | counts)
  count = sums.pop("count")
  values = {
    name: float(total) if name in counts else total / count
    for name, total in sums.items()
  }
  # All wait for the last.
  waited = collectives.global_max(round(1000 * experience.judging_seconds))
  values["time/judging_seconds"] = waited / 1000
  usage = experience.usage
  if usage is None:
    return values
  # Of all processes already.
  return values | {
    "rollout/slot_efficiency": usage.slot_efficiency,
    "rollout/programs": float(usage.num_programs),
    "rollout/cache_megabytes": usage.cache_bytes / 1e6,
  }


def critique_metrics(experience: Experience) -> dict[str, float]:
  """Of the critiques of the step, of all processes; nothing without a critic.

  Of all completions, the shares that were criticised and that could not be for
  lack of room. Of the critiques, the shares that were shown part of a
  completion, that could not be read and that hit their limit, and the tokens.
  """
  if experience.critiques is None:
    return {}
  counts = {**experience.critiques, "count": len(experience.verdicts)}
  sums = collectives.global_sums(counts)
  num_asked = max(sums["asked"], 1.0)
  values = {
    name: sums[name] / (sums["count"] if name in _OF_ALL else num_asked)
    for name in experience.critiques
  }
  values["length"] = values.pop("tokens")
  return {f"critique/{name}": value for name, value in values.items()}


def samples(
  experience: Experience, lesson: batch_builder.Lesson, count: int
) -> list[rollout_pages.Sample]:
  """A few completions of a step, to be read: of as many problems as can be."""
  num_rows = len(experience.completions)
  count = min(count, num_rows)
  return [
    rollout_pages.Sample(
      problem=experience.problems[i // experience.group_size],
      completion=experience.completions[i],
      num_tokens=int(experience.lengths[i]),
      stop_reason=StopReason(int(experience.rollout.stop_reasons[i])),
      verdict=experience.verdicts[i],
      teacher_prompt=lesson.teacher_prompts[i],
      earlier=experience.earlier[i] if experience.earlier else (),
    )
    # From all over the batch, whose groups stand in a row.
    for i in (place * num_rows // count for place in range(count))
  ]
