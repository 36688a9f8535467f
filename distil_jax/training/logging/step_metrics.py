"""Metrics of a training step."""

import collections
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from distil_jax.distributed import collectives
from distil_jax.training.logging import rollout_pages
from distil_jax.training.rollouts.experience import Experience
from distil_jax.training.teacher_guard import GuardState
from distil_jax.types import BatchStats, Status, StopReason, TrainBatch

# Metrics of each data set of a mixture, as `reward/NAME`.
OF_DATA_SETS = (
  "reward",
  "completion_length",
  "cut_off",
  "signal_fraction",
  "problems",
)

# These counts about critiques are divided by all completions, the others by
# the critiques.
_SHARES_OF_COMPLETIONS = ("asked", "no_room")


class MismatchWatch:
  """Warns if the sampler is far from training, once for each doubling.

  A run that is resumed starts with a new watch and may warn once more.
  """

  def __init__(self, limit: float | None):
    """Sets the limit, nats per token; None never warns."""
    self._limit = limit
    self._next = math.inf if limit is None else limit

  def warning(self, step: int, metrics: Mapping[str, float]) -> str | None:
    """Returns the warning of a step, or None.

    Args:
      step: the training step, counted from 1.
      metrics: the step's metrics; without a mismatch nothing was sampled.
    """
    mean = metrics.get("mismatch/mean", 0.0)
    if math.isnan(mean):
      mean = math.inf  # NaN is no agreement, and must pass any limit
    if mean <= self._next:
      return None
    self._next = 2 * mean
    return (
      f"step {step}: the log-probabilities that the sampler recorded differ "
      f"from those of the training step by {mean:.2g} nats per token on "
      f"average and by {metrics['mismatch/max']:.2g} at most, under the same "
      f"parameters; the limit is logging.mismatch_limit={self._limit}. The "
      "gradient is then not that of the policy that sampled, and runs have "
      "collapsed for this reason. If rounding is the cause, "
      "rollout.cache_dtype=float32 or model.compute_dtype=float32 removes the "
      "difference; if it stays, the attention of the two passes differs. "
      "rollout.temperature, top_k, top_p and min_p do not cause it"
    )


def batch_metrics(
  experience: Experience | None,
  batch: TrainBatch,
  stats: BatchStats,
  guard: GuardState | None,
  num_sequences: int,
) -> dict[str, float]:
  """Returns the metrics of what a step learned from, over all processes.

  Args:
    experience: sampled and judged completions; None for demonstrations, whose
      length is all that can be said.
    batch: this process's part of the batch, on the host.
    stats: says how the batch came about.
    guard: the state of the teacher's guard.
    num_sequences: sequences of the step, of all processes.
  """
  if experience is not None:
    return (
      experience_metrics(experience, batch, stats)
      | critique_metrics(experience)
      | guard_metrics(guard)
    )
  mask = batch.completion_mask
  sums = collectives.global_sums({"tokens": float(mask.sum())})
  return {"completion_length": sums["tokens"] / num_sequences}


def guard_metrics(state: GuardState | None) -> dict[str, float]:
  """Returns a guarded teacher's accuracy; empty before the first look."""
  if state is None or not int(state.num_looks):
    return {}
  return {
    "teacher/accuracy": float(state.accuracy),
    "teacher/guard": float(state.is_holding),
  }


def experience_metrics(
  experience: Experience, batch: TrainBatch, stats: BatchStats
) -> dict[str, float]:
  """Returns metrics of all completions of the step, of all processes.

  They are means over completions; those under `status/` and `signal/` are
  counts.
  """
  statuses = collections.Counter(v.status for v in experience.verdicts)
  num_signals = float(batch.sample_mask.sum())
  signal_counts = {
    "signal_fraction": num_signals,
    "teacher/truncated": stats.num_truncated,
    "teacher/no_room": stats.num_without_room,
  }
  server_counts = {}
  if stats.server_counts is not None:
    signal_counts["teacher/unanswered"] = stats.server_counts["unanswered"]
    server_counts = {
      "teacher/requests": stats.server_counts["requests"],
      "teacher/retries": stats.server_counts["retries"],
    }
  counts = {
    **{f"status/{status}": statuses[status] for status in Status},
    "signal/feedback": stats.num_feedback,
    "signal/sibling": stats.num_sibling,
    "signal/reference": stats.num_reference,
    "signal/none": len(experience.verdicts) - num_signals,
    **server_counts,
  }
  sums = {
    "reward": float(experience.rewards.sum()),
    "completion_length": float(experience.lengths.sum()),
    "cut_off": float(experience.is_cut_off.sum()),
    **signal_counts,
    **{f"verdict/{status}": statuses[status] for status in Status},
    **{k: float(x.sum()) for k, x in experience.episode_values.items()},
    "count": len(experience.verdicts),
  }
  if experience.group_size > 1:
    # A share of groups, so each of them counts for all of its completions.
    is_flat = np.ptp(experience.rewards, axis=1) == 0
    sums["frac_reward_zero_std"] = is_flat.sum() * experience.group_size

  # One exchange for all metrics: each waits for every process.
  of_sets = _data_set_sums(experience, batch)
  found = collectives.global_sums(sums | counts | of_sets)
  count = found["count"]
  values = {name: found[name] / count for name in sums if name != "count"}
  values |= {name: float(found[name]) for name in counts}
  values |= _data_set_metrics(found, experience.group_size)
  values |= experience.refills or {}
  # All processes wait for the slowest, so it is the one to report.
  waited = collectives.global_max(round(1000 * experience.judging_seconds))
  values["time/judging_seconds"] = waited / 1000
  usage = experience.usage
  if usage is None:
    return values
  # These numbers cover all processes already.
  return values | {
    "rollout/slot_efficiency": usage.slot_efficiency,
    "rollout/programs": float(usage.num_programs),
    "rollout/cache_megabytes": usage.cache_bytes / 1e6,
  }


