"""MiniLLM: reverse KL, its future part from samples (arXiv:2306.08543)."""

import dataclasses
import functools

import jax

from distil_jax.config.objectives import MiniLLMConfig
from distil_jax.objectives import base, dense, losses, token_losses
from distil_jax.ops import masking
from distil_jax.ops.divergences import Divergence
from distil_jax.ops.token_statistics import TokenStatistics

# The local part is exact over the vocabulary; only the future is sampled.
_DIVERGENCE = Divergence("reverse_kl")


@dataclasses.dataclass(frozen=True)
class MiniLLMSettings:
  """Settings of MiniLLM.

  Attributes:
    future_weight: weight of the future costs; 0 leaves the local KL alone.
    normalize: takes the mean of the future costs in place of their sum.
    importance_clip: upper limit of the off-policy ratio; None means none.
    aggregation: how token losses are averaged over the batch.
  """

  future_weight: float = 1.0
  normalize: bool = True
  importance_clip: float | None = None
  aggregation: masking.Aggregation = "token_mean"

  @property
  def credit(self) -> token_losses.CreditSettings:
    return token_losses.CreditSettings(
      future_weight=self.future_weight, normalize=self.normalize
    )


def build(
  section: MiniLLMConfig, forward: base.ForwardPasses, layout: base.BatchLayout
) -> base.Objective:
  """Builds the objective from its section of a config."""
  read = base.read_settings(MiniLLMSettings, section)
  settings = losses.FeedbackSettings(
    compare_fn=functools.partial(forward.compare_fn, divergence=_DIVERGENCE),
    costs_fn=sampled_reverse_kl,
    score_fn=functools.partial(
      token_losses.score_weights_before, settings=read.credit
    ),
    importance_clip=read.importance_clip,
    is_off_policy=layout.is_off_policy,
    teacher_names=forward.teacher_names,
    max_teacher_entropy=section.max_teacher_entropy,
  )
  return base.Objective(
    prepare_fn=functools.partial(losses.prepare, aggregation=read.aggregation),
    loss_fn=functools.partial(losses.feedback_loss, settings=settings),
    ask_fn=forward.ask_fn,
  )


def sampled_reverse_kl(
  statistics: TokenStatistics, mask: jax.Array
) -> jax.Array:
  """Returns log π_θ − log π_T of the sampled tokens, MiniLLM's cost.

  Its mean over the student's samples is KL(s‖t); a single one may be negative.

  Args:
    statistics: of the student's tokens.
    mask: 1 where the token counts. Shape `[B, T]`.

  Returns:
    Nats, constant, 0 at padding. Shape `[B, T]`.

  Raises:
    ValueError: the teacher is known by lists that do not tell what it makes of
      the student's own tokens.
  """
  if statistics.teacher_log_probs is None:
    raise ValueError(
      "minillm charges log π_θ − log π_T of the student's own tokens, and the "
      "teacher's lists came without these; give teacher_log_probs in the batch"
    )
  # Masked one by one: the difference of two infinities is NaN.
  log_probs = masking.where_counts(statistics.log_probs, mask)
  return jax.lax.stop_gradient(
    log_probs - masking.where_counts(statistics.teacher_log_probs, mask)
  )


def minillm(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  completion_ids: jax.Array,
  completion_mask: jax.Array,
  settings: MiniLLMSettings = MiniLLMSettings(),
  *,
  sample_mask: jax.Array | None = None,
  old_log_probs: jax.Array | None = None,
) -> dense.Loss:
  """Returns MiniLLM from logits.

    ℓₜ = KL(s‖t) + future_weight · log π_θ(yₜ|sₜ) · sg[Rₜ]

  with Rₜ of log s(yᵢ) − log t(yᵢ) at i > t. With the plain sum its gradient is,
  in expectation, that of KL between the distributions of whole completions.

  Args:
    student_logits, teacher_logits, completion_ids, completion_mask,
      sample_mask, old_log_probs: as for `distil.distil`.
    settings: of the objective.

  Returns:
    The loss; its costs are KL(s‖t).
  """
  statistics = dense.clean_statistics(
    student_logits,
    teacher_logits,
    completion_ids,
    completion_mask,
    _DIVERGENCE,
    sample_mask,
  )
  scores, future = token_losses.score_weights(
    sampled_reverse_kl(statistics, completion_mask),
    masking.counted_tokens(completion_mask, sample_mask),
    settings.credit,
  )
  per_token = token_losses.feedback_losses(
    statistics,
    completion_mask,
    scores,
    teacher_mask=masking.counted_tokens(completion_mask, sample_mask),
    importance=dense.importance(
      statistics,
      old_log_probs,
      completion_mask,
      clip=settings.importance_clip,
    ),
  )
  return dense.aggregate(
    statistics,
    per_token,
    future,
    completion_mask,
    sample_mask,
    aggregation=settings.aggregation,
  )
