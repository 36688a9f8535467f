"""SDPO: a divergence between the two KLs, without credit (arXiv:2601.20802)."""

import dataclasses
from typing import Literal

import jax

from distil_jax.config.objectives import SDPOConfig
from distil_jax.objectives import base, dense, losses
from distil_jax.ops import masking
from distil_jax.ops.divergences import Divergence


@dataclasses.dataclass(frozen=True)
class SDPOSettings:
  """Settings of SDPO.

  Attributes:
    alpha: in [0, 1], see `divergences.sdpo`.
    top_k, top_k_of, tail: the support, see `divergences.Divergence`.
    importance_clip: upper limit of the off-policy ratio; None means none.
    aggregation: how token losses are averaged over the batch.
  """

  alpha: float
  top_k: int | None = None
  top_k_of: Literal["student", "teacher"] = "student"
  tail: bool = True
  importance_clip: float | None = None
  aggregation: masking.Aggregation = "token_mean"

  @property
  def divergence(self) -> Divergence:
    return Divergence(
      "sdpo",
      weight=self.alpha,
      top_k=self.top_k,
      top_k_of=self.top_k_of,
      tail=self.tail,
    )


def build(
  section: SDPOConfig, forward: base.ForwardPasses, layout: base.BatchLayout
) -> base.Objective:
  """Builds the objective from its section of a config."""
  settings = base.read_settings(SDPOSettings, section)
  return losses.build_local_objective(
    settings,
    forward,
    layout,
    max_teacher_entropy=section.max_teacher_entropy,
  )


def sdpo(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  completion_ids: jax.Array,
  completion_mask: jax.Array,
  settings: SDPOSettings,
  *,
  sample_mask: jax.Array | None = None,
  old_log_probs: jax.Array | None = None,
) -> dense.Loss:
  """Returns SDPO from logits.

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
