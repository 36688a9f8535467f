"""Makes a training step from micro-batches of sequences of similar length.

The host drives it: the gradient of each micro-batch is a program of its own,
one for each size. What couples sequences is found over the whole update, as in
`train_step`, whose result it has.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from distil_jax.distributed import collectives
from distil_jax.models import sharding
from distil_jax.objectives import losses
from distil_jax.objectives.base import Objective, teacher_mask, with_lists
from distil_jax.training import micro_batches, train_step
from distil_jax.training.micro_batches import MicroBatch
from distil_jax.training.train_state import TrainState
from distil_jax.types import TrainBatch

# What `prepare_fn` and the scores of credit do not read. It is most of a batch,
# and is not put onto the devices twice.
_UNREAD = (
  "teacher_candidate_ids",
  "teacher_candidate_log_probs",
  "teacher_log_probs",
  "teacher_weights",
  "later_prompt_ids",
  "later_prompt_mask",
)
_PROMPTS = (
  *("prompt_ids", "prompt_mask"),
  *("teacher_prompt_ids", "teacher_prompt_mask"),
)


@dataclasses.dataclass(frozen=True)
class Update:
  """Holds the part of a batch that one update learns from.

  Attributes:
    small: all rows without prompts and lists, on the devices.
    micros: which rows are learned from at once.
    placed: these rows, on the devices.
    sums: metrics of which each sequence has one value.
    width: T of all rows.
  """

  small: TrainBatch
  micros: list[MicroBatch]
  placed: list[TrainBatch]
  sums: Any
  width: int


class LengthStep:
  """Makes training steps, see `train_step.train_step`."""

  def __init__(
    self,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    shardings: TrainState,
    sizes: micro_batches.Sizes,
    *,
    num_mini_batches: int = 1,
    ema_rate: float | None = None,
    teacher_params: Any = None,
  ):
    """Takes the parts; compiles nothing yet.

    Args:
      objective: from `build_objective`, for a batch whose groups are split.
      optimizer: from `make_optimizer`.
      shardings: of the state.
      sizes: of micro-batches.
      num_mini_batches: see `train_step.train_step`.
      ema_rate: see `train_step.train_step`.
      teacher_params: see `train_step.train_step`.
    """
    mesh = shardings.step.mesh
    by_row, whole = sharding.sharding(mesh, "batch"), sharding.sharding(mesh)
    self._objective = objective
    self._sizes = sizes
    self._num_mini_batches = num_mini_batches
    self.teacher_params = teacher_params
    self._put = functools.partial(sharding.put_batch, mesh)
    self._totals = totals_shardings(shardings)
    bind = functools.partial(functools.partial, objective=objective)
    # Without shardings XLA might choose others for a result, with which the
    # next program would have to be compiled again.
    self._prepare_fn = jax.jit(bind(_prepare), out_shardings=(by_row, whole))
    self._ask_fn = jax.jit(bind(_ask), out_shardings=by_row)
    self._costs_fn = jax.jit(bind(_costs), out_shardings=by_row)
    self._score_fn = jax.jit(bind(_scores), out_shardings=by_row)
    self._accumulate_fn = jax.jit(
      bind(accumulate), donate_argnums=0, out_shardings=self._totals
    )
    self._zeros_fn = None
    carried = (shardings.params, shardings.opt_state)
    advance = functools.partial(_advance, optimizer=optimizer)
    # The state before a step is kept until all its updates are done, because
    # one that is not finite leaves it as it was.
    self._first_fn = jax.jit(advance, out_shardings=(carried, whole))
    self._next_fn = jax.jit(
      advance, donate_argnums=0, out_shardings=(carried, whole)
    )
    self._last_fn = jax.jit(
      functools.partial(_last, optimizer=optimizer, ema_rate=ema_rate),
      donate_argnums=0,
      out_shardings=(shardings, None),
    )

  def __call__(
    self, state: TrainState, batch: TrainBatch
  ) -> tuple[TrainState, dict[str, Any], list[TrainBatch]]:
    """Returns the next state, scalars to log, and what the networks read.

    Args:
      state: is donated.
      batch: this process's rows, on the host.
    """
    size = len(batch.completion_ids) // self._num_mini_batches
    first_row = jax.process_index() * len(batch.completion_ids)
    updates, read = [], []
    for start in range(0, self._num_mini_batches * size, size):
      part = jax.tree.map(lambda x, s=start: x[s : s + size], batch)
      update, rows = self._prepared(part)
      # All lists are those of the teacher before the first update.
      updates.append(self._with_lists(state, update, first_row + start))
      read += rows
    carry, numbers = None, []
    for update in updates:
      params = state.params if carry is None else carry[0]
      totals = self._gradient(state, params, update)
      if update is updates[-1]:
        state, metrics = self._last_fn(
          state, carry, totals, update.sums, tuple(numbers)
        )
        return state, metrics, read
      if carry is None:
        before = (state.params, state.opt_state)
        carry, found = self._first_fn(before, totals, update.sums)
      else:
        carry, found = self._next_fn(carry, totals, update.sums)
      numbers.append(found)
    raise ValueError("a step has no mini-batch")

  def _prepared(self, batch: TrainBatch) -> tuple[Update, list[TrainBatch]]:
    """Returns an update, and its micro-batches on the host."""
    small = self._put(_without_prompts(batch))
    fields, sums = self._prepare_fn(small)
    found = {name: sharding.local_rows(x) for name, x in fields.items()}
    micros = self.plan(batch)
    prepared = dataclasses.replace(batch, **found)
    read = [micro_batches.take(prepared, micro) for micro in micros]
    update = Update(
      small=small,
      micros=micros,
      placed=[self._put(rows) for rows in read],
      sums=sums,
      width=batch.completion_ids.shape[1],
    )
    return update, read

  def plan(self, batch: TrainBatch) -> list[MicroBatch]:
    """Returns the micro-batches of an update, the same in all processes.

    Args:
      batch: this process's rows, on the host.
    """
    columns = np.arange(1, batch.completion_mask.shape[1] + 1)
    lengths = np.max(batch.completion_mask * columns, axis=1, initial=0)
    order = np.argsort(-lengths, kind="stable")
    return micro_batches.plan(
      order,
      collectives.global_maxima(lengths[order].tolist()),
      self._sizes,
      prompt_width=max(
        ids.shape[-1]
        for ids in (
          batch.prompt_ids,
          batch.teacher_prompt_ids,
          batch.later_prompt_ids,
        )
        if ids is not None
      ),
      limit=batch.completion_ids.shape[1],
    )

  def _with_lists(
    self, state: TrainState, update: Update, first_row: int
  ) -> Update:
    """Returns the update with the teacher's lists, if it is known by lists."""
    if self._objective.ask_fn is None:
      return update
    placed = []
    for micro, rows in zip(update.micros, update.placed, strict=True):
      if rows.teacher_candidate_ids is None:
        numbers = np.arange(first_row, first_row + max(micro.rows) + 1)
        numbers = micro_batches.take_rows(numbers, micro, is_zeroed=False)
        lists = self._ask_fn(
          state, self.teacher_params, rows, self._put(numbers)
        )
        rows = with_lists(rows, lists)
      placed.append(rows)
    return dataclasses.replace(update, placed=placed)

  def _gradient(self, state: TrainState, params: Any, update: Update):
    """Returns gradient, loss and report of an update."""
    others = (params, state, self.teacher_params)
    placed = update.placed
    if self._objective.credit_fn is not None:
      placed = self._with_credit(update, others)
    if self._zeros_fn is None:
      shapes = jax.eval_shape(
        functools.partial(slice_gradient, objective=self._objective),
        *others,
        placed[0],
      )
      self._zeros_fn = jax.jit(
        lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes),
        out_shardings=self._totals,
      )
    totals = self._zeros_fn()
    for rows in placed:
      totals = self._accumulate_fn(totals, *others, rows)
    return totals

  def _with_credit(self, update: Update, others) -> list[TrainBatch]:
    """Returns micro-batches with credit, found over the whole update."""
    pieces = [
      sharding.local_rows(self._costs_fn(*others, rows))
      for rows in update.placed
    ]
    costs = micro_batches.put_back(pieces, update.micros, update.width)
    found = [
      sharding.local_rows(x)
      for x in self._score_fn(self._put(costs), update.small)
    ]

    def taken(values, micro):
      rows = micro_batches.take_rows(values, micro, is_zeroed=True)
      return self._put(rows[:, : micro.width])

    return [
      dataclasses.replace(
        rows,
        score_weights=taken(found[0], micro),
        future_costs=taken(found[1], micro),
      )
      for rows, micro in zip(update.placed, update.micros, strict=True)
    ]


