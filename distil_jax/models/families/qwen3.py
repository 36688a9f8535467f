"""Qwen3, dense: a norm on each head's queries and keys."""

from distil_jax.models.families import base

FAMILY = base.Family(
  model_type="qwen3",
  architecture="Qwen3ForCausalLM",
  tensors={
    **base.ENDS,
    **base.ATTENTION,
    **base.QUERY_KEY_NORMS,
    **base.MLP,
    **base.NORMS_BEFORE,
  },
  traits=base.QWEN3_TRAITS,
  fixed=base.QWEN3_FIXED,
)
