"""One training step: losses of micro-batches, gradients, optimiser, teacher."""

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from flax import nnx, struct

from distil_jax import objectives, scoring
from distil_jax.models import qwen3, sharding
from distil_jax.ops import masking, unembedding
from distil_jax.records import Batch

Metrics = dict[str, jax.Array]


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
  """

  step: Any
  params: Any
  teacher_params: Any
  opt_state: Any
  key: Any


# Token losses of one micro-batch and the sums to report.
#   (params, teacher_params, batch, scores or None) -> ([b, T], sums)
LossFn = Callable[..., tuple[jax.Array, Metrics]]


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
) -> tuple[optax.GradientTransformation, optax.Schedule]:
  """AdamW behind a clip of the global norm, with linear warm-up.

  Step n of the warm-up uses (n + 1) / warmup_steps of the rate, so that the
  first step already moves. The cosine falls to 0 at `num_steps`.

  Returns:
    the optimiser, and its schedule for the log.
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
  adamw = optax.adamw(
    main, b1=beta1, b2=beta2, eps=epsilon, weight_decay=weight_decay
  )
  if max_gradient_norm is None:
    return adamw, main
  clip = optax.clip_by_global_norm(max_gradient_norm)
  return optax.chain(clip, adamw), main


def init_state(
  params: qwen3.Params,
  *,
  optimizer: optax.GradientTransformation,
  keeps_teacher: bool,
  seed: int,
) -> TrainState:
  """State before the first step; the teacher starts at the initial weights."""
  return TrainState(
    step=jnp.int32(0),
    params=params,
    # Copied, not shared: the step donates its state, and a buffer can be
    # donated only once.
    teacher_params=jax.tree.map(jnp.copy, params) if keeps_teacher else None,
    # Moments in float32 even where the parameters are not.
    opt_state=optimizer.init(
      jax.tree.map(lambda p: p.astype(jnp.float32), params)
    ),
    key=jax.random.key_data(jax.random.key(seed)),
  )


def state_shardings(
  state: TrainState,
  mesh: jax.sharding.Mesh,
  optimizer: optax.GradientTransformation,
) -> TrainState:
  """`NamedSharding` of each array of the state, same tree.

  Moments live where their parameters live; the rest is on every device.
  """
  params = qwen3.shardings(mesh, state.params)
  replicated = sharding.sharding(mesh)
  return TrainState(
    step=replicated,
    params=params,
    teacher_params=params if state.teacher_params is not None else None,
    opt_state=optax.tree_utils.tree_map_params(
      optimizer,
      lambda _, place: place,
      state.opt_state,
      params,
      transform_non_params=lambda _: replicated,
    ),
    key=replicated,
  )


