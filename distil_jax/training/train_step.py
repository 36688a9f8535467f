"""One training step: gradients of micro-batches, optimiser, teacher."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from distil_jax.models import decoder, sharding
from distil_jax.objectives import losses
from distil_jax.objectives.base import Objective
from distil_jax.training.train_state import TrainState
from distil_jax.types import TrainBatch

Metrics = dict[str, jax.Array]

# Folded into the run's key: what an expert says must not hang together with
# what the student sampled.
_EXPERT = 2**31 + 2


def train_step(
  state: TrainState,
  batch: TrainBatch,
  *,
  method: Objective,
  optimizer: optax.GradientTransformation,
  num_mini_batches: int = 1,
  num_micro_batches: int = 1,
  ema_rate: float | None = None,
) -> tuple[TrainState, Metrics]:
  """Learns from one batch.

  Args:
    state: donate it. Comes back unchanged, its step too, where a loss or a
      gradient is not finite.
    batch: the whole batch of this step.
    method: the objective.
    optimizer: from `make_optimizer`.
    num_mini_batches: so many updates, each on another part of the batch.
    num_micro_batches: the gradient of an update is accumulated over so many
      slices; the result does not depend on it.
    ema_rate: how far the teacher follows the student, once a step; None
      leaves it.

  Returns:
    the next state, and scalars to log.
  """
  key = jax.random.fold_in(jax.random.wrap_key_data(state.key), _EXPERT)
  batch = _with_candidates(
    state.params,
    state.teacher_params,
    batch,
    jax.random.fold_in(key, state.step),
    ask_fn=method.ask_fn,
    num_slices=num_mini_batches * num_micro_batches,
  )

  def learn(learner, mini_batch):
    params, opt_state = learner
    gradient, value, report = _gradients(
      params,
      state.teacher_params,
      mini_batch,
      method=method,
      num_micro_batches=num_micro_batches,
    )
    updates, opt_state = optimizer.update(gradient, opt_state, params)
    params = optax.apply_updates(params, updates)
    return (params, opt_state), (value, optax.tree.norm(gradient), report)

  learner = (state.params, state.opt_state)
  if num_mini_batches == 1:
    learner, (value, norm, report) = learn(learner, batch)
  else:
    slices = _cut(batch, num_mini_batches)
    learner, (*numbers, reports) = jax.lax.scan(learn, learner, slices)
    value, norm = map(jnp.mean, numbers)
    report = losses.LossAux(
      jax.tree.map(lambda x: jnp.sum(x, axis=0), reports.sums),
      # Only the first update has the parameters that sampled.
      jax.tree.map(lambda x: x[0], reports.mismatch),
    )
  params, opt_state = learner
  next_state = dataclasses.replace(
    state,
    step=state.step + 1,
    params=params,
    teacher_params=_next_teacher(state, params, ema_rate),
    opt_state=opt_state,
  )
  is_finite = jnp.isfinite(value) & jnp.isfinite(norm)
  metrics = {**losses.metrics(report), "loss": value, "gradient_norm": norm}
  return optax.tree.where(is_finite, next_state, state), metrics


def gradients(
  params: decoder.Params,
  teacher_params: decoder.Params | None,
  batch: TrainBatch,
  key: jax.Array,
  *,
  method: Objective,
  num_micro_batches: int = 1,
) -> tuple[decoder.Params, jax.Array, Metrics]:
  """The gradient of a whole batch, as one update of `train_step` takes it.

  Args:
    params: the student's.
    teacher_params: None where the teacher is the student.
    batch: what is learned from.
    key: for a teacher that is known by samples.
    method: the objective.
    num_micro_batches: the result does not depend on it.

  Returns:
    the gradient (at least float32), the loss, and scalars to log.
  """
  batch = _with_candidates(
    params,
    teacher_params,
    batch,
    key,
    ask_fn=method.ask_fn,
    num_slices=num_micro_batches,
  )
  gradient, value, report = _gradients(
    params,
    teacher_params,
    batch,
    method=method,
    num_micro_batches=num_micro_batches,
  )
  return gradient, value, losses.metrics(report)


def _gradients(params, teacher_params, batch, *, method, num_micro_batches):
  """Gradient, loss and report of a batch, slice by slice."""
  if teacher_params is None:
    teacher_params = jax.lax.stop_gradient(params)
  whole = method.prepare_fn(batch)
  if method.credit_fn is not None:
    slices = _cut(batch, num_micro_batches)
    credit = method.credit_fn(params, teacher_params, slices)
    whole = dataclasses.replace(whole, credit=credit)
  pieces = _cut(whole, num_micro_batches)

  def loss(params, piece):
    return method.loss_fn(params, teacher_params, piece)

  return _accumulate(loss, params, pieces, num_micro_batches)


def _with_candidates(params, teacher_params, batch, key, *, ask_fn, num_slices):
  """The batch with what the teacher says, where it says it in lists.

  An outside expert has answered already, and its answers stay.
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
  if teacher_params is None:
    teacher_params = params
  # A key for each sequence: how the batch is cut must not change the answers.
  rows = jnp.arange(batch.completion_ids.shape[0])
  keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(rows)
  ids, log_probs = jax.lax.map(
    lambda piece: ask_fn(params, teacher_params, *piece),
    _cut((batch, keys), num_slices),
  )
  shape = (-1, *ids.shape[2:])
  return dataclasses.replace(
    batch,
    teacher_candidate_ids=ids.reshape(shape),
    teacher_candidate_log_probs=log_probs.reshape(shape),
  )


def _cut(tree, num_slices: int):
  """`[B, ...]` to `[n, B / n, ...]`, each slice over the batch axes."""

  def cut(x):
    size = x.shape[0] // num_slices
    x = x.reshape(num_slices, size, *x.shape[1:])
    return sharding.constrain(x, None, "batch", *(None,) * (x.ndim - 2))

  return jax.tree.map(cut, tree)


def _next_teacher(state: TrainState, params, rate: float | None):
  """Follows the student; where a guard holds it, stays or goes back."""
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
  """The moving average, taken in float32.

  Its weights `rate` and 1 − `rate`, rounded to bfloat16, would not sum to 1,
  and would shrink the teacher at every step.
  """
  new, old = (
    jax.tree.map(lambda x: x.astype(jnp.float32), tree)
    for tree in (params, teacher_params)
  )
  moved = optax.incremental_update(new, old, rate)
  return jax.tree.map(lambda x, t: x.astype(t.dtype), moved, teacher_params)


def _accumulate(loss, params, pieces, num_pieces: int):
  """Sums gradients and loss over the leading axis of the pieces.

  What they report is put together by its kind.
  """
  grad_fn = jax.value_and_grad(loss, has_aux=True)

  def one(piece):
    (value, report), gradient = grad_fn(params, piece)
    gradient = jax.tree.map(
      lambda g: g.astype(jnp.promote_types(g.dtype, jnp.float32)), gradient
    )
    return (gradient, value), report

  first = jax.tree.map(lambda x: x[0], pieces)
  if num_pieces == 1:
    totals, report = one(first)
    return *totals, report

  def body(carry, piece):
    (totals, report), (added, other) = carry, one(piece)
    totals = jax.tree.map(jnp.add, totals, added)
    return (totals, losses.merge(report, other)), None

  zeros = jax.tree.map(
    lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(one, first)
  )
  (totals, report), _ = jax.lax.scan(body, zeros, pieces)
  return *totals, report
