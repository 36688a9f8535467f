"""Adapters in PEFT's files.

`tests/golden/make_adapters.py` says what the golden files hold.
"""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from distil_jax.models import decoder, hf_adapter, hf_directory, layers, lora
from tests import networks
from tests.models import test_families
from tests.models.test_lora import hidden_states, with_adapters
from tests.paths import GOLDEN

FOLDER = GOLDEN / "adapters"
BASES = {"llama": "llama_biases", "qwen2": "qwen2_plain"}
WEIGHTS = "adapter_model.safetensors"


def read(folder, base):
  """An adapter of one of the families' golden models."""
  config, _, _ = test_families.load(base)
  found, _ = hf_adapter.read(folder, config)
  config = dataclasses.replace(config, lora=found)
  template = lora.split(decoder.make(config)[1])[1]
  return config, hf_adapter.load(folder, template, config)


@pytest.mark.parametrize("name", BASES)
def test_logits_are_those_of_peft(name):
  config, adapter = read(FOLDER / name, BASES[name])
  _, _, base = test_families.load(BASES[name])
  golden = np.load(FOLDER / name / "golden.npz")
  ids, mask = (jnp.asarray(golden[x]) for x in ("token_ids", "mask"))
  params = lora.join(base, adapter)
  graphdef, _ = decoder.make(config)
  found = hidden_states(graphdef, params, ids, mask) @ layers.unembedding(base)
  counted = golden["mask"] == 1
  np.testing.assert_allclose(
    found[counted], golden["logits"][counted], atol=1e-4
  )


@pytest.mark.parametrize("name", BASES)
def test_what_is_written_is_what_peft_wrote(name, tmp_path):
  config, adapter = read(FOLDER / name, BASES[name])
  base = hf_adapter.Base(f"tests/golden/families/{BASES[name]}")
  (tmp_path / "adapter_config.json").write_text("an earlier one")
  hf_adapter.save(tmp_path, adapter, config, base=base)
  assert {x.name for x in tmp_path.iterdir()} == {
    "adapter_config.json",
    WEIGHTS,
  }
  ours = safetensors.numpy.load_file(tmp_path / WEIGHTS)
  theirs = safetensors.numpy.load_file(FOLDER / name / WEIGHTS)
  assert ours.keys() == theirs.keys()
  for key, tensor in theirs.items():
    assert ours[key].dtype == np.float32
    np.testing.assert_array_equal(ours[key], tensor)
  written, golden = (
    json.loads((folder / "adapter_config.json").read_text())
    for folder in (tmp_path, FOLDER / name)
  )
  # PEFT names modules in full if it was told to take all of them.
  modules = {x.split(".")[-1] for x in golden.pop("target_modules")}
  assert set(written.pop("target_modules")) == modules
  assert written.items() <= golden.items()


def test_a_shorter_type_and_the_base(tmp_path):
  config, adapter = read(FOLDER / "llama", "llama_biases")
  config = dataclasses.replace(
    config, lora=dataclasses.replace(config.lora, alpha=2.5)
  )
  base = hf_adapter.Base("owner/name", "v1", "0123")
  hf_adapter.save(tmp_path, adapter, config, base=base, dtype="bfloat16")
  tensors = safetensors.numpy.load_file(tmp_path / WEIGHTS)
  assert {x.dtype for x in tensors.values()} == {jnp.dtype(jnp.bfloat16)}
  plain = dataclasses.replace(config, lora=None)
  assert hf_adapter.read(tmp_path, plain) == (config.lora, base)
  template = lora.split(decoder.make(config)[1])[1]
  again = hf_adapter.load(tmp_path, template, config)
  # The golden values are short.
  jax.tree.map(np.testing.assert_array_equal, again, adapter)


