import dataclasses
import json
import typing

import pytest

from distil_jax.config.model import CreateModelConfig, FamilyName
from distil_jax.generation.policy import resolve_directory
from distil_jax.models import hf_config
from distil_jax.models.families import FAMILIES
from distil_jax.training.setup import policies
from tests.golden.family_cases import CASES


@pytest.fixture
def settings():
  path = resolve_directory("embedded:calculator") / "config.json"
  return json.loads(path.read_text())


@pytest.mark.parametrize(
  ("key", "value"),
  [
    ("hidden_size", "96"),
    ("hidden_size", 96.0),
    ("hidden_size", None),
    ("num_hidden_layers", -1),
    ("num_attention_heads", 0),
    ("head_dim", True),
    ("rms_norm_eps", "1e-6"),
    ("rope_theta", 0),
    ("rope_scaling", "yarn"),
    ("rope_parameters", 5),
  ],
)
def test_wrong_values_are_named(settings, key, value):
  with pytest.raises(ValueError, match=f"{key} must be .*{value!r}"):
    hf_config.from_hugging_face({**settings, key: value})


WRONG = [
  ("llama_scaled", "model_type", "gpt2", "known: 'gemma3_text', 'llama'"),
  ("gemma3_linear", "model_type", "gemma3", "take a text model"),
  ("llama_scaled", "hidden_act", "gelu", "only 'silu' is"),
  ("llama_scaled", "rope_scaling", {"type": "dynamic"}, "known: default, li"),
  ("llama_scaled", "rope_scaling", {"rope_type": "llama3"}, "needs 'factor'"),
  (
    "llama_scaled",
    "rope_scaling",
    {"rope_type": "linear", "factor": -2},
    r"rope_scaling\.factor must be a positive number, got -2",
  ),
  (
    "llama_scaled",
    "rope_scaling",
    {
      "rope_type": "llama3",
      "factor": 2,
      "low_freq_factor": 4,
      "high_freq_factor": 1,
    },
    "high_freq_factor=1 must be above low_freq_factor=4",
  ),
  (
    "llama_scaled",
    "rope_scaling",
    {"rope_type": "default", "partial_rotary_factor": 0.5},
    "partial_rotary_factor=0.5 is not supported",
  ),
  ("llama_scaled", "num_key_value_heads", 3, "not a multiple of num_key_val"),
  ("llama_biases", "attention_bias", "yes", "must be true or false"),
  ("qwen2_plain", "rope_theta", None, "lacks 'rope_theta'"),
  ("mistral_window", "sliding_window", 0, "must be a positive integer, got 0"),
  ("mistral_window", "sliding_window", "all", "positive integer, got 'all'"),
  ("olmo2_grouped", "attention_bias", True, "attention_bias=True is not"),
  ("olmo3_plain", "layer_types", ["full_attention"], "must name 4 layers"),
  (
    "olmo3_plain",
    "layer_types",
    ["chunked_attention"] * 4,
    "'chunked_attention', which is not supported; known: full_attention",
  ),
  (
    "olmo3_layer_types",
    "rope_parameters",
    {
      "full_attention": {"rope_theta": 1.5},
      "sliding_attention": {"rope_type": "yarn", "factor": 2},
    },
    "rope_type='yarn' of sliding_attention is not supported",
  ),
  ("gemma3_linear", "final_logit_softcapping", 30.0, "only None is"),
  ("gemma3_linear", "use_bidirectional_attention", True, "only False is"),
  ("gemma3_two_periods", "sliding_window_pattern", 0, "positive integer"),
  ("qwen3_moe_plain", "num_experts_per_tok", 7, "=7 is more than num_experts"),
  ("qwen3_moe_plain", "mlp_only_layers", [0], r"only \[\] is"),
  ("qwen3_moe_plain", "decoder_sparse_step", 2, "only 1 is"),
  ("qwen3_moe_plain", "num_experts", "8", "must be a positive integer"),
  (
    "llama_scaled",
    "quantization_config",
    {"quant_method": "gptq", "bits": 4},
    "quantization_config=.*gptq.*quantized weights are not supported",
  ),
  ("llama_scaled", "partial_rotary_factor", 0.5, "only 1 is"),
  ("llama_scaled", "head_dim", 7, "head_dim=7 is odd"),
  (
    "llama_scaled",
    "rope_parameters",
    {"rope_theta": "1e4"},
    "rope_theta must be a positive number, got '1e4'",
  ),
  ("qwen2_plain", "max_window_layers", None, "a whole number, got None"),
]


