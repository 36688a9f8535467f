import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from distil_jax.models import hf_config, hf_directory, hf_export, hf_weights
from distil_jax.models.decoder_config import DecoderConfig
from tests.paths import GOLDEN

L, D, F, N, K, H, V = 3, 16, 40, 4, 2, 6, 24


def network(*, tie_embeddings=True):
  return DecoderConfig(
    vocab_size=V,
    width=D,
    num_layers=L,
    num_heads=N,
    num_kv_heads=K,
    head_size=H,
    mlp_size=F,
    tie_embeddings=tie_embeddings,
    rope_theta=100.0,
  )


def config_json(**changed):
  return hf_config.to_hugging_face(network(**changed), eos_ids=(1,), pad_id=0)


CONFIG = config_json()


def template(*, tie_embeddings=True, dtype=jnp.float32, place=lambda _: None):
  layers = {
    "attention_norm": (L, D),
    "query": (L, D, N, H),
    "key": (L, D, K, H),
    "value": (L, D, K, H),
    "query_norm": (L, H),
    "key_norm": (L, H),
    "output": (L, N, H, D),
    "mlp_norm": (L, D),
    "gate": (L, D, F),
    "up": (L, D, F),
    "down": (L, F, D),
  }
  shapes = {"embedding": (V, D), "layers": layers, "norm": (D,)}
  if not tie_embeddings:
    shapes["unembedding"] = (D, V)
  return jax.tree.map(
    lambda shape: jax.ShapeDtypeStruct(shape, dtype, sharding=place(shape)),
    shapes,
    is_leaf=lambda leaf: isinstance(leaf, tuple),
  )


def random_params(**settings):
  random = np.random.default_rng(0)
  return jax.tree.map(
    lambda leaf: jnp.asarray(random.normal(size=leaf.shape), leaf.dtype),
    template(**settings),
  )


def tensors_of(directory):
  """Every tensor of a checkpoint, read without the code under test."""
  tensors = {}
  for path in directory.glob("*.safetensors"):
    tensors |= safetensors.numpy.load_file(path)
  return tensors


def assert_equal(tree, other):
  assert jax.tree.structure(tree) == jax.tree.structure(other)
  for first, second in zip(
    jax.tree.leaves(tree), jax.tree.leaves(other), strict=True
  ):
    assert first.dtype == second.dtype
    np.testing.assert_array_equal(np.asarray(first), np.asarray(second))


@pytest.fixture
def saved(tmp_path):
  """A tied checkpoint, free to be damaged."""
  hf_export.save(
    tmp_path / "model", random_params(), network(), config_json=CONFIG
  )
  return tmp_path / "model"


def rewrite(directory, change):
  """Applies `change` to the tensors of a checkpoint in one file."""
  tensors = tensors_of(directory)
  change(tensors)
  safetensors.numpy.save_file(tensors, directory / "model.safetensors")


def test_each_element_goes_to_its_place(tmp_path):
  params = random_params(tie_embeddings=False)
  config = config_json(tie_embeddings=False)
  untied = network(tie_embeddings=False)
  hf_export.save(tmp_path, params, untied, config_json=config)
  theirs = tensors_of(tmp_path)
  layer = {
    name: np.asarray(value[1]) for name, value in params["layers"].items()
  }
  prefix = "model.layers.1."
  d, n, k, h, f, v = 5, 3, 1, 4, 33, 17

  def at(name, row, column):
    return theirs[f"{prefix}{name}.weight"][row, column]

  assert at("self_attn.q_proj", n * H + h, d) == layer["query"][d, n, h]
  assert at("self_attn.k_proj", k * H + h, d) == layer["key"][d, k, h]
  assert at("self_attn.v_proj", k * H + h, d) == layer["value"][d, k, h]
  assert at("self_attn.o_proj", d, n * H + h) == layer["output"][n, h, d]
  assert at("mlp.gate_proj", f, d) == layer["gate"][d, f]
  assert at("mlp.up_proj", f, d) == layer["up"][d, f]
  assert at("mlp.down_proj", d, f) == layer["down"][f, d]
  for name, norm in {
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "mlp_norm",
    "self_attn.q_norm": "query_norm",
    "self_attn.k_norm": "key_norm",
  }.items():
    np.testing.assert_array_equal(theirs[f"{prefix}{name}.weight"], layer[norm])
  np.testing.assert_array_equal(theirs["model.norm.weight"], params["norm"])
  embedding, head = (
    theirs["model.embed_tokens.weight"],
    theirs["lm_head.weight"],
  )
  np.testing.assert_array_equal(embedding, params["embedding"])
  assert head[v, d] == params["unembedding"][d, v]


