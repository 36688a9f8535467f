"""Evaluates a policy on problems that it does not train on."""

import collections
import functools
import math
from collections.abc import Callable, Mapping, Sequence

import jax

from distil_jax.config.schema import Config
from distil_jax.distributed import collectives, process_group
from distil_jax.models import decoder
from distil_jax.training.logging.progress import Progress
from distil_jax.training.rollouts.rollout_worker import RolloutWorker
from distil_jax.training.rollouts.self_critique import SelfCritic
from distil_jax.types import Problem

# Shown while step 0 is evaluated.
BASE = "evaluating the base model"


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
  """Returns an unbiased estimate that at least one of k samples is right.

    1 − C(n − c, k) / C(n, k)

  See "Evaluating Large Language Models Trained on Code" (arXiv:2107.03374).

  Args:
    num_samples: n, the samples of a problem.
    num_correct: c, the correct ones among them.
    k: samples to choose, at most n.

  Raises:
    ValueError: k is not in 1..n.
  """
  if not 0 < k <= num_samples:
    raise ValueError(f"k={k} must be in 1..num_samples={num_samples}")
  wrong = math.comb(num_samples - num_correct, k)
  return 1.0 - wrong / math.comb(num_samples, k)


def evaluate(
  worker: RolloutWorker | SelfCritic,
  params: decoder.Params,
  problems: Sequence[Problem],
  key: jax.Array,
  *,
  num_problems: int,
  pass_at: Sequence[int],
  success_threshold: float,
  report: Callable[[int], None] = lambda num_done: None,
) -> dict[str, float]:
  """Samples completions of every problem and averages over problems.

  Args:
    worker: samples and judges; its group size G is the number of samples of
      each problem.
    params: the policy's parameters.
    problems: held-out problems; each process evaluates its part of a batch.
    key: the same key gives the same noise, so that two policies compare.
    num_problems: problems in one batch of all processes; the last batch is
      padded.
    pass_at: the values of k.
    success_threshold: the lowest reward of a success.
    report: called with the number of problems that all processes have done.

  Returns:
    `avg@G` (mean reward), `pass@k`, `completion_length` (tokens), `cut_off`
    (share that hit the limit), `verdict/…` (share of each status) and, with a
    tool, `tools/…`, or with an environment that replies, `conversation/…` (per
    episode, see `Experience.episode_values`).
  """
  group_size = worker.group_size
  totals: dict[str, float] = collections.defaultdict(float)
  mine = collectives.block(num_problems)
  for start in range(0, len(problems), num_problems):
    batch = list(problems[start : start + num_problems])
    end = start + len(batch)
    # All batches have one size, so that one program serves them.
    batch += [problems[0]] * (num_problems - len(batch))
    # The problems of this process's part that are not padding.
    num_real = min(max(end - start - mine.start, 0), mine.stop - mine.start)
    done = functools.partial(
      _report, report, start=start, end=end, rows=group_size
    )
    experience = worker(params, batch[mine], key, report=done)
    is_real = slice(0, num_real * group_size)
    is_right = experience.rewards[:num_real] >= success_threshold
    # Counts are integers, whose sum does not depend on the order.
    for num_correct in is_right.sum(axis=1).tolist():
      totals[f"correct/{num_correct}"] += 1
    totals["problems"] += num_real
    totals["rewards"] += float(experience.rewards[:num_real].sum())
    totals["tokens"] += int(experience.lengths[is_real].sum())
    totals["cut_off"] += int(experience.is_cut_off[is_real].sum())
    for name, numbers in experience.episode_values.items():
      totals[name] += float(numbers[is_real].sum())
    for verdict in experience.verdicts[is_real]:
      totals[f"verdict/{verdict.status}"] += 1
  return _averages(collectives.global_sums(totals), group_size, pass_at)


def evaluate_data_sets(
  config: Config,
  workers: Mapping[str, RolloutWorker | SelfCritic],
  params: decoder.Params,
  problems: Mapping[str, Sequence[Problem]],
  key: jax.Array,
  *,
  progress: Progress,
  text: str,
) -> dict[str, float]:
  """Evaluates a policy on each data set, with the set's own sampling.

  Args:
    config: the run's settings.
    workers: sample and judge, by data set.
    params: the policy's parameters.
    problems: held-out problems by data set.
    key: the same key gives the same noise.
    progress: shows how many problems are done.
    text: what the progress line says.

  Returns:
    What `evaluate` returns. Of a mixture it is the mean over the sets, each of
    which counts the same, and each set's own numbers follow as `NAME/…`.
  """
  found = {}
  for name, held_out in problems.items():
    sampling = config.data_sets[name].evaluation
    assert sampling is not None, "a set that is not evaluated has no problems"
    shown = f"{text}: {name}" if name else text
    with progress.stage(shown, len(held_out)) as report:
      found[name] = evaluate(
        workers[name],
        params,
        held_out,
        key,
        num_problems=config.evaluation.num_problems,
        pass_at=sampling.pass_at,
        success_threshold=config.teacher.success_threshold,
        report=process_group.checked(report),
      )
  if not config.mixture:
    return found[""]
  values = mean_of_data_sets(found, config.evaluation.num_samples)
  for name, of_set in found.items():
    values |= {f"{name}/{metric}": x for metric, x in of_set.items()}
  return values


def mean_of_data_sets(
  found: Mapping[str, Mapping[str, float]], num_samples: int
) -> dict[str, float]:
  """Returns the mean over data sets of what `evaluate` says of each.

  Args:
    found: the numbers of each data set, at least one.
    num_samples: `avg@num_samples` is the name of the mean reward, for any
      number of samples estimates the same. `pass@k` is there if all sets have
      it.
  """
  named = [
    {
      f"avg@{num_samples}" if name.startswith("avg@") else name: value
      for name, value in values.items()
    }
    for values in found.values()
  ]
  # A set of which no completion had some status lacks that share: it is 0.
  return {
    name: sum(values.get(name, 0.0) for values in named) / len(named)
    for name in dict.fromkeys(name for values in named for name in values)
    if name.startswith(("tools/", "verdict/"))
    or all(name in values for values in named)
  }


def _report(
  report: Callable[[int], None],
  num_tokens: int,
  num_done: int,
  *,
  start: int,
  end: int,
  rows: int,
) -> None:
  """Reports in problems what the engine counts in rows."""
  del num_tokens
  report(min(start + num_done // rows, end))


def _averages(
  totals: dict[str, float], group_size: int, pass_at: Sequence[int]
) -> dict[str, float]:
  """Returns the averages of sums over all processes."""
  num_problems = totals["problems"]
  num_samples = num_problems * group_size
  values = {f"avg@{group_size}": totals["rewards"] / num_samples}
  for k in pass_at:
    # How many problems had how many successes is all that the estimate needs,
    # and can be summed over processes.
    passed = sum(
      totals.get(f"correct/{num_correct}", 0.0)
      * pass_at_k(group_size, num_correct, k)
      for num_correct in range(group_size + 1)
    )
    values[f"pass@{k}"] = passed / num_problems
  values["completion_length"] = totals["tokens"] / num_samples
  values["cut_off"] = totals["cut_off"] / num_samples
  values |= {
    name: total / num_samples
    for name, total in sorted(totals.items())
    if name.startswith(("conversation/", "tools/", "verdict/"))
  }
  return values
