"""Computes what an objective makes of each token, for people to look at.

Nothing here is learned from, and no step waits for it but those whose samples a
run writes down.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from distil_jax.objectives.base import Objective, teacher_mask
from distil_jax.ops import credit as credit_lib
from distil_jax.training import train_step
from distil_jax.training.train_state import TrainState
from distil_jax.types import TrainBatch

# The teacher's first choices that a reader wants to see.
NUM_CHOICES = 5
# Names in the record of a sample, by those of the arrays.
_NAMES = {
  "costs": "cost",
  "future_costs": "future_cost",
  "score_weights": "score_weight",
  "log_probs": "log_prob",
  "teacher_log_probs": "teacher_log_prob",
}


def of_batch(
  params: Any,
  teacher_params: Any,
  batch: TrainBatch,
  *,
  objective: Objective,
  num_slices: int = 1,
  choose_fn: Callable[..., Any] | None = None,
) -> dict[str, jax.Array]:
  """Returns what an objective with a teacher makes of a batch.

  Args:
    params: the student's.
    teacher_params: the teacher's.
    batch: of one update, with the teacher's lists if it is known by lists.
    objective: from `build_objective`.
    num_slices: the networks read so many parts one after another; the result
      does not depend on it.
    choose_fn: `(params, teacher_params, slice, keys) -> TeacherLists`, the
      teacher's most probable tokens; None leaves them out.

  Returns:
    `log_probs` and `teacher_log_probs` of the tokens, `costs` that they
    minimise and those that credit carries, `carried`, and behind the gate of
    the teacher's entropy `charged`; with future credit also `future_costs` and
    `score_weights`. Nats, shape `[B, T]` each. With
    `choose_fn` also `choices` and their `choice_log_probs`, `[B, T, C]`.
  """
  prepared = objective.prepare_fn(batch)
  # The loss is bound to these settings, and nothing else computes its costs.
  loss_fn: Any = objective.loss_fn
  settings = loss_fn.keywords["settings"]

  def read(rows: TrainBatch) -> dict[str, jax.Array]:
    source = settings.compare_fn(params, teacher_params, rows)
    statistics = source.statistics()
    carried = settings.costs_fn(statistics, teacher_mask(rows))
    found = {
      "log_probs": statistics.log_probs,
      "teacher_log_probs": statistics.teacher_log_probs,
      "costs": statistics.costs,
      "carried": carried,
      "charged": settings.gated(carried, statistics),
    }
    if choose_fn is not None:
      lists = choose_fn(params, teacher_params, rows, None)
      found |= {"choices": lists.ids, "choice_log_probs": lists.log_probs}
    return found

  # One slice after another, so that the activations of one are in memory.
  slices = jax.lax.map(read, train_step.cut(prepared, num_slices))
  found = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), slices)
  mask, charged = teacher_mask(prepared), found["charged"]
  scores = future = None
  if objective.credit_fn is not None:
    scores, future = objective.credit_fn.score_fn(charged, mask)
  elif settings.score_fn is not None:
    nothing = credit_lib.nothing_later(mask.shape[0], charged.dtype)
    scores, future, _ = settings.score_fn(charged, mask, nothing)
  if scores is not None:
    found |= {"score_weights": scores, "future_costs": future}
  return found


def of_step(
  state: TrainState,
  batch: TrainBatch,
  rows: jax.Array,
  teacher_params: Any = None,
  *,
  objective: Objective,
  num_mini_batches: int,
  num_micro_batches: int,
  choose_fn: Callable[..., Any] | None,
) -> dict[str, jax.Array]:
  """Returns `of_batch` of some rows of a step's batch, before its updates.

  Args:
    state: before the step.
    batch: of the whole step, on the devices.
    rows: numbers of the rows to return. Shape `[n]`.
    teacher_params: as for `train_step.train_step`.
    objective: as for `train_step.train_step`.
    num_mini_batches: as for `train_step.train_step`.
    num_micro_batches: as for `train_step.train_step`.
    choose_fn: as for `of_batch`.
  """
  params = state.student_params
  if state.teacher_params is not None:
    own = state.whole(state.teacher_params)
    teacher_params = train_step.with_own(teacher_params, own)
  teacher_params = train_step.with_own(teacher_params, params)
  batch = train_step.with_teacher_lists(
    params,
    teacher_params,
    batch,
    train_step.teacher_key(state),
    ask_fn=objective.ask_fn,
    num_slices=num_mini_batches * num_micro_batches,
  )
  found = jax.lax.map(
    lambda update: of_batch(
      params,
      teacher_params,
      update,
      objective=objective,
      num_slices=num_micro_batches,
      choose_fn=choose_fn,
    ),
    train_step.cut(batch, num_mini_batches),
  )
  found["mask"] = teacher_mask(batch)[None]
  return {name: x.reshape(-1, *x.shape[2:])[rows] for name, x in found.items()}


def records(
  found: Mapping[str, np.ndarray],
  ids: np.ndarray,
  mask: np.ndarray,
  decode: Callable[[Sequence[int]], str],
) -> list[dict[str, list[Any]]]:
  """Returns lists by name for each row, an entry for each of its tokens.

  Args:
    found: from `of_step`. Shape `[n, T, ...]` each; `mask` is 1 where there is
      something to say of a token.
    ids: the completions. Shape `[n, T]`.
    mask: 1 where a completion has a token. Shape `[n, T]`.
    decode: turns ids into text.

  Returns:
    `text` and values in nats; None for a token that no teacher judges.
  """
  return [
    _record(found, row, ids[row][mask[row] == 1], decode)
    for row in range(len(ids))
  ]


def _record(found, row, ids, decode) -> dict[str, list[Any]]:
  count = len(ids)
  is_judged = found["mask"][row, :count] == 1
  record: dict[str, list[Any]] = {"text": texts(ids.tolist(), decode)}
  for name, short in _NAMES.items():
    if name in found:
      values = found[name][row, :count].tolist()
      record[short] = [
        float(f"{x:.4g}") if judged and math.isfinite(x) else None
        for x, judged in zip(values, is_judged, strict=True)
      ]
  if "choices" in found:
    record["teacher_choices"] = [
      [
        (decode([token]), float(f"{math.exp(log_prob):.4g}"))
        for token, log_prob in zip(
          found["choices"][row, t].tolist(),
          found["choice_log_probs"][row, t].tolist(),
          strict=True,
        )
      ]
      if is_judged[t]
      else None
      for t in range(count)
    ]
  return record


def texts(
  ids: Sequence[int], decode: Callable[[Sequence[int]], str]
) -> list[str]:
  """Returns the text of each token.

  A sign whose bytes are spread over several tokens stands at the last of them,
  and the others are empty.
  """
  found, waiting = [], []
  for token in ids:
    waiting.append(token)
    text = decode(waiting)
    # A byte sequence that is not complete is shown by this sign. No sign has
    # more than four bytes, so a longer wait is for nothing.
    if text.endswith("\ufffd") and len(waiting) < 4:
      found.append("")
      continue
    found.append(text)
    waiting = []
  if waiting:
    found[-1] = decode(waiting)
  return found
