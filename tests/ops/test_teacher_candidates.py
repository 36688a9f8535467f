"""Lists of tokens: chunk by chunk as all at once, and what they hold."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distil_jax.ops import teacher_candidates, token_sampling
from distil_jax.ops.token_statistics import DenseTeacher

RNG = np.random.default_rng(0)
LENGTH, VOCAB_SIZE = 5, 11
HIDDEN = RNG.normal(size=(2, LENGTH, 4)).astype(np.float32)
MATRIX = RNG.normal(size=(4, VOCAB_SIZE)).astype(np.float32)
TEACHER = DenseTeacher((HIDDEN,), (MATRIX,))
TOKENS = RNG.integers(0, VOCAB_SIZE, (2, LENGTH)).astype(np.int32)
CHUNK_SIZES = (1, 2, LENGTH, None)
most_probable = jax.jit(
  teacher_candidates.most_probable,
  static_argnames=("size", "chunk_size", "vocab_size"),
)
samples = jax.jit(
  teacher_candidates.samples, static_argnames=("chunk_size", "vocab_size")
)


def test_most_probable():
  logits = HIDDEN.astype(np.float64) @ MATRIX
  log_softmax = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  order = np.argsort(-log_softmax, -1)[..., :3]
  for chunk_size in CHUNK_SIZES:
    ids, log_probs, own = most_probable(
      TEACHER, TOKENS, size=3, chunk_size=chunk_size
    )
    np.testing.assert_array_equal(ids, order)
    np.testing.assert_allclose(
      log_probs, np.take_along_axis(log_softmax, order, -1), rtol=1e-5
    )
    np.testing.assert_allclose(
      own,
      np.take_along_axis(log_softmax, TOKENS[..., None], -1)[..., 0],
      rtol=1e-5,
    )


def test_logits_of_several_are_summed():
  halves = DenseTeacher((HIDDEN / 2, HIDDEN / 2), (MATRIX, MATRIX))
  for chunk_size in CHUNK_SIZES:
    actual = most_probable(halves, TOKENS, size=3, chunk_size=chunk_size)
    whole = most_probable(TEACHER, TOKENS, size=3)
    np.testing.assert_array_equal(actual[0], whole[0])
    np.testing.assert_allclose(actual[1], whole[1], rtol=1e-6)


def test_samples():
  uniforms = RNG.uniform(size=(2, LENGTH, 3)).astype(np.float32)
  logits = HIDDEN @ MATRIX
  sample = jax.jit(token_sampling.sample)
  expected = np.stack(
    [sample(logits, uniforms[..., c]) for c in range(3)], axis=-1
  )
  for chunk_size in CHUNK_SIZES:
    ids, log_probs, own = samples(TEACHER, uniforms, chunk_size=chunk_size)
    np.testing.assert_array_equal(ids, expected)
    np.testing.assert_allclose(log_probs, np.full(ids.shape, -np.log(3)))
    assert own is None


def test_a_list_has_one_to_all_tokens():
  ids, *_ = most_probable(TEACHER, TOKENS, size=VOCAB_SIZE)
  np.testing.assert_array_equal(np.sort(ids, -1)[0, 0], np.arange(VOCAB_SIZE))
  with pytest.raises(ValueError, match=r"a list of 12 tokens .* has 11"):
    most_probable(TEACHER, TOKENS, size=VOCAB_SIZE + 1)
  with pytest.raises(ValueError, match="a list of 0 tokens"):
    most_probable(TEACHER, TOKENS, size=0)


@pytest.mark.parametrize("access", ["most_probable", "samples"])
def test_no_logits_of_all_tokens(access):
  length, vocab_size = 512, 4096
  hidden = jax.ShapeDtypeStruct((2, length, 8), jnp.float32)
  matrix = jax.ShapeDtypeStruct((8, vocab_size), jnp.float32)
  uniforms = jnp.zeros((2, length, 1))

  def ask(hidden, matrix, chunk_size):
    teacher = DenseTeacher((hidden,), (matrix,))
    if access == "samples":
      return teacher_candidates.samples(
        teacher, uniforms, chunk_size=chunk_size
      )
    return teacher_candidates.most_probable(
      teacher, jnp.zeros((2, length), int), size=2, chunk_size=chunk_size
    )

  def temporaries(chunk_size):
    run = jax.jit(ask, static_argnums=2).lower(hidden, matrix, chunk_size)
    return run.compile().memory_analysis().temp_size_in_bytes

  logits = 2 * length * vocab_size * 4
  assert temporaries(16) < logits / 4
  assert temporaries(length) > logits