def totals_shardings(shardings: TrainState):
  """Returns the shardings of gradient, loss and report of an update.

  Args:
    shardings: of the state.
  """
  whole = sharding.sharding(shardings.step.mesh)
  return (shardings.params, whole), whole


def _without_prompts(batch: TrainBatch) -> TrainBatch:
  empty = {name: getattr(batch, name)[:, :0] for name in _PROMPTS}
  return dataclasses.replace(batch, **empty, **dict.fromkeys(_UNREAD))


def _networks(params, state: TrainState, teacher_params):
  """Returns the parameters of the networks of student and teacher."""
  student = state.whole(params)
  if teacher_params is not None:
    return student, teacher_params
  if state.teacher_params is not None:
    return student, state.whole(state.teacher_params)
  # The current student is a label here: its teacher must not follow it.
  return student, jax.lax.stop_gradient(student)


def _prepare(batch: TrainBatch, *, objective: Objective):
  """Returns the fields that `prepare_fn` fills in, and sums of sequences."""
  prepared = objective.prepare_fn(batch)
  names = (field.name for field in dataclasses.fields(batch))
  fields = {
    name: getattr(prepared, name)
    for name in names
    if getattr(prepared, name) is not getattr(batch, name)
  }
  return fields, losses.sequence_sums(prepared)