@pytest.mark.parametrize("tie_embeddings", [True, False])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("max_shard_bytes", [10**9, 4000])
def test_round_trip_is_exact(tmp_path, tie_embeddings, dtype, max_shard_bytes):
  settings = {"tie_embeddings": tie_embeddings, "dtype": dtype}
  params = random_params(**settings)
  hf_export.save(
    tmp_path,
    params,
    network(tie_embeddings=tie_embeddings),
    config_json={
      **config_json(tie_embeddings=tie_embeddings),
      "torch_dtype": "?",
    },
    max_shard_bytes=max_shard_bytes,
  )
  files = {path.name for path in tmp_path.iterdir()}
  if max_shard_bytes == 10**9:
    assert files == {"model.safetensors", "config.json"}
  else:
    assert {"model.safetensors.index.json", "config.json"} < files
    shards = list(tmp_path.glob("*.safetensors"))
    assert len(shards) == len(files) - 2 > 2
    sizes = [
      sum(t.nbytes for t in safetensors.numpy.load_file(s).values())
      for s in shards
    ]
    assert max(sizes) <= max_shard_bytes
    assert total_size(tmp_path) == sum(sizes)
  loaded = hf_weights.load(
    tmp_path, template(**settings), network(tie_embeddings=tie_embeddings)
  )
  assert_equal(loaded, params)
  assert hf_directory.read_config(tmp_path) == {
    **config_json(tie_embeddings=tie_embeddings),
    "dtype": jnp.dtype(dtype).name,
  }


def total_size(directory):
  index = json.loads((directory / "model.safetensors.index.json").read_text())
  return index["metadata"]["total_size"]


@pytest.mark.parametrize("max_shard_bytes", [10**9, 4000])
def test_saves_in_another_type(tmp_path, max_shard_bytes):
  params = random_params()
  hf_export.save(
    tmp_path,
    params,
    network(),
    config_json=CONFIG,
    max_shard_bytes=max_shard_bytes,
    dtype="bfloat16",
  )
  assert hf_directory.read_config(tmp_path)["dtype"] == "bfloat16"
  assert all(x.dtype == jnp.bfloat16 for x in tensors_of(tmp_path).values())
  loaded = hf_weights.load(tmp_path, template(dtype=jnp.bfloat16), network())
  rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
  assert_equal(loaded, rounded)


def test_saves_what_transformers_has_saved(tmp_path):
  """Same names, shapes, types and values as a file of transformers' own."""
  source = GOLDEN / "untied_bfloat16_both_sides"
  tensors = tensors_of(source)
  config = hf_directory.read_config(source)
  shapes = golden_template(config)
  theirs = hf_config.from_hugging_face(config)
  params = hf_weights.load(source, shapes, theirs)
  hf_export.save(tmp_path, params, theirs, config_json=config)
  again = tensors_of(tmp_path)
  assert again.keys() == tensors.keys()
  for name, tensor in tensors.items():
    assert again[name].dtype == tensor.dtype
    np.testing.assert_array_equal(again[name], tensor)
  with safetensors.safe_open(tmp_path / "model.safetensors", "numpy") as file:
    assert file.metadata() == {"format": "pt"}
  assert hf_directory.read_config(tmp_path) == config


def golden_template(config):
  """Template of the golden case, whose sizes differ from those here."""
  sizes = {
    L: config["num_hidden_layers"],
    D: config["hidden_size"],
    F: config["intermediate_size"],
    N: config["num_attention_heads"],
    K: config["num_key_value_heads"],
    H: config["head_dim"],
    V: config["vocab_size"],
  }
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(
      tuple(sizes[size] for size in leaf.shape), jnp.dtype(config["dtype"])
    ),
    template(tie_embeddings=config["tie_word_embeddings"]),
  )


@pytest.mark.parametrize(
  ("on_disk", "wanted"),
  [
    (jnp.bfloat16, jnp.float32),
    (jnp.float16, jnp.float32),
    (jnp.float32, jnp.bfloat16),
    (jnp.float16, jnp.bfloat16),
  ],
)
def test_casts_to_the_template(tmp_path, on_disk, wanted):
  params = random_params(dtype=on_disk)
  hf_export.save(tmp_path, params, network(), config_json=CONFIG)
  loaded = hf_weights.load(tmp_path, template(dtype=wanted), network())
  assert_equal(loaded, jax.tree.map(lambda x: x.astype(wanted), params))


