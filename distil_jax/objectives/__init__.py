"""What is minimised: statistics of the tokens in, a loss for each token out.

An objective is a few pure functions over `ops`. Those of `token_losses` turn
token statistics into token losses and never average; how losses are averaged
is one of `ops.masking.aggregation_weights`, taken over the whole batch.
Training goes through them and `ops.unembedding`, which never holds the logits.
Those of `with_credit` and `without_credit` say the same from logits, for small
inputs.
"""

from distil_jax.objectives.dense import Loss
from distil_jax.objectives.distil import distil
from distil_jax.objectives.grpo import grpo
from distil_jax.objectives.minillm import minillm
from distil_jax.objectives.opsd import opsd
from distil_jax.objectives.sdpo import sdpo
from distil_jax.objectives.token_losses import (
  Baseline,
  Cost,
  LocalCost,
  feedback_losses,
  local_kind,
  policy_gradient_losses,
  sampled_reverse_kl,
  score_weights,
  score_weights_before,
  sft_losses,
  token_costs,
)

__all__ = [
  "Baseline",
  "Cost",
  "LocalCost",
  "Loss",
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
