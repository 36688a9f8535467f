"""SDPO from logits, for small inputs (arXiv:2601.20802)."""

from typing import Literal

import jax

from distil_jax.objectives import dense
from distil_jax.objectives.dense import local_objective
from distil_jax.ops import masking
from distil_jax.ops.divergences import Divergence


def sdpo(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  completion_ids: jax.Array,
  completion_mask: jax.Array,
  *,
  alpha: float,
  top_k: int | None = None,
  top_k_of: Literal["student", "teacher"] = "student",
  tail: bool = True,
  old_log_probs: jax.Array | None = None,
  importance_clip: float | None = None,
  sample_mask: jax.Array | None = None,
  aggregation: masking.Aggregation = "token_mean",
) -> dense.Loss:
  """SDPO: a divergence between the two KLs at each token, no future credit.

  Args:
    student_logits, teacher_logits, completion_ids, completion_mask: see
      `distil`.
    alpha: in [0, 1], see `divergences.sdpo`.
    top_k, top_k_of, tail, old_log_probs, importance_clip, sample_mask,
      aggregation: see `distil`.

  Returns:
    the loss; its future costs are 0.
  """
  return local_objective(
    student_logits,
    teacher_logits,
    completion_ids,
    completion_mask,
    Divergence("sdpo", weight=alpha, top_k=top_k, top_k_of=top_k_of, tail=tail),
    old_log_probs=old_log_probs,
    importance_clip=importance_clip,
    sample_mask=sample_mask,
    aggregation=aggregation,
  )
