"""Runs a training step: gradients of micro-batches, optimizer, teacher."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from distil_jax.models import decoder, sharding
from distil_jax.objectives import losses
from distil_jax.objectives.base import LossAux, Objective, with_lists
from distil_jax.training import low_precision
from distil_jax.training.train_state import TrainState
from distil_jax.types import TrainBatch

Metrics = dict[str, jax.Array]
# Loss, gradient norm and report, of an update or of a step.
Numbers = tuple[jax.Array, jax.Array, LossAux]
TeacherParams = decoder.Params | tuple[decoder.Params | None, ...] | None

# Folded into the run's key: a teacher's samples must be independent of the
# student's.
_TEACHER_KEY = 2**31 + 2


def train_step(
  state: TrainState,
  batch: TrainBatch,
  teacher_params: TeacherParams = None,
  *,
  objective: Objective,
  optimizer: optax.GradientTransformation,
  num_mini_batches: int = 1,
  num_micro_batches: int = 1,
  ema_rate: float | None = None,
) -> tuple[TrainState, Metrics]:
  """Learns from one batch.

  Args:
    state: donate it. It is returned unchanged, its step too, if a loss or a
      gradient is not finite.
    batch: the whole batch of this step.
    teacher_params: a teacher's that is another model, which no step changes;
      None means that the teacher is in the state, or that there is none. Of
      several teachers a tuple of these.
    objective: from `build_objective`.
    optimizer: from `make_optimizer`.
    num_mini_batches: number of updates, each on another part of the batch.
    num_micro_batches: number of slices over which the gradient of an update is
      accumulated; the result does not depend on it.
    ema_rate: how far the teacher follows the student, once a step; None leaves
      the teacher as it is.

  Returns:
    The next state, and scalars to log.
  """
  if state.teacher_params is not None:
    # Another model has all its parameters, and the state may hold adapters.
    own = state.whole(state.teacher_params)
    teacher_params = with_own(teacher_params, own)
  batch = with_teacher_lists(
    state.student_params,
    teacher_params,
    batch,
    teacher_key(state),
    ask_fn=objective.ask_fn,
    num_slices=num_mini_batches * num_micro_batches,
  )

  def update(carry, mini_batch):
    # A teacher with parameters of its own moves once a step, so that every
    # mini-batch is compared with the same one.
    gradient, value, aux = _gradients(
      carry[0],
      teacher_params,
      mini_batch,
      objective=objective,
      num_micro_batches=num_micro_batches,
      whole=state.whole,
    )
    return advance(carry, gradient, value, aux, optimizer=optimizer)

  carry = (state.params, state.opt_state)
  if num_mini_batches == 1:
    carry, numbers = update(carry, batch)
  else:
    slices = cut(batch, num_mini_batches)
    carry, numbers = jax.lax.scan(update, carry, slices)
    numbers = over_updates(numbers)
  return finish(state, carry, numbers, ema_rate=ema_rate)


def teacher_key(state: TrainState) -> jax.Array:
  """Returns the key of this step's samples from the teacher."""
  key = jax.random.fold_in(jax.random.wrap_key_data(state.key), _TEACHER_KEY)
  return jax.random.fold_in(key, state.step)


def row_keys(key: jax.Array, rows: jax.Array) -> jax.Array:
  """Returns a key for each sequence: how a batch is cut must change nothing.

  Args:
    key: of the step.
    rows: numbers of the sequences in the whole batch. Shape `[b]`.
  """
  return jax.vmap(lambda row: jax.random.fold_in(key, row))(rows)


def advance(
  carry: tuple[Any, Any],
  gradient: decoder.Params,
  value: jax.Array,
  aux: LossAux,
  *,
  optimizer: optax.GradientTransformation,
) -> tuple[tuple[Any, Any], Numbers]:
  """Makes an update.

  Args:
    carry: parameters and the optimizer's state.
    gradient: of the update's whole batch.
    value: its loss.
    aux: its report.
    optimizer: see `train_step`.

  Returns:
    The next carry; loss, gradient norm and report.
  """
  params, opt_state = carry
  updates, opt_state = optimizer.update(gradient, opt_state, params)
  params = low_precision.next_params(params, updates, opt_state)
  # The norm is that of the gradient before the optimizer clips it.
  return (params, opt_state), (value, optax.tree.norm(gradient), aux)