def _data_set_sums(
  experience: Experience, batch: TrainBatch
) -> dict[str, float]:
  """Returns sums over this process's completions of each data set."""
  size = experience.group_size
  of_rows = {
    "reward": experience.rewards.reshape(-1),
    "completion_length": experience.lengths,
    "cut_off": experience.is_cut_off,
    "signal_fraction": batch.sample_mask,
  }
  sums = collections.defaultdict(float)
  for i, problem in enumerate(experience.problems):
    if problem.source:
      sums[f"problems/{problem.source}"] += 1
      for name, values in of_rows.items():
        total = values[i * size : (i + 1) * size].sum()
        sums[f"{name}/{problem.source}"] += float(total)
  return sums


def _data_set_metrics(
  sums: Mapping[str, float], group_size: int
) -> dict[str, float]:
  """Returns means over completions, and the problems, of each data set."""
  values = {}
  for name, num_problems in sums.items():
    kind, _, source = name.partition("/")
    if kind != "problems":
      continue
    values[name] = num_problems
    for metric in OF_DATA_SETS[:-1]:
      key = f"{metric}/{source}"
      values[key] = sums[key] / (num_problems * group_size)
  return values


def critique_metrics(experience: Experience) -> dict[str, float]:
  """Returns metrics of the step's critiques, of all processes.

  `asked` and `no_room` are the shares of all completions that were criticised
  and that could not be for lack of room. The others are means over critiques:
  the shares that were shown only part of a completion, that could not be read
  and that hit their limit, and the length in tokens. Without a critic there
  are none.
  """
  if experience.critiques is None:
    return {}
  counts = {**experience.critiques, "count": len(experience.verdicts)}
  sums = collectives.global_sums(counts)
  # A step without critiques has means of 0, not 0 / 0.
  num_asked = max(sums["asked"], 1.0)
  values = {
    name: sums[name]
    / (sums["count"] if name in _SHARES_OF_COMPLETIONS else num_asked)
    for name in experience.critiques
  }
  values["length"] = values.pop("tokens")
  return {f"critique/{name}": value for name, value in values.items()}


def page_rows(num_rows: int, count: int) -> list[int]:
  """Returns the rows whose samples a page shows, at most `count`."""
  count = min(count, num_rows)
  # Even steps through the batch, in which the members of a group are next to
  # each other.
  return [number * num_rows // count for number in range(count)]


def samples(
  experience: Experience,
  stats: BatchStats,
  count: int,
  tokens: Sequence[Mapping[str, Sequence[Any]]] = (),
) -> list[rollout_pages.Sample]:
  """Returns a few completions to read, of as many problems as possible.

  Args:
    experience: judged completions.
    stats: says how the batch came about.
    count: completions at most.
    tokens: values of the tokens of each of them; empty if nobody knows them.
  """
  rows = page_rows(len(experience.completions), count)
  return [
    rollout_pages.Sample(
      problem=experience.problems[i // experience.group_size],
      completion=experience.completions[i],
      num_tokens=int(experience.lengths[i]),
      stop_reason=StopReason(int(experience.rollout.stop_reasons[i])),
      verdict=experience.verdicts[i],
      teacher_prompt=stats.teacher_prompts[i],
      earlier=experience.earlier[i] if experience.earlier else (),
      earlier_verdicts=experience.earlier_verdicts[i]
      if experience.earlier_verdicts
      else (),
      tokens=values,
    )
    for i, values in zip(rows, tokens or [{}] * len(rows), strict=True)
  ]