def _ask(state: TrainState, teacher_params, batch, rows, *, objective):
  """Returns the teacher's lists for the states of a micro-batch."""
  keys = train_step.row_keys(train_step.teacher_key(state), rows)
  networks = _networks(state.params, state, teacher_params)
  return objective.ask_fn(*networks, batch, keys)


def _costs(params, state: TrainState, teacher_params, batch, *, objective):
  """Returns the costs that credit carries. `[b, t]`."""
  networks = _networks(params, state, teacher_params)
  return objective.credit_fn.costs_fn(*networks, batch)


def _scores(costs, batch: TrainBatch, *, objective):
  """Returns weights of the score function and future costs. `[B, T]`."""
  return objective.credit_fn.score_fn(costs, teacher_mask(batch))


def slice_gradient(
  params, state: TrainState, teacher_params, batch, *, objective
):
  """Returns what `train_step.slice_gradient` does."""
  _, teacher = _networks(params, state, teacher_params)

  def loss(params, batch):
    return objective.loss_fn(state.whole(params), teacher, batch)

  return train_step.slice_gradient(loss, params, batch)


def accumulate(totals, params, state, teacher_params, batch, *, objective):
  """Adds a micro-batch to gradient, loss and report."""
  found = slice_gradient(
    params, state, teacher_params, batch, objective=objective
  )
  return train_step.add(totals, found)


def _advance(carry, totals, sums, *, optimizer):
  """Makes an update of accumulated gradients."""
  (gradient, value), aux = totals
  # Micro-batches count the sequences that fill them too.
  aux = dataclasses.replace(aux, sums=aux.sums | sums)
  return train_step.advance(carry, gradient, value, aux, optimizer=optimizer)


def _last(
  state: TrainState, carry, totals, sums, earlier, *, optimizer, ema_rate
):
  """Makes the last update of a step and ends the step."""
  if carry is None:
    carry = (state.params, state.opt_state)
  carry, numbers = _advance(carry, totals, sums, optimizer=optimizer)
  if earlier:
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *earlier, numbers)
    numbers = train_step.over_updates(stacked)
  return train_step.finish(state, carry, numbers, ema_rate=ema_rate)