def over_updates(numbers: Numbers) -> Numbers:
  """Returns loss, norm and report of a step; given those of its updates.

  Each array has the updates as its first axis.
  """
  value, norm, aux = numbers
  return (
    jnp.mean(value),
    jnp.mean(norm),
    LossAux(
      jax.tree.map(lambda x: jnp.sum(x, axis=0), aux.sums),
      # Only the first update has the parameters that sampled.
      jax.tree.map(lambda x: x[0], aux.mismatch),
      jax.tree.map(lambda x: jnp.sum(x, axis=0), aux.loads),
    ),
  )


def finish(
  state: TrainState,
  carry: tuple[Any, Any],
  numbers: Numbers,
  *,
  ema_rate: float | None,
) -> tuple[TrainState, Metrics]:
  """Ends a step whose updates are done.

  Args:
    state: before the step.
    carry: parameters and the optimizer's state after the last update.
    numbers: loss, gradient norm and report of the step.
    ema_rate: see `train_step`.

  Returns:
    As `train_step`.
  """
  (params, opt_state), (value, norm, aux) = carry, numbers
  next_state = dataclasses.replace(
    state,
    step=state.step + 1,
    params=params,
    teacher_params=_next_teacher(
      state, low_precision.full_params(params, opt_state), ema_rate
    ),
    opt_state=opt_state,
  )
  # NaN and infinity in any mini-batch reach the means, so these two tell of
  # all.
  is_finite = jnp.isfinite(value) & jnp.isfinite(norm)
  metrics = {**losses.metrics(aux), "loss": value, "gradient_norm": norm}
  # Chosen on the device: when the host hears of a failure, the old state has
  # been donated already.
  chosen = optax.tree.where(
    is_finite,
    dataclasses.replace(next_state, base_params=None),
    dataclasses.replace(state, base_params=None),
  )
  # Frozen parameters are the same in both, and are not to be copied.
  return dataclasses.replace(chosen, base_params=state.base_params), metrics


def gradients(
  params: decoder.Params,
  teacher_params: TeacherParams,
  batch: TrainBatch,
  key: jax.Array,
  *,
  objective: Objective,
  num_micro_batches: int = 1,
) -> tuple[decoder.Params, jax.Array, Metrics]:
  """Returns the gradient of a whole batch, as one update would use it.

  Args:
    params: the student's.
    teacher_params: the teacher's; None means that the student is its teacher.
    batch: of the update.
    key: for a teacher that is known by samples.
    objective: from `build_objective`.
    num_micro_batches: number of slices; the result does not depend on it.

  Returns:
    The gradient (at least float32), the loss, and scalars to log.
  """
  batch = with_teacher_lists(
    params,
    teacher_params,
    batch,
    key,
    ask_fn=objective.ask_fn,
    num_slices=num_micro_batches,
  )
  gradient, value, aux = _gradients(
    params,
    teacher_params,
    batch,
    objective=objective,
    num_micro_batches=num_micro_batches,
    whole=lambda params: params,
  )
  return gradient, value, losses.metrics(aux)


def _gradients(
  params, teacher_params, batch, *, objective, num_micro_batches, whole
):
  """Returns gradient, loss and `LossAux` of a batch, slice by slice.

  Args:
    params: what is differentiated.
    teacher_params: parameters of the teacher's network, or None.
    batch: of an update.
    objective: see `train_step`.
    num_micro_batches: see `train_step`.
    whole: maps `params` to the parameters of the student's network.
  """
  # The current student is a label here: its teacher must not follow it.
  own = jax.lax.stop_gradient(whole(params))
  teacher_params = with_own(teacher_params, own)
  prepared = objective.prepare_fn(batch)
  if objective.credit_fn is not None:
    slices = cut(batch, num_micro_batches)
    scores, future = objective.credit_fn(whole(params), teacher_params, slices)
    prepared = dataclasses.replace(
      prepared, score_weights=scores, future_costs=future
    )
  # Cut after `prepare_fn`, which needs whole groups and the whole batch.
  slices = cut(prepared, num_micro_batches)

  def loss(params, batch):
    return objective.loss_fn(whole(params), teacher_params, batch)

  return _accumulate(loss, params, slices, num_micro_batches)