def test_places_by_the_sharding_of_the_template_and_gathers_again(tmp_path):
  count = jax.device_count()
  mesh = jax.make_mesh((count,), ("x",), axis_types=(AxisType.Auto,))

  def place(shape):
    axes = ["x" if size % count == 0 else None for size in shape]
    first = axes.index("x") if "x" in axes else len(axes)
    spec = [axis if i == first else None for i, axis in enumerate(axes)]
    return NamedSharding(mesh, PartitionSpec(*spec))

  params = random_params()
  hf_export.save(tmp_path / "first", params, network(), config_json=CONFIG)
  shapes = template(place=place)
  loaded = hf_weights.load(tmp_path / "first", shapes, network())
  assert_equal(loaded, params)
  for leaf, wanted in zip(
    jax.tree.leaves(loaded), jax.tree.leaves(shapes), strict=True
  ):
    assert leaf.sharding == wanted.sharding
  gate = loaded["layers"]["gate"]
  cut = int(np.argmax([size % count == 0 for size in gate.shape]))
  assert gate.addressable_shards[0].data.shape[cut] == gate.shape[cut] // count
  hf_export.save(tmp_path / "second", loaded, network(), config_json=CONFIG)
  first, second = (
    (tmp_path / name / "model.safetensors").read_bytes()
    for name in ("first", "second")
  )
  assert first == second


def test_lists_every_tensor_that_does_not_fit(saved):
  def change(tensors):
    del tensors["model.norm.weight"]
    del tensors["model.layers.2.mlp.up_proj.weight"]
    tensors["model.layers.0.self_attn.q_proj.bias"] = np.zeros(24, np.float32)
    tensors["model.layers.1.self_attn.k_norm.weight"] = np.ones(5, np.float32)
    tensors["model.layers.1.mlp.down_proj.weight"] = np.zeros((D, F), np.int8)

  rewrite(saved, change)
  with pytest.raises(hf_directory.WeightsError) as caught:
    hf_weights.load(saved, template(), network())
  head, *lines = str(caught.value).splitlines()
  assert str(saved) in head
  layers = "model.layers."
  assert sorted(line.strip() for line in lines) == [
    f"extra {layers}0.self_attn.q_proj.bias: found [24], expected none",
    f"mis-shaped {layers}1.self_attn.k_norm.weight: found [5], expected [6]",
    f"missing {layers}2.mlp.up_proj.weight: expected [40, 16]",
    "missing model.norm.weight: expected [16]",
    f"unreadable {layers}1.mlp.down_proj.weight: found type I8, expected one "
    "of BF16, F16, F32",
  ]


@pytest.mark.parametrize(
  ("old", "new", "said"),
  [
    ("", "language_model.", "begin with 'language_model.' where '' is expec"),
    ("model.", "", "begin with '' where 'model.' is expected"),
    ("model.", "backbone.", "begin with 'backbone.' where 'model.' is expec"),
  ],
)
def test_another_prefix_is_guessed(saved, old, new, said):
  def change(tensors):
    for name in list(tensors):
      tensors[new + name.removeprefix(old)] = tensors.pop(name)

  rewrite(saved, change)
  with pytest.raises(hf_directory.WeightsError) as caught:
    hf_weights.load(saved, template(), network())
  message = str(caught.value)
  assert said in message
  expected, found = message.splitlines()[1:3]
  assert "model.layers.0." in expected
  assert new + "model.embed_tokens.weight".removeprefix(old) in found
  assert found.count("weight") == 3
  assert "in all)" in found


def test_transposed_projection_is_mis_shaped(saved):
  name = "model.layers.0.mlp.gate_proj.weight"
  rewrite(
    saved,
    lambda tensors: tensors.update({name: np.zeros((D, F), np.float32)}),
  )
  with pytest.raises(
    hf_directory.WeightsError,
    match=r"gate_proj.*found \[16, 40\], expected \[40, 16",
  ):
    hf_weights.load(saved, template(), network())


def test_tied_checkpoint_may_repeat_the_embedding(saved):
  def repeat(tensors):
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()

  rewrite(saved, repeat)
  loaded = hf_weights.load(saved, template(), network())
  assert_equal(loaded, random_params())

  def differ(tensors):
    tensors["lm_head.weight"][3, 2] += 1

  rewrite(saved, differ)
  with pytest.raises(
    hf_directory.WeightsError, match=r"lm_head\.weight.*differs"
  ):
    hf_weights.load(saved, template(), network())


def test_untied_model_needs_its_own_unembedding(saved):
  with pytest.raises(
    hf_directory.WeightsError,
    match=r"missing lm_head\.weight: expected \[24, 16\]",
  ):
    hf_weights.load(
      saved, template(tie_embeddings=False), network(tie_embeddings=False)
    )


def test_rotary_buffers_are_ignored(saved):
  name = "model.layers.0.self_attn.rotary_emb.inv_freq"
  rewrite(saved, lambda t: t.update({name: np.ones(3, np.float32)}))
  loaded = hf_weights.load(saved, template(), network())
  assert_equal(loaded, random_params())


