"""SFT: the negative log-likelihood of demonstrations; no teacher."""

import functools

import jax

from distil_jax.config.objectives import SFTConfig
from distil_jax.objectives import base, losses
from distil_jax.ops import masking
from distil_jax.types import TrainBatch


def build(
  section: SFTConfig, forward: base.ForwardPasses, layout: base.BatchLayout
) -> base.Objective:
  """Builds the objective from its section of a config."""
  del layout
  return base.Objective(
    prepare_fn=functools.partial(
      losses.prepare, aggregation=section.aggregation
    ),
    loss_fn=functools.partial(sft_loss, own_fn=forward.own_fn),
  )


def sft_loss(
  params: base.Params,
  teacher_params: base.Params,
  batch: TrainBatch,
  *,
  own_fn,
) -> tuple[jax.Array, base.LossAux]:
  """Returns the loss of demonstrated completions.

  Args:
    params: the policy's.
    teacher_params: not read.
    batch: a prepared slice.
    own_fn: see `base.ForwardPasses`.

  Returns:
    The slice's part of the loss, scalar, and what to report.
  """
  del teacher_params
  source = own_fn(params, batch)
  value, reports = source.fused_loss(
    _token_losses,
    {"mask": batch.student_tokens, "weights": batch.loss_weights},
  )
  sums = losses.metric_sums(base.teacher_mask(batch), **reports)
  return value, base.LossAux(sums, loads=source.loads)


def _token_losses(carry, statistics, rows):
  """Returns token losses of a chunk; nothing is carried."""
  per_token = sft_losses(statistics.log_probs, rows["mask"])
  reports = {"cost": per_token, "entropy": statistics.entropies}
  return rows["weights"] * per_token, (carry, reports)


def sft_losses(log_probs: jax.Array, mask: jax.Array) -> jax.Array:
  """Returns −log π_θ of demonstrated tokens, nats, 0 at padding. `[B, T]`."""
  return -masking.where_counts(log_probs, mask)
