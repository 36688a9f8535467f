"""The library face: load, generate, look, save."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import distil_jax as dj
from distil_jax.data import tokenizer as tokenizers
from distil_jax.models import decoder, layers
from tests import networks

TEXTS = ["Compute 47 + 8 - 3.", "The answer is 52.", "What is 6 - 2?"]
SETTINGS = {"group_size": 2, "max_completion_length": 4}


@pytest.fixture(scope="module")
def made():
  """A policy that never was in a file."""
  tokenizer = tokenizers.train(TEXTS * 5, vocab_size=300)
  network = networks.network(seed=6, vocab_size=tokenizer.vocab_size)
  return dj.Policy(network.config, network.graphdef, network.params, tokenizer)


@pytest.fixture(scope="module")
def directory(made, tmp_path_factory):
  path = tmp_path_factory.mktemp("policy") / "model"
  made.save(path)
  return path


@pytest.fixture(scope="module")
def policy(directory):
  return dj.load_policy(directory)


def assert_same(tree, expected):
  jax.tree.map(np.testing.assert_array_equal, tree, expected)


def test_saved_and_loaded_is_the_same(made, policy):
  assert jax.tree.structure(policy.params) == jax.tree.structure(made.params)
  assert_same(policy.params, made.params)
  assert policy.config.vocab_size == made.config.vocab_size
  assert policy.config.rope_theta == made.config.rope_theta
  assert policy.graphdef == made.graphdef
  assert policy.tokenizer.eos_ids == made.tokenizer.eos_ids
  assert policy.tokenizer.pad_id == made.tokenizer.pad_id
  for text in TEXTS:
    assert policy.tokenizer.encode(text) == made.tokenizer.encode(text)


def test_repr_leaves_out_the_weights(policy):
  text = repr(policy)
  assert "vocab_size" in text
  assert len(text) < 2000


def test_dtypes_are_what_was_asked_for(directory, made):
  half = dj.load_policy(directory, "bfloat16")
  assert half.config.compute_dtype == half.config.param_dtype == "bfloat16"
  assert_same(
    half.params, jax.tree.map(lambda p: p.astype(jnp.bfloat16), made.params)
  )
  mixed = dj.load_policy(directory, compute_dtype="bfloat16", remat="none")
  assert mixed.config.compute_dtype == "bfloat16"
  assert mixed.config.remat == "none"
  assert_same(mixed.params, made.params)


def test_logits_do_not_depend_on_the_side_of_padding(policy):
  tokens = [5, 9, 200, 7]
  ids = np.asarray([[0, 0, *tokens], [*tokens, 0, 0]])
  mask = np.asarray([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
  logits = dj.logits(policy, ids, mask)
  assert logits.shape == (2, 6, policy.config.vocab_size)
  assert logits.dtype == jnp.float32
  alone = dj.logits(policy, [tokens], [[1, 1, 1, 1]])[0]
  first, second = np.asarray(logits)
  np.testing.assert_allclose(first[2:], alone, atol=1e-5)
  np.testing.assert_allclose(second[:4], alone, atol=1e-5)
  by_hand = jax.jit(
    lambda params, ids: (
      decoder.hidden_states(policy.graphdef, params, ids, jnp.ones_like(ids))[0]
      @ layers.unembedding(params)
    )
  )(policy.params, np.asarray([tokens]))
  np.testing.assert_allclose(alone, by_hand, atol=1e-5)


def test_a_string_is_a_message_of_the_user(policy):
  key = jax.random.key(3)
  from_text = dj.generate(policy, TEXTS[:2], key, **SETTINGS)
  messages = [[{"role": "user", "content": text}] for text in TEXTS[:2]]
  from_messages = dj.generate(policy, messages, key, **SETTINGS)
  assert_same(from_messages, from_text)

  rows = [policy.tokenizer.encode_messages(m) for m in messages]
  widest = max(map(len, rows))
  assert len(rows[0]) != len(rows[1])
  ids = np.asarray([[0] * (widest - len(row)) + row for row in rows])
  mask = np.asarray([[0] * (widest - len(r)) + [1] * len(r) for r in rows])
  np.testing.assert_array_equal(from_text.prompt_mask, mask)
  np.testing.assert_array_equal(
    np.where(mask, from_text.prompt_ids, 0), np.where(mask, ids, 0)
  )
  # What stands at padding is no part of the prompt: the noise is the same.
  from_ids = dj.generate(
    policy, (np.where(mask, ids, 9), mask), key, **SETTINGS
  )
  for name in ("completion_ids", "completion_mask", "stop_reasons"):
    assert_same(getattr(from_ids, name), getattr(from_text, name))

  assert from_text.completion_ids.shape == (4, 4)
  texts = policy.texts(from_text.completion_ids, from_text.completion_mask)
  assert len(texts) == 4
  first = np.asarray(from_text.completion_ids[0])[
    np.asarray(from_text.completion_mask[0], bool)
  ]
  assert texts[0] == policy.tokenizer.decode(first.tolist())


def test_samples_hang_on_key_and_prompt_alone(policy):
  key = jax.random.key(0)
  both = dj.generate(policy, TEXTS[:2], key, **SETTINGS)
  again = dj.generate(policy, TEXTS[:2], jax.random.key_data(key), **SETTINGS)
  assert_same(again, both)
  other = dj.generate(policy, TEXTS[:2], jax.random.key(1), **SETTINGS)
  assert (other.completion_ids != both.completion_ids).any()
  swapped = dj.generate(policy, TEXTS[1::-1], key, **SETTINGS)
  np.testing.assert_array_equal(
    swapped.completion_ids[:2], both.completion_ids[2:]
  )
  twice = dj.generate(policy, [TEXTS[0], TEXTS[0]], key, **SETTINGS)
  np.testing.assert_array_equal(
    twice.completion_ids[:2], both.completion_ids[:2]
  )
  assert (twice.completion_ids[2:] != twice.completion_ids[:2]).any()


@pytest.mark.parametrize(
  ("prompts", "message"),
  [
    ([], "prompts is empty"),
    ((), "prompts is empty"),
    ("one string", "list of prompts"),
    ((np.zeros((0, 3)), np.zeros((0, 3))), "prompts is empty"),
    (([[1, 2, 0]], [[1, 1, 0]]), "padded on the left"),
    (([[1, 0, 2]], [[1, 0, 1]]), "padded on the left"),
    (([[1, 2], [0, 0]], [[1, 1], [0, 0]]), "no token"),
    (([[1, 300]], [[1, 1]]), "300"),
    (([[-1, 3]], [[1, 1]]), "-1"),
    (([[2, 3]], [[2, 2]]), "1 or 0"),
    ([{"role": "user", "content": "x"}], "one conversation"),
    (({"role": "user", "content": "x"},), "one conversation"),
  ],
)
def test_prompts_that_cannot_be_used_are_refused(policy, prompts, message):
  with pytest.raises(ValueError, match=message):
    dj.generate(policy, prompts, jax.random.key(0), **SETTINGS)


@pytest.mark.parametrize(
  ("setting", "value"),
  [
    ("group_size", 0),
    ("max_completion_length", 0),
    ("temperature", -1.0),
    ("temperature", float("nan")),
    ("temperature", float("inf")),
    ("temperature", 1e-40),
    ("top_k", 0),
    ("top_p", 0.0),
    ("top_p", 1.5),
  ],
)
def test_settings_out_of_range_are_refused(policy, setting, value):
  with pytest.raises(ValueError, match=f"{setting}={value}"):
    dj.generate(
      policy, TEXTS[:1], jax.random.key(0), **{**SETTINGS, setting: value}
    )


def test_a_number_is_no_key(policy):
  with pytest.raises(ValueError, match=r"jax\.random\.key\(3\)"):
    dj.generate(policy, TEXTS[:1], 3, **SETTINGS)


@pytest.mark.parametrize("token", [-1, 300])
def test_logits_of_unknown_tokens_are_refused(policy, token):
  with pytest.raises(ValueError, match=f"token {token}"):
    dj.logits(policy, [[1, token]], [[1, 1]])


@pytest.mark.parametrize(
  ("name", "value"),
  [
    ("dtype", "fp32"),
    ("dtype", "int8"),
    ("compute_dtype", "bf16"),
    ("remat", "layers"),
    ("attention", "flash"),
  ],
)
def test_wrong_ways_to_compute_are_refused(directory, name, value):
  with pytest.raises(ValueError, match=f"{name}='{value}'"):
    dj.load_policy(directory, **{name: value})


def test_an_end_token_beyond_the_vocabulary_is_refused(made, tmp_path):
  made.save(tmp_path)
  path = tmp_path / "generation_config.json"
  path.write_text('{"eos_token_id": [2, 99999]}')
  with pytest.raises(ValueError, match="eos_token_id=99999"):
    dj.load_policy(tmp_path)


def test_more_words_than_rows_are_refused(made, tmp_path):
  small = networks.network(vocab_size=made.tokenizer.vocab_size - 1)
  dj.Policy(small.config, small.graphdef, small.params, made.tokenizer).save(
    tmp_path
  )
  with pytest.raises(ValueError, match=str(made.tokenizer.vocab_size)):
    dj.load_policy(tmp_path)


def test_rows_beyond_the_tokenizer_are_padding_and_added_tokens_are_not(
  made, policy, tmp_path
):
  assert policy.config.num_tokens is None
  count = made.tokenizer.vocab_size
  made.tokenizer.save(tmp_path / "tokenizer")
  tokenizer = tokenizers.Tokenizer.load(tmp_path / "tokenizer")
  assert tokenizer.backend.add_tokens(["<|look|>"]) == 1
  wide = networks.network(vocab_size=count + 8)
  dj.Policy(wide.config, wide.graphdef, wide.params, tokenizer).save(tmp_path)
  loaded = dj.load_policy(tmp_path)
  assert loaded.tokenizer.encode("<|look|>") == [count]
  assert loaded.config.vocab_size == count + 8
  assert loaded.config.num_tokens == count + 1


def test_an_unknown_embedded_model_names_the_known():
  with pytest.raises(ValueError, match=r"embedded:abacus is not embedded"):
    dj.load_policy("embedded:abacus")


@pytest.mark.parametrize("junk", [-100, 10**9])
def test_padding_need_not_hold_a_token(policy, junk):
  ids = np.asarray([[junk, junk, 5, 6, 7], [1, 2, 3, 4, junk]], np.int32)
  mask = np.asarray([[0, 0, 1, 1, 1], [1, 1, 1, 1, 0]], np.int32)
  clean = np.where(mask == 1, ids, 0)
  counts = mask == 1
  np.testing.assert_array_equal(
    np.asarray(dj.logits(policy, ids, mask))[counts],
    np.asarray(dj.logits(policy, clean, mask))[counts],
  )
