"""OPSD from logits, for small inputs (arXiv:2601.18734)."""

from typing import Literal

import jax

from distil_jax.objectives import dense
from distil_jax.objectives.dense import local_objective
from distil_jax.ops import masking
from distil_jax.ops.divergences import Divergence


def opsd(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  completion_ids: jax.Array,
  completion_mask: jax.Array,
  *,
  beta: float,
  top_k: int | None = None,
  top_k_of: Literal["student", "teacher"] = "teacher",
  tail: bool = False,
  token_clip: float | None = None,
  temperature: float = 1.0,
  sample_mask: jax.Array | None = None,
  aggregation: masking.Aggregation = "token_mean",
) -> dense.Loss:
  """OPSD: a generalised Jensen-Shannon divergence, no future credit.

  Args:
    student_logits, teacher_logits, completion_ids, completion_mask: see
      `distil`.
    beta: in [0, 1], see `divergences.opsd`.
    top_k, top_k_of, tail: see `distil`.
    token_clip: upper limit of each summand of the sum over the vocabulary.
    temperature: of student and teacher in the cost; log π_θ is at 1.
    sample_mask, aggregation: see `distil`.

  Returns:
    the loss; its future costs are 0.
  """
  divergence = Divergence(
    "opsd",
    weight=beta,
    token_clip=token_clip,
    top_k=top_k,
    top_k_of=top_k_of,
    tail=tail,
    temperature=temperature,
  )
  return local_objective(
    student_logits,
    teacher_logits,
    completion_ids,
    completion_mask,
    divergence,
    sample_mask=sample_mask,
    aggregation=aggregation,
  )
