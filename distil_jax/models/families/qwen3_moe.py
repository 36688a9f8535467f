"""Qwen3-MoE: Qwen3 with a mixture of experts in place of the MLP."""

from typing import Any

from distil_jax.models.decoder_config import DecoderConfig
from distil_jax.models.families import base


def _read(settings: base.Settings) -> dict[str, Any]:
  return {
    "num_experts": settings["num_experts"],
    "num_experts_per_token": settings["num_experts_per_tok"],
    "mlp_size": settings["moe_intermediate_size"],
    "normalizes_experts": bool(settings.get("norm_topk_prob", False)),
  }


def _write(config: DecoderConfig) -> dict[str, Any]:
  return {
    "num_experts": config.num_experts,
    "num_experts_per_tok": config.num_experts_per_token,
    "moe_intermediate_size": config.mlp_size,
    "norm_topk_prob": config.normalizes_experts,
  }


FAMILY = base.Family(
  model_type="qwen3_moe",
  architecture="Qwen3MoeForCausalLM",
  tensors={
    **base.ENDS,
    **base.ATTENTION,
    **base.QUERY_KEY_NORMS,
    **base.EXPERTS,
    **base.NORMS_BEFORE,
  },
  traits=base.QWEN3_TRAITS,
  # Some layers with one MLP among those with experts are not implemented.
  fixed={**base.QWEN3_FIXED, "decoder_sparse_step": 1, "mlp_only_layers": []},
  read=_read,
  write=_write,
)
