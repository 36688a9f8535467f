"""One training step: gradients of micro-batches, optimiser, teacher."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from flax import struct

from distil_jax.models import decoder, sharding
from distil_jax.objectives import losses
from distil_jax.training import teacher_guard
from distil_jax.types import Batch

Metrics = dict[str, jax.Array]

# Folded into the run's key: what an expert says must not hang together with
# what the student sampled.
_EXPERT = 2**31 + 2


@struct.dataclass
class TrainState:
  """Everything that one step hands to the next; or, in place of each array,
  its sharding or its shape.

  Attributes:
    step: training steps done. Scalar, int32.
    params: the student's.
    teacher_params: EMA or frozen parameters; None where the teacher is the
      current student, or there is none.
    opt_state: optax's.
    key: raw key data of the run; each step folds its number in. uint32.
    guard: what is known of a guarded teacher; None without a guard.
    initial_params: where a guarded teacher goes back to; None where it does
      not.
  """

  step: Any
  params: Any
  teacher_params: Any
  opt_state: Any
  key: Any
  guard: Any = None
  initial_params: Any = None


@dataclasses.dataclass(frozen=True)
class Method:
  """An objective as the functions that a step is made of.

  Attributes:
    prepare_fn: what is known of a whole batch before any network runs, see
      `losses.prepare`.
    loss_fn: the loss of a slice, and what to report: `losses.*_loss`.
    credit_fn: where credit cannot be found slice by slice: the whole batch's,
      in a pass of its own, see `losses.batch_credit`. None: the loss finds it.
    ask_fn: where the teacher is known by a list of tokens: asks it, see
      `experts.ask_teacher`. None: the loss has its distribution.
  """

  prepare_fn: Callable[[Batch], losses.Piece]
  loss_fn: Callable[..., tuple[jax.Array, losses.Report]]
  credit_fn: Callable[..., losses.Credit] | None = None
  ask_fn: Callable[..., tuple[jax.Array, jax.Array]] | None = None


def make_optimizer(
  *,
  learning_rate: float,
  warmup_steps: int = 0,
  schedule: Literal["constant", "cosine"] = "constant",
  num_steps: int | None = None,
  beta1: float = 0.9,
  beta2: float = 0.999,
  epsilon: float = 1e-8,
  weight_decay: float = 0.01,
  max_gradient_norm: float | None = 1.0,
  updates_per_step: int = 1,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
  """AdamW behind a clip of the global norm, with linear warm-up.

  Step n of the warm-up uses (n + 1) / warmup_steps of the rate, so that the
  first step already moves. The cosine falls to 0 at `num_steps`. Steps are
  training steps, however many updates each consists of.

  Returns:
    the optimiser, and the rate at each training step, for the log.
  """
  if schedule == "cosine":
    if num_steps is None:
      raise ValueError("schedule='cosine' needs num_steps")
    decay_steps = max(num_steps - warmup_steps, 1)
    main = optax.cosine_decay_schedule(learning_rate, decay_steps)
  else:
    main = optax.constant_schedule(learning_rate)
  if warmup_steps:
    first = learning_rate / warmup_steps
    warmup = optax.linear_schedule(first, learning_rate, warmup_steps - 1)
    main = optax.join_schedules([warmup, main], [warmup_steps])
  # optax counts updates.
  rate = lambda count: main(count // updates_per_step)  # noqa: E731
  adamw = optax.adamw(
    rate, b1=beta1, b2=beta2, eps=epsilon, weight_decay=weight_decay
  )
  if max_gradient_norm is None:
    return adamw, main
  clip = optax.clip_by_global_norm(max_gradient_norm)
  return optax.chain(clip, adamw), main


def init_state(
  params: decoder.Params,
  *,
  optimizer: optax.GradientTransformation,
  keeps_teacher: bool,
  seed: int,
  guard_action: Literal["freeze", "roll_back"] | None = None,
) -> TrainState:
  """State before the first step; the teacher starts at the initial weights."""

  def copied(is_kept):
    # Copied, not shared: the step donates its state, and a buffer can be
    # donated only once.
    return jax.tree.map(jnp.copy, params) if is_kept else None

  return TrainState(
    step=jnp.int32(0),
    params=params,
    teacher_params=copied(keeps_teacher),
    # Moments in float32 even where the parameters are not.
    opt_state=optimizer.init(
      jax.tree.map(lambda p: p.astype(jnp.float32), params)
    ),
    key=jax.random.key_data(jax.random.key(seed)),
    guard=teacher_guard.init_state() if guard_action else None,
    initial_params=copied(guard_action == "roll_back"),
  )


def state_shardings(
  state: TrainState,
  mesh: jax.sharding.Mesh,
  optimizer: optax.GradientTransformation,
) -> TrainState:
  """`NamedSharding` of each array of the state, same tree.

  Moments live where their parameters live; the rest is on every device.
  """
  params = decoder.shardings(mesh, state.params)
  replicated = sharding.sharding(mesh)

  def kept(tree):
    return params if tree is not None else None

  return TrainState(
    step=replicated,
    params=params,
    teacher_params=kept(state.teacher_params),
    opt_state=optax.tree_utils.tree_map_params(
      optimizer,
      lambda _, place: place,
      state.opt_state,
      params,
      transform_non_params=lambda _: replicated,
    ),
    key=replicated,
    guard=jax.tree.map(lambda _: replicated, state.guard),
    initial_params=kept(state.initial_params),
  )


def train_step(
  state: TrainState,
  batch: Batch,
  *,
  method: Method,
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
    report = losses.Report(
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
  batch: Batch,
  key: jax.Array,
  *,
  method: Method,
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
