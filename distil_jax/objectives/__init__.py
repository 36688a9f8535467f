"""Losses: a file for each objective, from token statistics to a gradient.

An objective's file reads its section of a config (`build`), computes its token
losses, and states the same from logits, for small inputs (`distil`, `sdpo`).
Training reads statistics through `ops.fused_statistics`, which never holds all
logits. Token losses are never averaged inside: averages are weights from
`ops.masking.aggregation_weights`, taken over the whole batch.
"""

from distil_jax.objectives.dense import Loss
from distil_jax.objectives.distil import (
  Cost,
  DistilSettings,
  LocalCost,
  distil,
  local_kind,
  token_costs,
)
from distil_jax.objectives.grpo import (
  GRPOSettings,
  grpo,
  policy_gradient_losses,
)
from distil_jax.objectives.minillm import (
  MiniLLMSettings,
  minillm,
  sampled_reverse_kl,
)
from distil_jax.objectives.opsd import OPSDSettings, opsd
from distil_jax.objectives.sdpo import SDPOSettings, sdpo
from distil_jax.objectives.sft import sft_losses
from distil_jax.objectives.token_losses import (
  Baseline,
  CreditSettings,
  feedback_losses,
  score_weights,
  score_weights_before,
)

__all__ = [
  "Baseline",
  "Cost",
  "CreditSettings",
  "DistilSettings",
  "GRPOSettings",
  "LocalCost",
  "Loss",
  "MiniLLMSettings",
  "OPSDSettings",
  "SDPOSettings",
  "distil",
  "feedback_losses",
  "grpo",
  "local_kind",
  "minillm",
  "opsd",
  "policy_gradient_losses",
  "sampled_reverse_kl",
  "score_weights",
  "score_weights_before",
  "sdpo",
  "sft_losses",
  "token_costs",
]
