"""OPSD: a generalised Jensen-Shannon divergence (arXiv:2601.18734)."""

import dataclasses
from typing import Literal

import jax

from distil_jax.config.objectives import OPSDConfig
from distil_jax.objectives import base, dense, losses
from distil_jax.ops import masking
from distil_jax.ops.divergences import Divergence


@dataclasses.dataclass(frozen=True)
class OPSDSettings:
  """Settings of OPSD.

  Attributes:
    beta: in [0, 1], see `divergences.opsd`.
    top_k, top_k_of, tail: the support, see `divergences.Divergence`.
    token_clip: upper limit of each summand of the sum over the vocabulary,
      nats; None means none.
    temperature: of student and teacher in the cost; log π_θ is at 1.
    importance_clip: upper limit of the off-policy ratio; None means none.
    aggregation: how token losses are averaged over the batch.
  """

  beta: float
  top_k: int | None = None
  top_k_of: Literal["student", "teacher"] = "teacher"
  tail: bool = False
  token_clip: float | None = None
  temperature: float = 1.0
  importance_clip: float | None = None
  aggregation: masking.Aggregation = "token_mean"

  @property
  def divergence(self) -> Divergence:
    return Divergence(
      "opsd",
      weight=self.beta,
      token_clip=self.token_clip,
      top_k=self.top_k,
      top_k_of=self.top_k_of,
      tail=self.tail,
      temperature=self.temperature,
    )


def build(
  section: OPSDConfig, forward: base.ForwardPasses, layout: base.BatchLayout
) -> base.Objective:
  """Builds the objective from its section of a config."""
  settings = base.read_settings(OPSDSettings, section)
  return losses.build_local_objective(
    settings,
    forward,
    layout,
    max_teacher_entropy=section.max_teacher_entropy,
  )


def opsd(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  completion_ids: jax.Array,
  completion_mask: jax.Array,
  settings: OPSDSettings,
  *,
  sample_mask: jax.Array | None = None,
  old_log_probs: jax.Array | None = None,
) -> dense.Loss:
  """Returns OPSD from logits.

  Args:
    student_logits, teacher_logits, completion_ids, completion_mask,
      sample_mask, old_log_probs: as for `distil.distil`.
    settings: of the objective.

  Returns:
    The loss; its future costs are 0.
  """
  return dense.local_objective(
    student_logits,
    teacher_logits,
    completion_ids,
    completion_mask,
    settings,
    sample_mask=sample_mask,
    old_log_probs=old_log_probs,
  )
