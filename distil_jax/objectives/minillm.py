"""MiniLLM from logits, for small inputs (arXiv:2306.08543)."""

import jax

from distil_jax.objectives import dense, token_losses
from distil_jax.ops import masking
from distil_jax.ops.divergences import Divergence


def minillm(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  completion_ids: jax.Array,
  completion_mask: jax.Array,
  *,
  future_weight: float = 1.0,
  normalize: bool = True,
  sample_mask: jax.Array | None = None,
  aggregation: masking.Aggregation = "token_mean",
) -> dense.Loss:
  """MiniLLM (arXiv:2306.08543): reverse KL, its future part from samples.

    ℓₜ = KL(s‖t) + future_weight · log π_θ(yₜ|sₜ) · sg[Rₜ]

  with Rₜ of log s(yᵢ) − log t(yᵢ) at i > t. With the plain sum its gradient is,
  in expectation, that of KL between the distributions of whole completions.

  Args:
    student_logits, teacher_logits, completion_ids, completion_mask: see
      `distil`.
    future_weight, normalize, sample_mask, aggregation: see `distil`.

  Returns:
    the loss; its costs are KL(s‖t).
  """
  statistics = dense.clean_statistics(
    student_logits,
    teacher_logits,
    completion_ids,
    completion_mask,
    Divergence("reverse_kl"),
    sample_mask,
  )
  scores, later = token_losses.score_weights(
    token_losses.sampled_reverse_kl(statistics, completion_mask),
    masking.counted_tokens(completion_mask, sample_mask),
    future_weight=future_weight,
    normalize=normalize,
  )
  losses = token_losses.feedback_losses(
    statistics, completion_mask, scores, sample_mask=sample_mask
  )
  return dense.aggregate(
    statistics,
    losses,
    later,
    completion_mask,
    sample_mask,
    aggregation=aggregation,
  )