def train_step(
  state: TrainState,
  batch: Batch,
  *,
  loss_fn: LossFn,
  credit_fn: Callable[..., jax.Array] | None,
  optimizer: optax.GradientTransformation,
  aggregation: masking.Aggregation,
  num_micro_batches: int = 1,
  ema_rate: float | None = None,
) -> tuple[TrainState, Metrics]:
  """Learns from one batch.

  Args:
    state: donate it. Comes back unchanged, its step too, where the loss or
      the gradient is not finite.
    batch: the whole batch of this step.
    loss_fn: token losses of a micro-batch, see `distil_loss` and `sft_loss`.
    credit_fn: where credit couples sequences of different micro-batches: the
      score weights of the whole batch, found in a pass of its own. None: the
      loss finds its own.
    optimizer: from `make_optimizer`.
    aggregation: how token losses are averaged over the whole batch.
    num_micro_batches: gradients are accumulated over so many slices; the
      result does not depend on it.
    ema_rate: how far the teacher follows the student, once a step; None
      leaves it.

  Returns:
    the next state, and scalars to log.
  """
  teacher = state.teacher_params
  if teacher is None:
    teacher = jax.lax.stop_gradient(state.params)
  weights = masking.aggregation_weights(
    batch.completion_mask, batch.sample_mask, aggregation=aggregation
  )
  slices = _cut((batch, weights), num_micro_batches)
  if credit_fn is not None:
    scores = credit_fn(state.params, teacher, slices[0], learned_tokens(batch))
    slices = (*slices, _cut(scores, num_micro_batches))
  else:
    slices = (*slices, None)

  def loss(params, piece):
    micro_batch, micro_weights, scores = piece
    losses, sums = loss_fn(params, teacher, micro_batch, scores)
    return jnp.sum(micro_weights * losses), sums

  gradients, value, sums = _accumulate(loss, state.params, slices)
  updates, opt_state = optimizer.update(
    gradients, state.opt_state, state.params
  )
  params = optax.apply_updates(state.params, updates)
  teacher_params = state.teacher_params
  if ema_rate is not None:
    teacher_params = _follow(teacher_params, params, ema_rate)
  tokens = jnp.maximum(sums.pop("tokens"), 1.0)
  metrics = {name: total / tokens for name, total in sums.items()}
  metrics["loss"] = value
  metrics["gradient_norm"] = optax.tree.norm(gradients)
  next_state = TrainState(
    step=state.step + 1,
    params=params,
    teacher_params=teacher_params,
    opt_state=opt_state,
    key=state.key,
  )
  is_finite = jnp.isfinite(value) & jnp.isfinite(metrics["gradient_norm"])
  return _select(is_finite, next_state, state), metrics


def distil_loss(
  params: qwen3.Params,
  teacher_params: qwen3.Params,
  batch: Batch,
  scores: jax.Array | None,
  *,
  graphdef: nnx.GraphDef,
  cost: objectives.Cost,
  chunk_size: int | None,
  score_fn: Callable[..., tuple[jax.Array, jax.Array]],
) -> tuple[jax.Array, Metrics]:
  """Token losses of DistIL, `[b, T]`, and sums over scored tokens.

  `score_fn` is `objectives.score_weights` with its settings; `scores` are its
  weights where they had to be found over the whole batch.
  """
  statistics = distil_statistics(
    params, teacher_params, batch, graphdef=graphdef, chunk_size=chunk_size
  )
  mask = learned_tokens(batch)
  costs = objectives.token_costs(statistics, mask, cost=cost)
  if scores is None:
    scores, later = score_fn(costs, mask)
  else:
    _, later = score_fn(costs, mask, baseline=None)
  losses = objectives.distil_losses(statistics, mask, scores, cost=cost)
  sums = _sums(
    batch,
    cost=costs,
    future_cost=later,
    score_weight=jnp.abs(scores),
    entropy=statistics.entropies,
    teacher_entropy=statistics.teacher_entropies,
  )
  return losses, sums


def distil_statistics(
  params: qwen3.Params,
  teacher_params: qwen3.Params,
  batch: Batch,
  *,
  graphdef: nnx.GraphDef,
  chunk_size: int | None,
) -> unembedding.TokenStatistics:
  """Student and teacher on the student's tokens. Shape `[b, T]` each."""
  completion = (batch.completion_ids, batch.completion_mask)
  score = functools.partial(scoring.completion_hidden_states, graphdef=graphdef)
  student = score(params, batch.prompt_ids, batch.prompt_mask, *completion)
  teacher = score(
    teacher_params,
    batch.teacher_prompt_ids,
    batch.teacher_prompt_mask,
    *completion,
  )
  return unembedding.token_statistics(
    student,
    qwen3.unembedding(params),
    teacher,
    qwen3.unembedding(teacher_params),
    batch.completion_ids,
    chunk_size=chunk_size,
  )


