"""Chunked statistics against dense ones, in value, gradient and memory."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from distil_jax.ops import chunking, fused_statistics, token_statistics
from distil_jax.ops.divergences import Divergence
from tests import formulas, references

FIELDS = tuple(
  field.name for field in dataclasses.fields(token_statistics.TokenStatistics)
)
LENGTH = 7
CHUNK_SIZES = (1, 3, LENGTH, LENGTH + 5)
# Compiled, for each operation alone takes as long to compile as such a program.
dense_teacher_statistics = jax.jit(
  references.token_statistics,
  static_argnames=("divergence", "chunk_size", "layout"),
)
from_logits = jax.jit(token_statistics.from_logits, static_argnums=3)
token_log_probs = jax.jit(
  fused_statistics.token_log_probs, static_argnames="chunk_size"
)


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
  costs = -jnp.sum(jnp.exp(log_teacher) * log_student, axis=-1)
  return token_statistics.TokenStatistics(
    costs=costs,
    cross_entropies=jax.lax.stop_gradient(costs),
    log_probs=jnp.take_along_axis(log_student, ids[..., None], -1)[..., 0],
    entropies=-jnp.sum(jnp.exp(log_student) * log_student, axis=-1),
    teacher_entropies=-jnp.sum(jnp.exp(log_teacher) * log_teacher, axis=-1),
    teacher_log_probs=jnp.take_along_axis(log_teacher, ids[..., None], -1)[
      ..., 0
    ],
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

    def run(*arrays):
      statistics = references.token_statistics(
        *arrays, inputs[-1], chunk_size=chunk_size
      )
      return weighted(statistics, weights), statistics

    actual_gradients, actual = jax.jit(
      jax.grad(run, (0, 1, 2, 3), has_aux=True)
    )(*inputs[:-1])
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
    chunked = dense_teacher_statistics(
      student, matrix, teacher, teacher_matrix, ids, chunk_size=chunk_size
    )
    whole = from_logits(student @ matrix, teacher @ teacher_matrix, ids)
    for name in FIELDS:
      assert_close(getattr(chunked, name), getattr(whole, name))

  def test_one_token_and_one_word(self):
    inputs = random_inputs(size=1, length=1, vocab_size=1)
    statistics = dense_teacher_statistics(*inputs, chunk_size=4)
    for name in FIELDS:
      np.testing.assert_array_equal(getattr(statistics, name), 0.0)

  def test_a_student_equal_to_its_teacher(self):
    student, matrix, *_, ids = random_inputs(seed=2)
    statistics = dense_teacher_statistics(
      student, matrix, student, matrix, ids, chunk_size=2
    )
    assert_close(statistics.costs, statistics.entropies)
    assert_close(statistics.costs, statistics.teacher_entropies)

  def test_bfloat16_hidden_states(self):
    inputs = random_inputs(seed=3, width=32)
    weights = random_weights(inputs[-1].shape)
    rounded = [x.astype(ml_dtypes.bfloat16) for x in inputs[:-1]]
    values, gradients = dense_float64((*rounded, inputs[-1]), weights)

    def run(student, matrix):
      statistics = references.token_statistics(
        student, matrix, rounded[2], inputs[3], inputs[-1], chunk_size=3
      )
      return weighted(statistics, weights), statistics

    # The matrix is float32, as parameters are: it is the product that is in
    # bfloat16, while sums and softmax are in float32.
    actual_gradients, actual = jax.jit(jax.grad(run, (0, 1), has_aux=True))(
      rounded[0], inputs[1]
    )
    for name in FIELDS:
      assert getattr(actual, name).dtype == jnp.float32
      assert_close(getattr(actual, name), getattr(values, name))
    assert actual_gradients[0].dtype == jnp.bfloat16
    assert actual_gradients[1].dtype == jnp.float32
    for gradient, expected in zip(actual_gradients, gradients[:2], strict=True):
      assert_close(np.float32(gradient), expected, tolerance=2e-2)

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
      statistics = references.token_statistics(
        student, matrix, hidden, teacher_matrix, ids, chunk_size=chunk_size
      )
      return sum(
        jnp.sum(getattr(statistics, name)) for name in names
      ), statistics

    @jax.jit
    def both(*arrays):
      costs = functools.partial(run, names=("costs",))
      return (
        *jax.grad(run, (0, 1), has_aux=True)(*arrays),
        jax.grad(costs, 1, has_aux=True)(*arrays)[0],
      )

    gradients, statistics, slope = both(hidden, student_matrix)
    # The student is sure of the second word at t = 1; the teacher of the last.
    np.testing.assert_array_equal(statistics.costs, [[0, 2e4, 0]])
    np.testing.assert_array_equal(statistics.log_probs, [[0, -2e4, -2e4]])
    np.testing.assert_array_equal(statistics.entropies, 0.0)
    np.testing.assert_array_equal(statistics.teacher_entropies, 0.0)
    for gradient in gradients:
      assert np.all(np.isfinite(gradient))
    # d cost / d logits = student − teacher.
    expected = np.zeros((length, vocab_size))
    expected[1, 1], expected[1, 4] = 1, -1
    np.testing.assert_array_equal(slope, expected)

  @pytest.mark.parametrize(
    ("batch_size", "length", "width", "vocab_size", "expected"),
    [
      (1, 100, 64, 32, 100),  # all at once
      (8, 1024, 64, 2**15, 256),  # 8 · 256 · 2¹⁵ entries are one tile
      (8, 1024, 8192, 2**16, 256),  # 2048 rows, a quarter of the width
      (4096, 1024, 64, 152_000, 1),  # a column at least
      (0, 0, 64, 32, 0),
    ],
  )
  def test_chunks_fit_a_tile(
    self, batch_size, length, width, vocab_size, expected
  ):
    size = chunking.default_size(batch_size, length, width, vocab_size)
    assert size == expected

  def test_a_chunk_has_a_column_at_least(self):
    with pytest.raises(ValueError, match="chunk_size=0 must be at least 1"):
      references.token_statistics(*random_inputs(), chunk_size=0)

  @pytest.mark.parametrize(("size", "length"), [(2, 0), (0, 7)])
  def test_nothing_at_all(self, size, length):
    inputs = random_inputs(size=size, length=length)
    statistics = dense_teacher_statistics(*inputs)
    assert statistics.costs.shape == (size, length)

  @pytest.mark.parametrize("chunk_size", [2, None])
  def test_a_teacher_is_not_read_where_it_does_not_count(self, chunk_size):
    student, matrix, teacher, teacher_matrix, ids = random_inputs(seed=6)
    mask = np.arange(LENGTH) < np.array([[LENGTH], [3]])

    @jax.jit
    def run(teacher):
      def total(student, matrix):
        statistics = references.token_statistics(
          student,
          matrix,
          teacher,
          teacher_matrix,
          ids,
          mask=mask,
          chunk_size=chunk_size,
        )
        return jnp.sum(jnp.where(mask, statistics.costs, 0.0))

      return jax.value_and_grad(total, (0, 1))(student, matrix)

    clean = run(teacher)
    dirty = run(np.where(mask[..., None], teacher, np.nan))
    jax.tree.map(np.testing.assert_array_equal, dirty, clean)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(clean))

  def test_shapes_must_agree(self):
    student, matrix, teacher, teacher_matrix, ids = random_inputs()
    with pytest.raises(AssertionError):
      references.token_statistics(
        student, matrix, teacher[:, :-1], teacher_matrix, ids
      )


DIVERGENCES = (
  Divergence("forward_kl", top_k=4),
  Divergence("reverse_kl"),
  Divergence("sdpo", weight=0.3, top_k=5),
  Divergence("opsd", weight=1.0, token_clip=0.05, temperature=1.3),
  Divergence("opsd", weight=0.6, top_k=7, top_k_of="teacher", tail=False),
)


class TestDivergences:
  def test_chunks_equal_logits_in_float64(self):
    *arrays, ids = random_inputs(seed=7)
    weights = random_weights(ids.shape, ("costs", "log_probs"))

    def total(statistics_of):
      def run(student, matrix):
        statistics = [statistics_of(student, matrix, d) for d in DIVERGENCES]
        return sum(weighted(s, weights) for s in statistics), statistics

      return jax.jit(jax.grad(run, (0, 1), has_aux=True))

    gradients, chunked = total(
      lambda student, matrix, divergence: references.token_statistics(
        student,
        matrix,
        *arrays[2:],
        ids,
        divergence=divergence,
        chunk_size=3,
      )
    )(*arrays[:2])
    with jax.enable_x64(True):
      wide = [jnp.asarray(x, jnp.float64) for x in arrays]
      expected_gradients, dense = total(
        lambda student, matrix, divergence: token_statistics.from_logits(
          student @ matrix, wide[2] @ wide[3], ids, divergence
        )
      )(*wide[:2])
    for divergence, actual, expected in zip(
      DIVERGENCES, chunked, dense, strict=True
    ):
      for name in FIELDS:
        assert_close(getattr(actual, name), getattr(expected, name))
      kind = divergence.kind
      assert np.max(np.abs(actual.costs - actual.cross_entropies)) > 0.1, kind
    for gradient, expected in zip(gradients, expected_gradients, strict=True):
      assert np.max(np.abs(expected)) > 0.1
      assert_close(gradient, expected)

  def test_what_belongs_to_which_support(self):
    # Costs, cross-entropies and the teacher's entropy are of the support and
    # the temperature; the rest is of the whole vocabulary at 1.
    rng = np.random.default_rng(8)
    student, teacher = rng.normal(0, 2, (2, 3, 6)).astype(np.float32)
    ids = np.array([5, 0, 2])
    where = {"top_k": 2, "top_k_of": "teacher", "temperature": 1.5}
    statistics = from_logits(
      student, teacher, ids, Divergence("reverse_kl", **where)
    )
    for row, (s, t, token) in enumerate(
      zip(student, teacher, ids, strict=True)
    ):
      sides = formulas.support(s, t, **where)
      expected = {
        "costs": formulas.divergence(*sides, "reverse_kl"),
        "cross_entropies": formulas.divergence(*sides, "forward_cross_entropy"),
        "teacher_entropies": formulas.entropy(sides[1]),
        "log_probs": formulas.log_softmax(s)[token],
        "entropies": formulas.entropy(formulas.log_softmax(s)),
        "teacher_log_probs": formulas.log_softmax(t)[token],
      }
      assert set(expected) == set(FIELDS)
      for name, value in expected.items():
        np.testing.assert_allclose(
          getattr(statistics, name)[row], value, rtol=1e-5, err_msg=name
        )


def listed_statistics(
  hidden,
  matrix,
  candidates,
  log_probs,
  ids,
  *,
  kind,
  divergence,
  own=None,
  mask=None,
  chunk_size=None,
):
  lists = token_statistics.SparseTeacher(candidates, log_probs, kind, own)
  source = fused_statistics.compared_with_list(
    hidden, matrix, lists, ids, divergence, mask
  )
  return source.tiled(chunk_size=chunk_size).statistics()


compiled_listed_statistics = jax.jit(
  listed_statistics, static_argnames=("kind", "divergence", "chunk_size")
)
SPARSE = (
  {"kind": "samples", "divergence": Divergence()},
  *(
    {"kind": "top_k", "divergence": divergence}
    for divergence in (
      Divergence(tail=False),
      Divergence(),
      Divergence("reverse_kl"),
      Divergence("sdpo", weight=0.3),
      Divergence(
        "opsd", weight=0.6, token_clip=0.05, tail=False, temperature=1.3
      ),
    )
  ),
)


def listed_costs(logits, ids, log_probs, *, kind, divergence):
  """Of one state, in float64 and loops.

  The cost, the cross-entropy and the teacher's entropy.
  """
  whole = formulas.log_softmax(logits)
  present = [
    (a, p) for a, p in zip(ids, log_probs, strict=True) if p != -np.inf
  ]
  student = np.array([whole[a] for a, _ in present])
  teacher = np.array([p for _, p in present], np.float64)
  if kind == "samples":
    cost = formulas.divergence(student, teacher, "forward_cross_entropy")
    return cost, cost, 0.0
  if divergence.tail:
    listed = {a for a, _ in present}
    rest = [np.exp(x) for a, x in enumerate(whole) if a not in listed]
    student = np.append(student, np.log(sum(rest)))
    teacher = np.append(teacher, np.log(1 - np.exp(teacher).sum()))
  else:
    student = formulas.log_softmax(student / divergence.temperature)
    teacher = formulas.log_softmax(teacher / divergence.temperature)
  cost = formulas.divergence(
    student,
    teacher,
    divergence.kind,
    weight=divergence.weight,
    token_clip=divergence.token_clip,
  )
  return (
    cost,
    formulas.divergence(student, teacher, "forward_cross_entropy"),
    formulas.entropy(teacher),
  )


def sparse_inputs(seed=0, vocab_size=6, size=2, length=5):
  """Hidden states that are the logits, lists of 3, of which one is shorter."""
  rng = np.random.default_rng(seed)
  logits = rng.normal(0, 2, (size, length, vocab_size))
  teacher = rng.normal(0, 2, (size, length, vocab_size))
  teacher -= np.log(np.exp(teacher).sum(-1, keepdims=True))
  candidates = np.argsort(-teacher, -1)[..., :3].astype(np.int32)
  log_probs = np.take_along_axis(teacher, candidates, -1)
  log_probs[0, 1, 2] = -np.inf
  ids = rng.integers(0, vocab_size, (size, length)).astype(np.int32)
  return logits, teacher, candidates, log_probs, ids


class TestSparseTokenStatistics:
  def test_weights_scale_all_that_compares_with_a_list(self):
    logits, _, candidates, log_probs, ids = sparse_inputs()
    logits, matrix = np.float32(logits), np.eye(6, dtype=np.float32)
    weights = np.random.default_rng(1).integers(0, 3, ids.shape)

    @jax.jit
    def run(logits, weights):
      def total(logits, kind):
        lists = token_statistics.SparseTeacher(
          candidates, log_probs, kind, jnp.zeros(ids.shape)
        )
        found = fused_statistics.compared_with_list(
          logits, matrix, lists, ids, Divergence(), weights=weights
        ).statistics()
        return jnp.sum(found.costs), found

      kinds = ("samples", "top_k")
      return [jax.grad(total, has_aux=True)(logits, kind) for kind in kinds]

    plain, weighted = run(logits, None), run(logits, weights)
    for (gradient, found), (other, expected) in zip(
      weighted, plain, strict=True
    ):
      for name in ("costs", "cross_entropies", "teacher_entropies"):
        np.testing.assert_allclose(
          getattr(found, name), weights * getattr(expected, name), rtol=1e-6
        )
      for name in ("log_probs", "entropies", "teacher_log_probs"):
        np.testing.assert_array_equal(
          getattr(found, name), getattr(expected, name)
        )
      np.testing.assert_allclose(
        gradient, weights[..., None] * other, rtol=1e-5, atol=1e-7
      )

  def test_against_numpy_in_float64(self):
    logits, _, candidates, log_probs, ids = sparse_inputs()
    weights = np.random.default_rng(1).normal(size=ids.shape)
    matrix = np.eye(logits.shape[-1])

    def in_numpy(logits, settings, at=0):
      values = np.zeros(ids.shape)
      for b, t in np.ndindex(*ids.shape):
        values[b, t] = listed_costs(
          logits[b, t], candidates[b, t], log_probs[b, t], **settings
        )[at]
      return values

    @functools.partial(jax.jit, static_argnums=1)
    def run(logits, chunk_size):
      def total(logits, settings):
        statistics = listed_statistics(
          logits,
          matrix,
          candidates,
          log_probs,
          ids,
          chunk_size=chunk_size,
          **settings,
        )
        return jnp.sum(weights * statistics.costs), statistics

      return [jax.grad(total, has_aux=True)(logits, s) for s in SPARSE]

    for chunk_size in (2, None):
      with jax.enable_x64(True):
        results = run(jnp.asarray(logits), chunk_size)
      for settings, (gradient, actual) in zip(SPARSE, results, strict=True):
        # Lists are float32.
        near = {"rtol": 1e-6, "atol": 1e-6}
        expected = in_numpy(logits, settings)
        np.testing.assert_allclose(actual.costs, expected, **near)
        for at, name in ((1, "cross_entropies"), (2, "teacher_entropies")):
          np.testing.assert_allclose(
            getattr(actual, name), in_numpy(logits, settings, at), **near
          )
        assert actual.teacher_log_probs is None
        np.testing.assert_allclose(
          gradient,
          formulas.numerical_gradient(
            lambda x, s=settings: np.sum(weights * in_numpy(x, s)), logits
          ),
          **near,
        )
        for b, t in np.ndindex(*ids.shape):
          log_softmax = formulas.log_softmax(logits[b, t])
          np.testing.assert_allclose(
            actual.log_probs[b, t], log_softmax[ids[b, t]]
          )
          np.testing.assert_allclose(
            actual.entropies[b, t], formulas.entropy(log_softmax)
          )

  @pytest.mark.parametrize("size", [3, 6])  # 6 is the whole vocabulary
  def test_the_teachers_own_top_k(self, size):
    logits, teacher, *_, ids = sparse_inputs(seed=2)
    logits, teacher = (jnp.asarray(x, jnp.float32) for x in (logits, teacher))
    candidates = np.argsort(-teacher, -1)[..., :size]
    log_probs = np.take_along_axis(teacher, candidates, -1)
    own = jnp.take_along_axis(teacher, ids[..., None], -1)[..., 0]
    divergences = [x["divergence"] for x in SPARSE if x["kind"] == "top_k"]

    @jax.jit
    def run(logits, log_probs):
      def of_lists(logits, log_probs, divergence):
        found = listed_statistics(
          logits,
          jnp.eye(6),
          candidates,
          log_probs,
          ids,
          kind="top_k",
          divergence=divergence,
          own=own,
        )
        return jnp.sum(found.costs), found

      def of_logits(logits, log_probs, divergence):
        del log_probs
        chosen = {"top_k": size, "top_k_of": "teacher"}
        found = token_statistics.from_logits(
          logits, teacher, ids, dataclasses.replace(divergence, **chosen)
        )
        return jnp.sum(found.costs), found

      return [
        [
          jax.grad(f, (0, 1), has_aux=True)(logits, log_probs, divergence)
          for f in (of_lists, of_logits)
        ]
        for divergence in divergences
      ]

    for (gradient, actual), (expected, exact) in run(logits, log_probs):
      for name in FIELDS:
        assert_close(getattr(actual, name), getattr(exact, name))
      assert_close(gradient[0], expected[0])
      np.testing.assert_array_equal(gradient[1], 0.0)

  def test_a_reverse_kl_by_hand(self):
    # Student (1/2, 1/4, 1/8, 1/8), teacher (1/4, 1/2) and 1/4 for the others.
    logits = np.log(np.float32([[[0.5, 0.25, 0.125, 0.125]]]))
    lists = np.array([[[0, 1]]]), np.log(np.float32([[[0.25, 0.5]]]))
    found = [
      compiled_listed_statistics(
        logits,
        np.eye(4, dtype=np.float32),
        *lists,
        np.array([[2]]),
        kind="top_k",
        divergence=Divergence("reverse_kl", tail=tail),
        own=np.float32([[-2.0]]),
      )
      for tail in (True, False)
    ]
    # With a tail (1/2 − 1/4) log 2; without, (2/3, 1/3) beside (1/3, 2/3).
    for statistics, cost in zip(found, (1 / 4, 1 / 3), strict=True):
      np.testing.assert_allclose(statistics.costs, cost * np.log(2), rtol=1e-6)
      np.testing.assert_array_equal(statistics.teacher_log_probs, -2.0)

  def test_a_teacher_whose_list_has_all_its_mass_costs_no_infinity(self):
    # The student puts half of its mass where the teacher, rounded, has none.
    logits = np.log(np.float32([[[0.25, 0.25, 0.5]]]))

    @jax.jit
    def run(logits):
      def total(logits, kind, weight):
        return listed_statistics(
          logits,
          jnp.eye(3),
          jnp.array([[[0, 1]]]),
          jnp.log(jnp.array([[[0.5, 0.5 + 1e-3]]])),
          jnp.array([[0]]),
          kind="top_k",
          divergence=Divergence(kind, weight=weight),
        ).costs[0, 0]

      kinds = (("reverse_kl", None), ("sdpo", 0.5), ("forward_kl", None))
      return [jax.value_and_grad(total)(logits, *kind) for kind in kinds]

    (value, _), *others = run(logits)
    # KL of (1/4, 1/4, 1/2) and (1/2, 1/2, 1e-6).
    by_hand = 0.5 * np.log(0.5) + 0.5 * np.log(0.5e6)
    np.testing.assert_allclose(value, by_hand, rtol=1e-3)
    for cost, gradient in ((value, _), *others):
      assert np.isfinite(cost)
      assert np.isfinite(gradient).all()
      assert np.abs(gradient).max() > 0.1

  def test_samples_are_unbiased_for_cost_and_gradient(self):
    # One state, three words, all nine pairs of samples with their chances.
    logits = np.array([0.3, -1.0, 0.8])
    teacher = np.array([0.5, 0.2, 0.3])
    pairs = np.array([(a, b) for a in range(3) for b in range(3)])
    chances = teacher[pairs].prod(-1)

    def mean(logits):
      statistics = listed_statistics(
        jnp.tile(logits, (1, 9, 1)),
        jnp.eye(3),
        pairs[None],
        np.full((1, 9, 2), -np.log(2)),
        np.zeros((1, 9), np.int32),
        kind="samples",
        divergence=Divergence(),
      )
      return jnp.sum(chances * statistics.costs[0])

    with jax.enable_x64(True):
      value, gradient = jax.jit(jax.value_and_grad(mean))(logits)
    log_softmax = formulas.log_softmax(logits)
    np.testing.assert_allclose(value, -np.sum(teacher * log_softmax), rtol=1e-7)
    np.testing.assert_allclose(
      gradient, np.exp(log_softmax) - teacher, atol=1e-7
    )

  @pytest.mark.parametrize("settings", SPARSE, ids=str)
  def test_what_does_not_count_changes_nothing(self, settings):
    logits, _, candidates, log_probs, ids = sparse_inputs(seed=3)
    mask = np.arange(5) < np.array([[5], [3]])

    @jax.jit
    def run(candidates, log_probs, own):
      def total(logits):
        statistics = listed_statistics(
          logits,
          jnp.eye(6),
          candidates,
          log_probs,
          ids,
          own=own,
          mask=mask,
          chunk_size=2,
          **settings,
        )
        return jnp.sum(jnp.where(mask, statistics.costs, 0.0)), statistics

      return jax.grad(total, has_aux=True)(np.float32(logits))

    own = np.where(mask, -1.0, 0.0)
    gradient, clean = run(candidates, log_probs, own)
    np.testing.assert_array_equal(gradient[1, 3:], 0.0)
    for garbage in (np.nan, np.inf, 1e30):
      dirty_gradient, dirty = run(
        np.where(mask[..., None] & (log_probs > -np.inf), candidates, 10**6),
        np.where(mask[..., None], log_probs, garbage),
        np.where(mask, own, garbage),
      )
      for name in FIELDS:
        assert np.all(np.isfinite(getattr(dirty, name)))
        np.testing.assert_array_equal(
          np.where(mask, getattr(dirty, name), 0),
          np.where(mask, getattr(clean, name), 0),
        )
      np.testing.assert_array_equal(dirty_gradient, gradient)

  def test_a_word_that_is_not_in_the_vocabulary_is_not_hidden(self):
    logits, _, candidates, log_probs, ids = sparse_inputs()

    @jax.jit
    def run(logits):
      return [
        listed_statistics(
          logits, jnp.eye(6), candidates + 6, log_probs, ids, **settings
        ).costs
        for settings in SPARSE
      ]

    for costs in run(np.float32(logits)):
      assert np.all(np.isnan(costs))

  @pytest.mark.parametrize(
    ("kind", "settings", "text"),
    [
      ("beam", {}, "kind='beam' is neither"),
      ("samples", {"kind": "reverse_kl"}, "tell only which tokens it drew"),
      ("samples", {"temperature": 2.0, "tail": False}, "set temperature=1"),
      ("top_k", {"temperature": 2.0}, "or tail=False"),
      ("top_k", {"top_k": 2}, "set top_k=None"),
    ],
  )
  def test_what_a_list_does_not_tell_is_refused(self, kind, settings, text):
    inputs = (np.zeros((1, 2, 3)), np.eye(3), *np.zeros((2, 1, 2, 1), int))
    with pytest.raises(ValueError, match=text):
      listed_statistics(
        *inputs,
        np.zeros((1, 2), int),
        kind=kind,
        divergence=Divergence(**settings),
      )


class TestTokenLogProbs:
  @pytest.mark.parametrize("chunk_size", CHUNK_SIZES)
  def test_equals_dense_float64(self, chunk_size):
    student, matrix, teacher, teacher_matrix, ids = random_inputs(seed=4)
    weights = random_weights(ids.shape, ("log_probs", "entropies"))
    values, gradients = dense_float64(
      (student, matrix, teacher, teacher_matrix, ids), weights
    )

    def run(student, matrix):
      log_probs, entropies = fused_statistics.token_log_probs(
        student, matrix, ids, chunk_size=chunk_size
      )
      actual = types.SimpleNamespace(log_probs=log_probs, entropies=entropies)
      return weighted(actual, weights), vars(actual)

    actual_gradients, actual = jax.jit(jax.grad(run, (0, 1), has_aux=True))(
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
    log_probs, _ = token_log_probs(student, matrix, ids, chunk_size=3)
    logits = np.float64(student) @ matrix
    expected = [[formulas.log_softmax(x)[-1] for x in row] for row in logits]
    assert_close(log_probs, expected)

  def test_a_word_that_is_not_in_the_vocabulary_is_not_hidden(self):
    student, matrix, *_ = random_inputs(seed=5)
    ids = np.array([[0, 36, 37, -1, 10**6, 1, 2]] * 2, np.int32)
    log_probs, entropies = token_log_probs(student, matrix, ids)
    np.testing.assert_array_equal(np.isnan(log_probs), (ids < 0) | (ids > 36))
    assert np.all(np.isfinite(entropies))


class TestFromLogits:
  def test_by_hand(self):
    # Student (1/2, 1/4, 1/4), teacher (0, 1/2, 1/2); the second was sampled.
    statistics = from_logits(
      np.log(np.float32([[0.5, 0.25, 0.25]])) + 3,
      np.float32([[-np.inf, 2.0, 2.0]]),
      np.array([1]),
    )
    log_two = np.log(2)
    np.testing.assert_allclose(statistics.costs, [2 * log_two], rtol=1e-6)
    np.testing.assert_allclose(statistics.log_probs, [-2 * log_two], rtol=1e-6)
    np.testing.assert_allclose(statistics.entropies, [1.5 * log_two], rtol=1e-6)
    np.testing.assert_allclose(
      statistics.teacher_entropies, [log_two], rtol=1e-6
    )
    np.testing.assert_allclose(
      statistics.teacher_log_probs, [-log_two], rtol=1e-6
    )
    np.testing.assert_array_equal(statistics.cross_entropies, statistics.costs)

  def test_words_that_both_exclude_cost_nothing(self):
    teacher_logits = np.float32([[np.log(0.25), np.log(0.75), -np.inf]])

    def total(logits, names=FIELDS):
      statistics = token_statistics.from_logits(
        logits, teacher_logits, jnp.array([0])
      )
      return sum(jnp.sum(getattr(statistics, name)) for name in names)

    excluding = np.float32([[0.3, -0.2, -np.inf]])
    value, gradient = jax.jit(jax.value_and_grad(total))(excluding)
    without, expected = jax.jit(
      jax.value_and_grad(lambda logits: total(jnp.append(logits, -1e9)[None]))
    )(excluding[0, :2])
    np.testing.assert_allclose(value, without, rtol=1e-6)
    np.testing.assert_allclose(gradient[0, :2], expected, rtol=1e-5)
    np.testing.assert_array_equal(gradient[0, 2], 0.0)

  def test_a_word_that_only_the_student_excludes_costs_infinitely(self):
    statistics = from_logits(
      np.float32([[0.0, -np.inf]]), np.zeros((1, 2), np.float32), np.array([0])
    )
    np.testing.assert_array_equal(statistics.costs, jnp.inf)

  def test_a_broken_teacher_is_not_hidden(self):
    zeros = np.zeros((1, 2), np.float32)
    statistics = from_logits(zeros, zeros + np.nan, np.array([0]))
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
    statistics = references.token_statistics(*arguments, chunk_size=chunk_size)
    return jnp.sum(statistics.costs + statistics.log_probs)

  @staticmethod
  def log_probs_loss(*arguments, chunk_size):
    return jnp.sum(
      fused_statistics.token_log_probs(*arguments, chunk_size=chunk_size)[0]
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