@pytest.mark.parametrize("kept", [0, 7, 300, -1])
def test_truncated_file(saved, kept):
  path = saved / "model.safetensors"
  path.write_bytes(path.read_bytes()[:kept])
  with pytest.raises(
    hf_directory.WeightsError, match=r"model\.safetensors is no complete"
  ):
    hf_weights.load(saved, template(), network())


def test_text_in_place_of_weights(saved):
  """What is left where a large file was never fetched."""
  (saved / "model.safetensors").write_text("version https://git-lfs\n" * 9)
  with pytest.raises(
    hf_directory.WeightsError, match="is no complete safetensors"
  ):
    hf_weights.load(saved, template(), network())


@pytest.fixture
def sharded(tmp_path):
  hf_export.save(
    tmp_path / "model",
    random_params(),
    network(),
    config_json=CONFIG,
    max_shard_bytes=10000,
  )
  return tmp_path / "model"


def test_missing_shard_is_named(sharded):
  gone = sorted(sharded.glob("*.safetensors"))[1]
  gone.unlink()
  with pytest.raises(hf_directory.WeightsError, match=gone.name):
    hf_weights.load(sharded, template(), network())


def test_tensor_in_two_shards(sharded):
  first, second = sorted(sharded.glob("*.safetensors"))[:2]
  shutil.copy(first, second)
  with pytest.raises(
    hf_directory.WeightsError, match=f"{second.name} repeats model"
  ):
    hf_weights.load(sharded, template(), network())


@pytest.mark.parametrize(
  "text", ["{}", "[]", "{", '{"weight_map": {"a": 1}}', '{"weight_map": []}']
)
def test_damaged_index(sharded, text):
  (sharded / "model.safetensors.index.json").write_text(text)
  with pytest.raises(
    hf_directory.WeightsError, match=r"model\.safetensors\.index\.json"
  ):
    hf_weights.load(sharded, template(), network())


def test_no_weights(tmp_path):
  with pytest.raises(hf_directory.WeightsError, match="no model directory"):
    hf_weights.load(tmp_path / "absent", template(), network())
  (tmp_path / "pytorch_model.bin").write_bytes(b"")
  with pytest.raises(hf_directory.WeightsError, match="save the model again"):
    hf_weights.load(tmp_path, template(), network())


def test_template_must_be_that_of_the_model(saved):
  unknown = {**template(), "bias": jax.ShapeDtypeStruct((1,), jnp.float32)}
  with pytest.raises(hf_directory.WeightsError, match=r"unknown \['bias'\]"):
    hf_weights.load(saved, unknown, network())
  with pytest.raises(
    hf_directory.WeightsError, match=r"missing \['unembedding'\]"
  ):
    hf_weights.load(saved, template(), network(tie_embeddings=False))


def test_read_config(tmp_path):
  with pytest.raises(hf_directory.WeightsError, match="no model directory"):
    hf_directory.read_config(tmp_path / "absent")
  with pytest.raises(hf_directory.WeightsError, match=r"has no config\.json"):
    hf_directory.read_config(tmp_path)
  for content in (b"{", b"", b"[1]", b"\xff\xfe"):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(hf_directory.WeightsError, match=r"config\.json"):
      hf_directory.read_config(tmp_path)
  (tmp_path / "config.json").write_text('{"hidden_size": 8}')
  assert hf_directory.read_config(tmp_path) == {"hidden_size": 8}


def test_saving_again_replaces_all_weights_and_nothing_else(sharded):
  (sharded / "tokenizer.json").write_text("{}")
  params = jax.tree.map(lambda x: x + 1, random_params())
  hf_export.save(sharded, params, network(), config_json=CONFIG)
  assert {path.name for path in sharded.iterdir()} == {
    "config.json",
    "model.safetensors",
    "tokenizer.json",
  }
  assert_equal(hf_weights.load(sharded, template(), network()), params)


def test_failed_save_leaves_what_was_there(saved):
  before = {path.name: path.read_bytes() for path in saved.iterdir()}
  other = jax.tree.map(lambda x: x + 1, random_params())
  with pytest.raises(TypeError):  # found only after the weights are written
    hf_export.save(
      saved, other, network(), config_json={**CONFIG, "path": saved}
    )
  assert {p.name: p.read_bytes() for p in saved.iterdir()} == before


def test_save_refuses_parameters_of_another_network(tmp_path):
  untied = network(tie_embeddings=False)
  with pytest.raises(
    hf_directory.WeightsError, match=r"qwen3 .* missing \['unembedding'"
  ):
    hf_export.save(tmp_path / "x", random_params(), untied, config_json=CONFIG)
  assert not (tmp_path / "x").exists()


def test_weights_can_be_read_by_whom_the_config_can(sharded):
  for path in sharded.iterdir():
    assert path.stat().st_mode == (sharded / "config.json").stat().st_mode