@pytest.mark.parametrize(("name", "key", "value", "message"), WRONG)
def test_what_is_not_implemented_is_refused(name, key, value, message):
  with pytest.raises(ValueError, match=message):
    hf_config.from_hugging_face({**CASES[name], key: value})


def test_settings_that_published_files_leave_empty_or_out_are_read():
  def read(name, **changed):
    return hf_config.from_hugging_face({**CASES[name], **changed})

  plain = read("llama_scaled")
  assert plain == read(
    "llama_scaled", quantization_config=None, partial_rotary_factor=None
  )
  scaling = {"type": "linear", "rope_type": None, "factor": 2}
  assert read("llama_scaled", rope_scaling=scaling).rope_scaling.factor == 2
  # A window that the file does not name is the one of transformers.
  window = {"use_sliding_window": True, "max_window_layers": 0}
  no_size = {
    k: v for k, v in CASES["qwen2_plain"].items() if k != "sliding_window"
  }
  config = hf_config.from_hugging_face({**no_size, **window})
  assert set(config.windows) == {4096}
  # transformers reads no types of layers in a Mistral.
  types = ["full_attention"] * CASES["mistral_window"]["num_hidden_layers"]
  assert read("mistral_window", layer_types=types) == read("mistral_window")


@pytest.mark.parametrize("name", CASES)
def test_a_setting_that_is_missing_is_named(name):
  for key in ("vocab_size", "hidden_size", "num_attention_heads"):
    settings = {k: v for k, v in CASES[name].items() if k != key}
    with pytest.raises(ValueError, match=f"lacks '{key}'"):
      hf_config.from_hugging_face(settings)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_new_model_is_read_as_it_was_made(family):
  """Also by its `config.json`, in which nothing of it is lost."""
  settings = {"family": family, "num_layers": 5, "width": 32}
  if family in ("gemma3_text", "mistral", "olmo3"):
    settings["sliding_window"] = 7
  if family == "qwen3_moe":
    settings |= {"num_experts": 4, "num_experts_per_token": 2}
  section = CreateModelConfig(**settings)
  config = policies.new_network(section, vocab_size=300)
  written = hf_config.to_hugging_face(config, eos_ids=(1,), pad_id=0)
  again = hf_config.from_hugging_face(written)
  if family == "olmo3":  # which writes the base of both kinds of layers
    assert again.local_rope_theta == config.rope_theta
    again = dataclasses.replace(again, local_rope_theta=None)
  assert again == config


def test_the_config_knows_every_family():
  assert set(typing.get_args(FamilyName)) == FAMILIES.keys()


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"family": "qwen3", "sliding_window": 5}, "use one of gemma3_text"),
    ({"family": "llama", "num_experts": 4}, "are of family=qwen3_moe"),
    ({"family": "qwen3_moe"}, "from 1 to num_experts, got 0 of 0"),
    (
      {"family": "qwen3_moe", "num_experts": 2, "num_experts_per_token": 3},
      "got 3 of 2",
    ),
  ],
)
def test_a_new_model_has_what_its_family_has(settings, message):
  with pytest.raises(ValueError, match=message):
    CreateModelConfig(**settings)


def test_optional_values_may_be_null(settings):
  plain = {**settings, "head_dim": None, "num_key_value_heads": None}
  config = hf_config.from_hugging_face(plain)
  assert (config.head_size, config.num_kv_heads) == (24, 4)