def with_own(teacher_params, own):
  """Returns the teacher's parameters, `own` wherever they are None.

  Of several teachers there is a tuple.
  """
  if isinstance(teacher_params, tuple):
    return tuple(own if one is None else one for one in teacher_params)
  return own if teacher_params is None else teacher_params


def with_teacher_lists(
  params, teacher_params, batch, key, *, ask_fn, num_slices
):
  """Returns the batch with the teacher's lists, if it is known by lists.

  The answers of an outside teacher are there already, and stay.
  """
  if batch.teacher_candidate_ids is not None:
    if ask_fn is None:
      raise ValueError(
        "the batch has teacher_candidate_ids, but the objective takes the "
        "teacher's distribution; set teacher.access=samples or top_k"
      )
    return batch
  if ask_fn is None:
    return batch
  # Nothing is differentiated here, so no gradient has to be stopped.
  teacher_params = with_own(teacher_params, params)
  keys = row_keys(key, jnp.arange(batch.completion_ids.shape[0]))
  # In the slices of the update, so that asking needs no more memory than that.
  lists = jax.lax.map(
    lambda rows: ask_fn(params, teacher_params, *rows),
    cut((batch, keys), num_slices),
  )
  joined = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), lists)
  return with_lists(batch, joined)


def cut(tree, num_slices: int):
  """Cuts `[B, ...]` to `[n, B / n, ...]`, each slice over the batch axes."""

  def cut(x):
    # Rows of a slice are neighbours, so a group stays in one slice if its size
    # divides the slice's.
    size = x.shape[0] // num_slices
    x = x.reshape(num_slices, size, *x.shape[1:])
    return sharding.constrain(x, None, "batch", *(None,) * (x.ndim - 2))

  return jax.tree.map(cut, tree)


def _next_teacher(state: TrainState, params, rate: float | None):
  """Returns the teacher after a step.

  It follows the student. If its guard holds it, it stays, or goes back towards
  the initial weights.
  """
  teacher_params = state.teacher_params
  if rate is None:
    return teacher_params
  followed = _follow(teacher_params, params, rate)
  if state.guard is None:
    return followed
  instead = teacher_params
  if state.initial_params is not None:
    instead = _follow(teacher_params, state.initial_params, rate)
  return optax.tree.where(state.guard.is_holding, instead, followed)


def _follow(teacher_params, params, rate: float):
  """Returns the moving average, taken in float32, in the teacher's type.

  Its weights `rate` and 1 − `rate`, rounded to bfloat16, would not sum to 1 and
  would shrink the teacher at every step.
  """
  new, old = (
    jax.tree.map(lambda x: x.astype(jnp.float32), tree)
    for tree in (params, teacher_params)
  )
  moved = optax.incremental_update(new, old, rate)
  return jax.tree.map(lambda x, t: x.astype(t.dtype), moved, teacher_params)


def _accumulate(loss, params, slices, num_slices: int):
  """Sums gradients and loss over the leading axis of the slices.

  Their reports are merged, see `losses.merge`.
  """

  def one(batch):
    return slice_gradient(loss, params, batch)

  first = jax.tree.map(lambda x: x[0], slices)
  if num_slices == 1:
    totals, aux = one(first)
    return *totals, aux

  def body(carry, batch):
    return add(carry, one(batch)), None

  # Zeros of shapes that are found without computing: a first slice outside the
  # loop would compile its body twice.
  zeros = jax.tree.map(
    lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(one, first)
  )
  (totals, aux), _ = jax.lax.scan(body, zeros, slices)
  return *totals, aux


def slice_gradient(loss, params, batch):
  """Returns gradient and loss of a slice, and its `LossAux`."""
  (value, aux), gradient = jax.value_and_grad(loss, has_aux=True)(params, batch)
  # Sums of many bfloat16 gradients would lose what each adds.
  gradient = jax.tree.map(
    lambda g: g.astype(jnp.promote_types(g.dtype, jnp.float32)), gradient
  )
  return (gradient, value), aux


def add(one, other):
  """Returns what `slice_gradient` finds in two slices together."""
  (totals, aux), (added, more) = one, other
  return jax.tree.map(jnp.add, totals, added), losses.merge(aux, more)
