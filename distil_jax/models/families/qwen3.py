"""Names and layouts of Qwen3's parameters in Hugging Face files."""

from distil_jax.models.hf_layout import Layout, Path

EMBEDDING = ("embedding",)
UNEMBEDDING = ("unembedding",)
_LAYER = "model.layers.{}."
LAYOUTS: dict[Path, Layout] = {
  EMBEDDING: Layout("model.embed_tokens.weight"),
  ("layers", "attention_norm"): Layout(_LAYER + "input_layernorm.weight"),
  ("layers", "query"): Layout(_LAYER + "self_attn.q_proj.weight", 1),
  ("layers", "key"): Layout(_LAYER + "self_attn.k_proj.weight", 1),
  ("layers", "value"): Layout(_LAYER + "self_attn.v_proj.weight", 1),
  ("layers", "query_norm"): Layout(_LAYER + "self_attn.q_norm.weight"),
  ("layers", "key_norm"): Layout(_LAYER + "self_attn.k_norm.weight"),
  ("layers", "output"): Layout(_LAYER + "self_attn.o_proj.weight", 2),
  ("layers", "mlp_norm"): Layout(_LAYER + "post_attention_layernorm.weight"),
  ("layers", "gate"): Layout(_LAYER + "mlp.gate_proj.weight", 1),
  ("layers", "up"): Layout(_LAYER + "mlp.up_proj.weight", 1),
  ("layers", "down"): Layout(_LAYER + "mlp.down_proj.weight", 1),
  ("norm",): Layout("model.norm.weight"),
  UNEMBEDDING: Layout("lm_head.weight", 1),
}
HEAD = LAYOUTS[UNEMBEDDING].name
