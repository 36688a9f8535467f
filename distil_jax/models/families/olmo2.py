"""OLMo 2: norms after the blocks, and on the queries and keys of all heads."""

from distil_jax.models.families import base

FAMILY = base.Family(
  model_type="olmo2",
  architecture="Olmo2ForCausalLM",
  tensors=base.OLMO_TENSORS,
  traits=base.OLMO_TRAITS,
  fixed=base.OLMO_FIXED,
  defaults={"rms_norm_eps": 1e-5},
)