def test_each_element_goes_to_its_place(tmp_path):
  small = networks.network(num_layers=2)
  config, _, params = with_adapters(small.config, small.params)
  adapter = lora.split(params)[1]
  hf_adapter.save(tmp_path, adapter, config, base=hf_adapter.Base(None))
  theirs = safetensors.numpy.load_file(tmp_path / WEIGHTS)
  mine = {k: np.asarray(v[1]) for k, v in adapter["layers"].items()}
  heads, size, r, d, n, k, h, f = 4, 6, 2, 5, 3, 1, 4, 11

  def at(module, matrix, row, column):
    name = f"base_model.model.model.layers.1.{module}.lora_{matrix}.weight"
    return theirs[name][row, column]

  assert at("self_attn.q_proj", "A", r, d) == mine["query_lora_a"][d, r]
  assert (
    at("self_attn.q_proj", "B", n * size + h, r)
    == mine["query_lora_b"][r, n, h]
  )
  assert (
    at("self_attn.v_proj", "B", k * size + h, r)
    == mine["value_lora_b"][r, k, h]
  )
  assert (
    at("self_attn.o_proj", "A", r, n * size + h)
    == mine["output_lora_a"][n, h, r]
  )
  assert at("self_attn.o_proj", "B", d, r) == mine["output_lora_b"][r, d]
  assert at("mlp.up_proj", "B", f, r) == mine["up_lora_b"][r, f]
  assert at("mlp.down_proj", "A", r, f) == mine["down_lora_a"][f, r]
  assert len(theirs) == 2 * 7 * 2
  assert heads * size == mine["query_lora_b"][0].size


@pytest.fixture
def copied(tmp_path):
  """The golden adapter of llama, free to be damaged."""
  return shutil.copytree(FOLDER / "llama", tmp_path / "adapter")


def refusal(folder, base="llama_biases"):
  with pytest.raises(hf_directory.WeightsError) as caught:
    read(folder, base)
  return str(caught.value)


@pytest.mark.parametrize(
  ("key", "value", "cure"),
  [
    ("use_rslora", True, "lora_alpha times the square root of r"),
    ("use_dora", True, "merge_and_unload"),
    ("modules_to_save", ["lm_head"], "merge_and_unload"),
    ("bias", "lora_only", "merge_and_unload"),
    ("lora_bias", True, "only plain LoRA is read"),
    ("rank_pattern", {"q_proj": 4}, "only plain LoRA is read"),
    ("layers_to_transform", [0], "only plain LoRA is read"),
    ("target_parameters", ["mlp.experts.down_proj"], "only plain LoRA is read"),
    ("something_new", 1, "only plain LoRA is read"),
    ("init_lora_weights", "pissa", "path_initial_model_for_weight_conversion"),
    ("peft_type", "IA3", "only LoRA is read"),
    ("task_type", "SEQ_CLS", "only a language model"),
    ("fan_in_fan_out", True, "only linear layers"),
  ],
)
def test_other_kinds_are_refused_by_name(copied, key, value, cure):
  path = copied / "adapter_config.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
  said = refusal(copied)
  assert f"{key}={value!r} is not supported: " in said
  assert cure in said


@pytest.mark.parametrize(
  ("key", "value"), [("r", 0), ("r", "8"), ("lora_alpha", None)]
)
def test_sizes_must_be_numbers(copied, key, value):
  path = copied / "adapter_config.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
  assert f"{key}={value!r} must be a " in refusal(copied)


def test_adapters_of_another_base_are_refused():
  """Of other widths, of more layers, and of matrices that it has not."""
  said = refusal(FOLDER / "llama", "mistral_no_window")
  assert "is it of another base?" in said
  first = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
  assert f"mis-shaped {first}: found [24, 3], expected [40, 3]" in said
  said = refusal(FOLDER / "qwen2", "qwen2_window")
  assert "missing base_model.model.model.layers.2." in said
  said = refusal(FOLDER / "llama", "qwen3_moe_plain")
  assert "a qwen3_moe of 2 layers has no adapters, such as base_model." in said
  assert "for q_proj, k_proj, v_proj, o_proj of its layers" in said


def test_damaged_folders_are_refused(copied, tmp_path):
  tensors = safetensors.numpy.load_file(copied / WEIGHTS)
  name, tensor = next(iter(tensors.items()))
  extra = {**tensors, "base_model.model.lm_head.lora_A.weight": tensor}
  safetensors.numpy.save_file(extra, copied / WEIGHTS)
  assert "such as base_model.model.lm_head.lora_A.weight" in refusal(copied)
  wrong = {**tensors, name: tensor.astype(np.int32)}
  safetensors.numpy.save_file(wrong, copied / WEIGHTS)
  assert f"unreadable {name}: found type I32" in refusal(copied)
  (copied / WEIGHTS).write_bytes(b"\0" * 20)
  assert "no complete safetensors file" in refusal(copied)
  (copied / WEIGHTS).unlink()
  assert f"has no {WEIGHTS}" in refusal(copied)
  (copied / "adapter_config.json").write_text("{}")
  assert "has no peft_type" in refusal(copied)
  (copied / "adapter_config.json").unlink()
  assert "it holds no PEFT adapter" in refusal(copied)
