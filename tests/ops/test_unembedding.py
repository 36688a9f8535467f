"""Chunked statistics against dense ones, in value, gradient and memory."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distil_jax.ops import unembedding

FIELDS = ("costs", "log_probs", "entropies", "teacher_entropies")
LENGTH = 7
CHUNK_SIZES = (1, 3, LENGTH, LENGTH + 5)


def random_inputs(seed=0, size=2, length=LENGTH, width=6, vocab_size=37):
  """Arguments of `token_statistics`; the teacher has another width."""
  rng = np.random.default_rng(seed)
  shapes = (
    (size, length, width),
    (width, vocab_size),
    (size, length, width + 3),
    (width + 3, vocab_size),
  )
  arrays = [rng.normal(0, 1, shape).astype(np.float32) for shape in shapes]
  ids = rng.integers(0, vocab_size, (size, length)).astype(np.int32)
  return (*arrays, ids)


def dense(student, student_matrix, teacher, teacher_matrix, ids):
  """The definitions, all logits at once, in the dtype of the inputs."""
  teacher_logits = jax.lax.stop_gradient(teacher @ teacher_matrix)
  log_student = jax.nn.log_softmax(student @ student_matrix)
  log_teacher = jax.nn.log_softmax(teacher_logits)
  return unembedding.TokenStatistics(
    costs=-jnp.sum(jnp.exp(log_teacher) * log_student, axis=-1),
    log_probs=jnp.take_along_axis(log_student, ids[..., None], -1)[..., 0],
    entropies=-jnp.sum(jnp.exp(log_student) * log_student, axis=-1),
    teacher_entropies=-jnp.sum(jnp.exp(log_teacher) * log_teacher, axis=-1),
  )


def weighted(statistics, weights):
  return sum(
    jnp.sum(weight * getattr(statistics, name))
    for name, weight in weights.items()
  )


def random_weights(shape, names=FIELDS, seed=9):
  rng = np.random.default_rng(seed)
  return {name: rng.normal(size=shape).astype(np.float32) for name in names}


@jax.jit
def _dense_gradients(*arguments):
  *arrays, ids, weights = arguments

  def total(*arrays):
    values = dense(*arrays, ids)
    return weighted(values, weights), values

  return jax.grad(total, range(4), has_aux=True)(*arrays)


def dense_float64(inputs, weights):
  """Values, and gradients in student and teacher, in float64."""
  with jax.enable_x64(True):
    *arrays, ids = inputs
    arrays = [jnp.asarray(x, jnp.float64) for x in arrays]
    gradients, values = _dense_gradients(*arrays, ids, weights)
    return values, gradients


def assert_close(actual, expected, tolerance=1e-5):
  """Relative to the largest entry, so that no entry is held to its own zero."""
  actual, expected = np.asarray(actual), np.asarray(expected)
  error = np.max(np.abs(actual - expected))
  assert error <= tolerance * np.max(np.abs(expected)), error


class TestTokenStatistics:
  @pytest.mark.parametrize("chunk_size", CHUNK_SIZES)
  def test_equals_dense_float64(self, chunk_size):
    inputs = random_inputs()
    weights = random_weights(inputs[-1].shape)
    values, gradients = dense_float64(inputs, weights)

    @jax.jit
    def run(*arrays):
      statistics = unembedding.token_statistics(
        *arrays, inputs[-1], chunk_size=chunk_size
      )
      return weighted(statistics, weights), statistics

    actual_gradients, actual = jax.grad(run, (0, 1, 2, 3), has_aux=True)(
      *inputs[:-1]
    )
    for name in FIELDS:
      assert getattr(actual, name).dtype == jnp.float32
      assert_close(getattr(actual, name), getattr(values, name))
    for gradient, expected in zip(
      actual_gradients[:2], gradients[:2], strict=True
    ):
      assert np.max(np.abs(expected)) > 0.1
      assert_close(gradient, expected)
    for gradient in actual_gradients[2:]:
      np.testing.assert_array_equal(gradient, 0.0)

  @pytest.mark.parametrize("chunk_size", [3, None])
  def test_equals_from_logits(self, chunk_size):
    student, matrix, teacher, teacher_matrix, ids = random_inputs(seed=1)
    chunked = unembedding.token_statistics(
      student, matrix, teacher, teacher_matrix, ids, chunk_size=chunk_size
    )
    whole = unembedding.from_logits(
      jnp.asarray(student @ matrix),
      jax.nn.softmax(jnp.asarray(teacher @ teacher_matrix)),
      ids,
    )
    for name in FIELDS:
      assert_close(getattr(chunked, name), getattr(whole, name))

  def test_one_token_and_one_word(self):
    inputs = random_inputs(size=1, length=1, vocab_size=1)
    statistics = unembedding.token_statistics(*inputs, chunk_size=4)
    for name in FIELDS:
      np.testing.assert_array_equal(getattr(statistics, name), 0.0)

  def test_a_student_equal_to_its_teacher(self):
    student, matrix, *_, ids = random_inputs(seed=2)
    statistics = unembedding.token_statistics(
      student, matrix, student, matrix, ids, chunk_size=2
    )
    assert_close(statistics.costs, statistics.entropies)
    assert_close(statistics.costs, statistics.teacher_entropies)

  def test_bfloat16_hidden_states(self):
    inputs = random_inputs(seed=3, width=32)
    weights = random_weights(inputs[-1].shape)
    rounded = [jnp.asarray(x, jnp.bfloat16) for x in inputs[:-1]]
    values, gradients = dense_float64((*rounded, inputs[-1]), weights)

    def run(student, matrix):
      statistics = unembedding.token_statistics(
        student, matrix, rounded[2], inputs[3], inputs[-1], chunk_size=3
      )
      return weighted(statistics, weights), statistics

    # The matrix is float32, as parameters are: it is the product that is in
    # bfloat16, while sums and softmax are in float32.
    actual_gradients, actual = jax.grad(run, (0, 1), has_aux=True)(
      rounded[0], jnp.asarray(inputs[1])
    )
    for name in FIELDS:
      assert getattr(actual, name).dtype == jnp.float32
      assert_close(getattr(actual, name), getattr(values, name))
    assert actual_gradients[0].dtype == jnp.bfloat16
    assert actual_gradients[1].dtype == jnp.float32
    for gradient, expected in zip(actual_gradients, gradients[:2], strict=True):
      assert_close(gradient.astype(jnp.float32), expected, tolerance=2e-2)

  @pytest.mark.parametrize("chunk_size", [2, None])
  def test_a_certain_teacher_and_extreme_logits(self, chunk_size):
    # Hidden states are one-hot, so the matrices are the logits themselves:
    # ±10⁴, and the teacher has all its mass on one word.
    length, vocab_size = 3, 5
    hidden = np.eye(length, dtype=np.float32)[None]
    student_matrix = np.full((length, vocab_size), -1e4, np.float32)
    teacher_matrix = np.full((length, vocab_size), -1e4, np.float32)
    student_matrix[[0, 1, 2], [0, 1, 2]] = 1e4
    teacher_matrix[[0, 1, 2], [0, 4, 2]] = 1e4
    ids = np.array([[0, 4, 1]], np.int32)

    def run(student, matrix, names=FIELDS):
      statistics = unembedding.token_statistics(
        student, matrix, hidden, teacher_matrix, ids, chunk_size=chunk_size
      )
      return sum(
        jnp.sum(getattr(statistics, name)) for name in names
      ), statistics

    gradients, statistics = jax.grad(run, (0, 1), has_aux=True)(
      hidden, student_matrix
    )
    # The student is sure of the second word at t = 1; the teacher of the last.
    np.testing.assert_array_equal(statistics.costs, [[0, 2e4, 0]])
    np.testing.assert_array_equal(statistics.log_probs, [[0, -2e4, -2e4]])
    np.testing.assert_array_equal(statistics.entropies, 0.0)
    np.testing.assert_array_equal(statistics.teacher_entropies, 0.0)
    for gradient in gradients:
      assert np.all(np.isfinite(gradient))
    # d cost / d logits = student − teacher.
    slope, _ = jax.grad(
      functools.partial(run, names=("costs",)), 1, has_aux=True
    )(hidden, student_matrix)
    expected = np.zeros((length, vocab_size))
    expected[1, 1], expected[1, 4] = 1, -1
    np.testing.assert_array_equal(slope, expected)

  @pytest.mark.parametrize(
    ("batch_size", "length", "vocab_size", "expected"),
    [
      (1, 100, 32, 100),  # all at once
      (8, 1024, 2**15, 64),  # 8 · 64 · 2¹⁵ entries are one tile
      (64, 1024, 152_000, 1),  # a column at least
    ],
  )
  def test_chunks_fit_a_tile(self, batch_size, length, vocab_size, expected):
    ids = jax.ShapeDtypeStruct((batch_size, length), jnp.int32)
    matrix = jax.ShapeDtypeStruct((4, vocab_size), jnp.float32)
    assert unembedding._default_chunk(ids, matrix) == expected

  def test_shapes_must_agree(self):
    student, matrix, teacher, teacher_matrix, ids = random_inputs()
    with pytest.raises(AssertionError):
      unembedding.token_statistics(
        student, matrix, teacher[:, :-1], teacher_matrix, ids
      )


class TestTokenLogProbs:
  @pytest.mark.parametrize("chunk_size", CHUNK_SIZES)
  def test_equals_dense_float64(self, chunk_size):
    student, matrix, teacher, teacher_matrix, ids = random_inputs(seed=4)
    weights = random_weights(ids.shape, ("log_probs", "entropies"))
    values, gradients = dense_float64(
      (student, matrix, teacher, teacher_matrix, ids), weights
    )

    @jax.jit
    def run(student, matrix):
      log_probs, entropies = unembedding.token_log_probs(
        student, matrix, ids, chunk_size=chunk_size
      )
      actual = types.SimpleNamespace(log_probs=log_probs, entropies=entropies)
      return weighted(actual, weights), vars(actual)

    actual_gradients, actual = jax.grad(run, (0, 1), has_aux=True)(
      student, matrix
    )
    actual = types.SimpleNamespace(**actual)
    for name in weights:
      assert getattr(actual, name).dtype == jnp.float32
      assert_close(getattr(actual, name), getattr(values, name))
    for gradient, expected in zip(actual_gradients, gradients[:2], strict=True):
      assert_close(gradient, expected)

  def test_last_word_of_the_vocabulary(self):
    student, matrix, *_ = random_inputs(seed=5)
    ids = np.full((2, LENGTH), matrix.shape[1] - 1, np.int32)
    log_probs, _ = unembedding.token_log_probs(
      student, matrix, ids, chunk_size=3
    )
    expected = jax.nn.log_softmax(jnp.asarray(student @ matrix))[..., -1]
    assert_close(log_probs, expected)


class TestFromLogits:
  def test_by_hand(self):
    # Student (1/2, 1/4, 1/4), teacher (0, 1/2, 1/2); the second was sampled.
    statistics = unembedding.from_logits(
      jnp.log(jnp.array([[0.5, 0.25, 0.25]])) + 3.0,
      jnp.array([[0.0, 0.5, 0.5]]),
      jnp.array([1]),
    )
    log_two = np.log(2)
    np.testing.assert_allclose(statistics.costs, [2 * log_two], rtol=1e-6)
    np.testing.assert_allclose(statistics.log_probs, [-2 * log_two], rtol=1e-6)
    np.testing.assert_allclose(statistics.entropies, [1.5 * log_two], rtol=1e-6)
    np.testing.assert_allclose(
      statistics.teacher_entropies, [log_two], rtol=1e-6
    )

  def test_words_that_both_exclude_cost_nothing(self):
    teacher_probs = jnp.array([[0.25, 0.75, 0.0]])

    def total(logits, names=FIELDS):
      statistics = unembedding.from_logits(
        logits, teacher_probs, jnp.array([0])
      )
      return sum(jnp.sum(getattr(statistics, name)) for name in names)

    excluding = jnp.array([[0.3, -0.2, -jnp.inf]])
    value, gradient = jax.value_and_grad(total)(excluding)
    without, expected = jax.value_and_grad(
      lambda logits: total(jnp.append(logits, -1e9)[None])
    )(excluding[0, :2])
    np.testing.assert_allclose(value, without, rtol=1e-6)
    np.testing.assert_allclose(gradient[0, :2], expected, rtol=1e-5)
    np.testing.assert_array_equal(gradient[0, 2], 0.0)

  def test_a_word_that_only_the_student_excludes_costs_infinitely(self):
    statistics = unembedding.from_logits(
      jnp.array([[0.0, -jnp.inf]]), jnp.array([[0.5, 0.5]]), jnp.array([0])
    )
    np.testing.assert_array_equal(statistics.costs, jnp.inf)

  def test_a_broken_teacher_is_not_hidden(self):
    statistics = unembedding.from_logits(
      jnp.zeros((1, 2)), jnp.full((1, 2), jnp.nan), jnp.array([0])
    )
    assert np.all(np.isnan(statistics.costs))


class TestMemory:
  SIZE, LENGTH, WIDTH, VOCAB_SIZE = 4, 1024, 16, 4096
  LOGITS = SIZE * LENGTH * VOCAB_SIZE * 4  # bytes: 64 MiB

  def temporaries(self, loss, num_hidden):
    """Bytes that the compiled gradient needs besides inputs and outputs."""
    hidden = jax.ShapeDtypeStruct(
      (self.SIZE, self.LENGTH, self.WIDTH), jnp.float32
    )
    matrix = jax.ShapeDtypeStruct((self.WIDTH, self.VOCAB_SIZE), jnp.float32)
    ids = jax.ShapeDtypeStruct((self.SIZE, self.LENGTH), jnp.int32)
    arguments = (hidden, matrix) * num_hidden
    compiled = jax.jit(jax.grad(loss, (0, 1))).lower(*arguments, ids).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  @staticmethod
  def statistics_loss(*arguments, chunk_size):
    statistics = unembedding.token_statistics(*arguments, chunk_size=chunk_size)
    return jnp.sum(statistics.costs + statistics.log_probs)

  @staticmethod
  def log_probs_loss(*arguments, chunk_size):
    return jnp.sum(
      unembedding.token_log_probs(*arguments, chunk_size=chunk_size)[0]
    )

  @pytest.mark.parametrize(
    ("name", "num_hidden"), [("statistics_loss", 2), ("log_probs_loss", 1)]
  )
  def test_no_logits_of_all_tokens(self, name, num_hidden):
    loss = getattr(self, name)
    chunked = functools.partial(loss, chunk_size=16)
    assert self.temporaries(chunked, num_hidden) < self.LOGITS / 8
    # The measure sees the logits where they are.
    whole = functools.partial(loss, chunk_size=self.LENGTH)
    assert self.temporaries(whole, num_hidden) > self.LOGITS