def batch_credit(
  params: qwen3.Params,
  teacher_params: qwen3.Params,
  slices: Batch,
  mask: jax.Array,
  *,
  graphdef: nnx.GraphDef,
  cost: objectives.Cost,
  chunk_size: int | None,
  score_fn: Callable[..., tuple[jax.Array, jax.Array]],
) -> jax.Array:
  """Score weights of a batch whose groups are split over micro-batches.

  Args:
    params, teacher_params: as for the loss.
    slices: the batch, cut. `[n, b, ...]`.
    mask: the whole batch's `learned_tokens`. Shape `[B, T]`.
    graphdef, cost, chunk_size, score_fn: as for `distil_loss`.

  Returns:
    Shape `[B, T]`.
  """

  def costs_of(micro_batch):
    statistics = distil_statistics(
      params,
      teacher_params,
      micro_batch,
      graphdef=graphdef,
      chunk_size=chunk_size,
    )
    return objectives.token_costs(
      statistics, learned_tokens(micro_batch), cost=cost
    )

  costs = jax.lax.map(costs_of, slices)
  return score_fn(costs.reshape(mask.shape), mask)[0]


def sft_loss(
  params: qwen3.Params,
  teacher_params: qwen3.Params,
  batch: Batch,
  scores: None,
  *,
  graphdef: nnx.GraphDef,
  chunk_size: int | None,
) -> tuple[jax.Array, Metrics]:
  """Token losses of demonstrations, `[b, T]`, and sums over their tokens."""
  del teacher_params, scores
  hidden = scoring.completion_hidden_states(
    params,
    batch.prompt_ids,
    batch.prompt_mask,
    batch.completion_ids,
    batch.completion_mask,
    graphdef=graphdef,
  )
  log_probs, entropies = unembedding.token_log_probs(
    hidden,
    qwen3.unembedding(params),
    batch.completion_ids,
    chunk_size=chunk_size,
  )
  losses = objectives.sft_losses(log_probs, batch.completion_mask)
  return losses, _sums(batch, cost=losses, entropy=entropies)


def learned_tokens(batch: Batch) -> jax.Array:
  """1 at the tokens that are learned from. Shape `[b, T]`.

  A sequence without teacher signal has none: its costs mean nothing, so they
  must not stand in the baseline of its group either.
  """
  return batch.completion_mask * batch.sample_mask[:, None]


def _sums(batch: Batch, **values: jax.Array) -> Metrics:
  """Sums over the tokens that are learned from, and their number."""
  mask = learned_tokens(batch)
  values = jax.lax.stop_gradient(values)
  sums = {k: jnp.sum(masking.where_counts(v, mask)) for k, v in values.items()}
  return {**sums, "tokens": jnp.sum(mask).astype(jnp.float32)}


def _cut(tree, num_micro_batches: int):
  """`[B, ...]` to `[n, B / n, ...]`, each slice over the batch axes."""

  def cut(x):
    size = x.shape[0] // num_micro_batches
    x = x.reshape(num_micro_batches, size, *x.shape[1:])
    return sharding.constrain(x, None, "batch", *(None,) * (x.ndim - 2))

  return jax.tree.map(cut, tree)


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


def _select(condition: jax.Array, chosen, otherwise):
  return jax.tree.map(
    lambda a, b: jnp.where(condition, a, b), chosen, otherwise
  )


def _accumulate(loss, params, slices):
  """Sums gradients, loss and metrics over the leading axis of the slices."""
  num_micro_batches = slices[1].shape[0]
  grad_fn = jax.value_and_grad(loss, has_aux=True)

  def one(piece):
    (value, sums), gradients = grad_fn(params, piece)
    gradients = jax.tree.map(lambda g: g.astype(jnp.float32), gradients)
    return gradients, value, sums

  first = jax.tree.map(lambda x: x[0], slices)
  if num_micro_batches == 1:
    return one(first)

  def body(totals, piece):
    return jax.tree.map(jnp.add, totals, one(piece)), None

  zeros = jax.tree.map(
    lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(one, first)
  )
  totals, _ = jax.lax.scan(body, zeros, slices)
  return totals
