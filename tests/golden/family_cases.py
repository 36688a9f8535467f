"""Tiny models of each family: settings of `config.json`, three of each.

`make_families.py` makes golden files of them, and tests make networks of the
same forms.
"""

from typing import Any

_SIZES = {
  "vocab_size": 64,
  "hidden_size": 24,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "head_dim": 8,
  "intermediate_size": 40,
  "rms_norm_eps": 1e-5,
  "max_position_embeddings": 128,
  "tie_word_embeddings": True,
  "hidden_act": "silu",
}
_LLAMA3 = {
  "rope_type": "llama3",
  "factor": 4.0,
  "low_freq_factor": 1.0,
  "high_freq_factor": 4.0,
  "original_max_position_embeddings": 32,
}
_YARN = {
  "rope_type": "yarn",
  "factor": 4.0,
  "original_max_position_embeddings": 32,
}


def _case(kind: str, **changed: Any) -> dict[str, Any]:
  return {"model_type": kind, **_SIZES, **changed}


CASES: dict[str, dict[str, Any]] = {
  # SmolLM2 is a Llama without scaling; Llama 3.1 and later scale.
  "llama_scaled": _case("llama", rope_theta=500.0, rope_scaling=_LLAMA3),
  "llama_biases": _case(
    "llama",
    rope_theta=10000.0,
    attention_bias=True,
    mlp_bias=True,
    tie_word_embeddings=False,
    num_key_value_heads=4,
    head_dim=6,
  ),
  "llama_linear": _case(
    "llama",
    hidden_size=32,
    num_key_value_heads=1,
    num_hidden_layers=3,
    # The form of transformers 5.
    rope_parameters={"rope_type": "linear", "factor": 3.0, "rope_theta": 100.0},
  ),
  "qwen2_plain": _case("qwen2", rope_theta=1000.0, use_sliding_window=False),
  "qwen2_window": _case(
    "qwen2",
    num_hidden_layers=3,
    use_sliding_window=True,
    sliding_window=5,
    max_window_layers=1,
    rope_theta=1000.0,
    tie_word_embeddings=False,
  ),
  "qwen2_yarn": _case(
    "qwen2", num_key_value_heads=1, rope_theta=1000.0, rope_scaling=_YARN
  ),
  "mistral_window": _case("mistral", rope_theta=1000.0, sliding_window=6),
  "mistral_no_window": _case(
    "mistral",
    rope_theta=1000.0,
    sliding_window=None,
    head_dim=10,
    tie_word_embeddings=False,
  ),
  "mistral_one_kv_head": _case(
    "mistral",
    rope_theta=1000.0,
    sliding_window=1000,
    num_key_value_heads=1,
    num_hidden_layers=3,
  ),
  "olmo2_grouped": _case("olmo2", rope_theta=1000.0),
  "olmo2_full_heads": _case(
    "olmo2",
    rope_theta=1000.0,
    num_key_value_heads=4,
    tie_word_embeddings=False,
  ),
  "olmo2_one_kv_head": _case(
    "olmo2",
    hidden_size=32,
    num_key_value_heads=1,
    num_hidden_layers=3,
    rope_theta=1000.0,
  ),
  # Published files leave out the types of layers. Five layers are a period of
  # four and one more.
  "olmo3_yarn": _case(
    "olmo3",
    num_hidden_layers=5,
    sliding_window=5,
    rope_theta=500000.0,
    rope_scaling=_YARN,
  ),
  "olmo3_plain": _case(
    "olmo3",
    num_hidden_layers=4,
    sliding_window=7,
    rope_theta=500000.0,
    num_key_value_heads=4,
    tie_word_embeddings=False,
  ),
  "olmo3_layer_types": _case(
    "olmo3",
    num_hidden_layers=3,
    layer_types=["full_attention", "sliding_attention", "full_attention"],
    sliding_window=4,
    rope_parameters={
      "full_attention": {**_YARN, "attention_factor": 1.2, "rope_theta": 300.0},
      "sliding_attention": {"rope_type": "default", "rope_theta": 200.0},
    },
  ),
  "gemma3_two_periods": _case(
    "gemma3_text",
    num_hidden_layers=8,
    sliding_window=5,
    rope_theta=1000.0,
    rope_local_base_freq=50.0,
    query_pre_attn_scalar=8,
  ),
  "gemma3_layer_types": _case(
    "gemma3_text",
    num_hidden_layers=2,
    layer_types=["sliding_attention", "full_attention"],
    sliding_window=6,
    rope_theta=1000.0,
    rope_local_base_freq=50.0,
    query_pre_attn_scalar=13,
    num_key_value_heads=1,
  ),
  "gemma3_linear": _case(
    "gemma3_text",
    num_hidden_layers=3,
    layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    sliding_window=9,
    query_pre_attn_scalar=8,
    rope_parameters={
      "full_attention": {
        "rope_type": "linear",
        "factor": 4.0,
        "rope_theta": 1000.0,
      },
      "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
    },
  ),
  "qwen3_moe_normalized": _case(
    "qwen3_moe",
    num_experts=4,
    num_experts_per_tok=2,
    moe_intermediate_size=20,
    norm_topk_prob=True,
    rope_theta=1000.0,
  ),
  "qwen3_moe_plain": _case(
    "qwen3_moe",
    num_experts=6,
    num_experts_per_tok=3,
    moe_intermediate_size=12,
    norm_topk_prob=False,
    tie_word_embeddings=False,
    rope_theta=1000.0,
  ),
  "qwen3_moe_one_expert": _case(
    "qwen3_moe",
    num_hidden_layers=3,
    num_experts=3,
    num_experts_per_tok=1,
    moe_intermediate_size=16,
    rope_theta=1000.0,
  ),
}
for _settings in CASES.values():
  if _settings["model_type"] == "gemma3_text":
    _settings["hidden_activation"] = "gelu_pytorch_tanh"
    del _settings["hidden_act"]
