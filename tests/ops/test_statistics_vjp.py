"""Slopes in closed form against autodiff, finite differences and by hand."""

import functools
import itertools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from distil_jax.ops import statistics_vjp, token_statistics
from distil_jax.ops.divergences import Divergence
from tests import formulas

FIELDS = (
  "costs",
  "cross_entropies",
  "teacher_entropies",
  "log_probs",
  "entropies",
  "teacher_log_probs",
)
# The statistics that have slopes.
PULLED = ("costs", "log_probs", "entropies")
NO_PULLS = {"costs": [0], "log_probs": [0], "entropies": [0]}

KINDS = (
  {"kind": "forward_cross_entropy"},
  {"kind": "forward_kl"},
  {"kind": "reverse_kl"},
  *({"kind": "sdpo", "weight": w} for w in (0.0, 0.3, 1.0)),
  *(
    {"kind": "opsd", "weight": w, "token_clip": clip}
    for clip in (None, 0.05)
    for w in (0.0, 0.6, 1.0)
  ),
)
# Without those that are others by another name.
DISTINCT_KINDS = (*KINDS[:3], KINDS[4], *KINDS[9:])
VOCAB_SIZE = 7
SUPPORTS = (
  {},
  {"top_k": VOCAB_SIZE},
  {"top_k": VOCAB_SIZE + 3, "tail": False},
  *(
    {"top_k": k, "top_k_of": of, "tail": tail}
    for k in (1, 3)
    for of in ("student", "teacher")
    for tail in (False, True)
  ),
)
# Both temperatures with the whole vocabulary, and each with both values of
# every setting of top-k, of which the last three bits of the place tell.
PLACES = (
  ({}, 1.0),
  *(
    (support, (1.3, 1.0)[(i + 5).bit_count() % 2])
    for i, support in enumerate(SUPPORTS)
  ),
)
each_kind = pytest.mark.parametrize(
  "kind", KINDS, ids=lambda kind: "-".join(map(str, kind.values()))
)


@pytest.fixture(scope="module", autouse=True)
def room_for_others():
  """Thousands of operations, one by one, push jitted functions out."""
  yield
  jax.clear_caches()


def tile():
  """Logits of student and teacher, `[5, 7]` each, and ids; some logits equal.

  float32, so that both precisions see the same numbers.
  """
  rng = np.random.default_rng(0)
  student, teacher = rng.normal(0, 2, (2, 5, VOCAB_SIZE)).astype(np.float32)
  # More than one is equal to the third largest, of each.
  student[2] = [1.5, -0.5, 1.5, -0.5, -0.5, 1.5, 1.5]
  teacher[2] = [0.5, -0.5, 2.0, 0.5, 0.5, -1.5, 0.5]
  # Top-k orders the two zeros, a comparison does not.
  student[3] = [-0.0, 0.0, -0.0, 0.0, -1.0, 0.0, -2.0]
  teacher[3] = [-3.0, -0.0, 2.0, -0.0, 0.0, -0.0, -4.0]
  student[4] *= 4
  teacher[4] *= 4
  return student, teacher, rng.integers(0, VOCAB_SIZE, 5).astype(np.int32)


def cotangents(size, seed=1):
  """Of all statistics together, and of each by itself."""
  rng = np.random.default_rng(seed)
  every = dict(zip(PULLED, rng.normal(size=(3, size)), strict=True))
  alone = [
    {name: every[name] if name == only else 0 * every[name] for name in PULLED}
    for only in PULLED
  ]
  return [every, *alone]


# Sets of cotangents, and rows: each operation is compiled for one shape.
NUM_PULLS, NUM_ROWS = 4, 40


def spread(student, teacher, ids, pulls, dtype):
  """A tile for each set of cotangents, its rows repeated, and these stacked."""

  def rows(x):
    return np.resize(x, (NUM_PULLS, NUM_ROWS, *np.shape(x)[1:]))

  assert len(pulls) <= NUM_PULLS
  pulls = [*pulls, *cotangents(len(ids))][:NUM_PULLS]
  arrays = {
    name: np.stack([np.resize(x[name], NUM_ROWS) for x in pulls])
    for name in PULLED
  }
  return (
    jnp.asarray(rows(student), dtype),
    jnp.asarray(rows(teacher), dtype),
    jnp.asarray(rows(ids)),
    {name: jnp.asarray(x, dtype) for name, x in arrays.items()},
  )


def gathered(found, slopes, num_rows, num_pulls):
  """Statistics of a tile, and slopes for each set of cotangents."""
  found = {name: np.asarray(x)[0, :num_rows] for name, x in found.items()}
  return found, [*np.asarray(slopes)[:num_pulls, :num_rows]]


def _by_tiles(student, teacher, ids, divergence, pulls):
  tile = (student, teacher, ids, divergence)
  found, residuals = statistics_vjp.read(*tile)
  return found, statistics_vjp.vjp(*tile, residuals, **pulls)


# For what few divergences have: to compile operations takes as long as to
# compile some ten of these programs.
_compiled_by_tiles = jax.jit(_by_tiles, static_argnums=3)


def by_tiles(
  student,
  teacher,
  ids,
  divergence,
  pulls,
  dtype=jnp.float32,
  is_compiled=False,
):
  """Statistics, and slopes for each set of cotangents."""
  run = _compiled_by_tiles if is_compiled else _by_tiles
  *tile, arrays = spread(student, teacher, ids, pulls, dtype)
  found, slopes = run(*tile, divergence, arrays)
  assert {x.dtype for x in (*found.values(), slopes)} == {jnp.dtype(dtype)}
  return gathered(found, slopes, len(ids), len(pulls))


def by_autodiff(student, teacher, ids, divergence, pulls):
  """The same by `from_logits`, in float64."""
  wide, teacher, places, arrays = spread(
    student, teacher, ids, pulls, jnp.float64
  )
  found, pull_back = jax.vjp(
    lambda x: token_statistics.from_logits(x, teacher, places, divergence), wide
  )
  nothing = jax.tree.map(np.zeros_like, found)
  (slopes,) = pull_back(nothing.replace(**arrays))
  found = {name: getattr(found, name) for name in FIELDS}
  return gathered(found, slopes, len(ids), len(pulls))


@functools.cache
def wide_by_tiles(divergence):
  """Statistics and slopes of `tile` in float64."""
  student, teacher, ids = tile()
  pulls = cotangents(len(ids))
  with jax.enable_x64(True):
    return by_tiles(student, teacher, ids, divergence, pulls, jnp.float64)


def assert_close(actual, expected, tolerance, note="", axis=None):
  """Relative to the largest entry, of all or along an axis.

  What should be 0 is within the rounding of numbers around 1.
  """
  assert actual.shape == expected.shape, note
  error = np.max(np.abs(actual - expected), axis=axis)
  largest = np.max(np.abs(expected), axis=axis)
  rounding = 4 * np.finfo(actual.dtype).eps
  assert np.all(error <= tolerance * largest + rounding), (note, error, largest)


class TestAgainstAutodiff:
  @each_kind
  def test_statistics_and_slopes_equal_those_of_all_supports(self, kind):
    student, teacher, ids = tile()
    pulls = cotangents(len(ids))
    for support, temperature in PLACES:
      divergence = Divergence(**kind, **support, temperature=temperature)
      with jax.enable_x64(True):
        expected, expected_slopes = by_autodiff(
          student, teacher, ids, divergence, pulls
        )
      wide = wide_by_tiles(divergence)
      narrow = by_tiles(student, teacher, ids, divergence, pulls)
      for (found, slopes), tolerance in ((wide, 1e-10), (narrow, 1e-5)):
        assert set(found) == set(FIELDS)
        for name in FIELDS:
          assert_close(found[name], expected[name], tolerance, divergence)
        for slope, reference in zip(slopes, expected_slopes, strict=True):
          assert_close(slope, reference, tolerance, divergence)
      for slope, reference in zip(wide[1], expected_slopes, strict=True):
        # Row by row, so that a large one hides no small one.
        assert_close(slope, reference, 1e-10, divergence, axis=-1)
        # What is added to all logits changes no statistic.
        assert np.max(np.abs(np.sum(slope, axis=-1))) < 1e-12, divergence

  def test_every_cotangent_matters(self):
    student, teacher, ids = tile()
    divergence = Divergence("reverse_kl", top_k=3)
    pulls = cotangents(len(ids))
    _, (every, *alone) = by_tiles(student, teacher, ids, divergence, pulls)
    for slope in alone:
      assert np.all(np.max(np.abs(slope), axis=-1) > 1e-3)
    assert_close(sum(alone), every, 1e-5)

  def test_the_grid_keeps_and_clips_what_it_should(self):
    # Otherwise two settings of the grid could be the same.
    student, teacher, ids = tile()
    pulls = cotangents(len(ids))

    def slopes(**settings):
      return by_tiles(student, teacher, ids, Divergence(**settings), pulls)[1]

    whole = slopes(kind="opsd", weight=0.6)[1]
    for other in (
      {"token_clip": 0.05},
      {"top_k": 3},
      {"top_k": 3, "tail": False},
      {"top_k": 3, "top_k_of": "teacher"},
      {"temperature": 1.3},
    ):
      different = slopes(**({"kind": "opsd", "weight": 0.6} | other))[1]
      assert np.max(np.abs(different - whole)) > 1e-2, other


class TestAgainstNumPy:
  @each_kind
  def test_costs_equal_loops_in_float64(self, kind):
    student, teacher, ids = tile()
    for support, temperature in PLACES:
      where = support | {"temperature": temperature}
      found, _ = wide_by_tiles(Divergence(**kind, **where))
      for row in range(len(ids)):
        s, t = (x[row].astype(np.float64) for x in (student, teacher))
        sides = formulas.support(s, t, **where)
        expected = {
          "costs": formulas.divergence(*sides, **kind),
          "cross_entropies": formulas.divergence(
            *sides, "forward_cross_entropy"
          ),
          "teacher_entropies": formulas.entropy(sides[1]),
          "log_probs": formulas.log_softmax(s)[ids[row]],
          "entropies": formulas.entropy(formulas.log_softmax(s)),
          "teacher_log_probs": formulas.log_softmax(t)[ids[row]],
        }
        for name, value in expected.items():
          np.testing.assert_allclose(
            found[name][row], value, rtol=1e-10, atol=1e-12, err_msg=f"{where}"
          )

  @pytest.mark.parametrize(
    "settings",
    [
      {"kind": "forward_cross_entropy", "temperature": 1.3},
      {"kind": "forward_kl", "top_k": 3},
      {"kind": "reverse_kl", "top_k": 2, "tail": False, "temperature": 0.7},
      {"kind": "sdpo", "weight": 0.3, "top_k": 3, "top_k_of": "teacher"},
      {"kind": "opsd", "weight": 0.6, "token_clip": 0.05, "top_k": 4},
    ],
    ids=str,
  )
  def test_slopes_equal_finite_differences(self, settings):
    # Two rows without equal logits, where a nudge does not change the support.
    student, teacher, ids = (x[:2] for x in tile())
    student, teacher = student.astype(np.float64), teacher.astype(np.float64)
    pull = {name: x[:2] for name, x in cotangents(5)[0].items()}
    kind = {
      name: settings[name]
      for name in ("kind", "weight", "token_clip")
      if name in settings
    }
    where = {k: x for k, x in settings.items() if k not in kind}

    def total(logits):
      value = 0.0
      for row, (s, t) in enumerate(zip(logits, teacher, strict=True)):
        sides = formulas.support(s, t, **where)
        own = formulas.log_softmax(s)
        value += pull["costs"][row] * formulas.divergence(*sides, **kind)
        value += pull["log_probs"][row] * own[ids[row]]
        value += pull["entropies"][row] * formulas.entropy(own)
      return value

    _, (actual, *_) = wide_by_tiles(Divergence(**settings))
    expected = formulas.numerical_gradient(total, student)
    np.testing.assert_allclose(actual[:2], expected, rtol=0, atol=1e-8)


class TestByHand:
  """Student (1/2, 1/4, 1/4), teacher (1/4, 1/4, 1/2)."""

  LOG_TWO = np.log(2)

  def slopes(self, divergence, *, scale=1.0):
    student = scale * np.log([[0.5, 0.25, 0.25]]) + 3
    teacher = scale * np.log([[0.25, 0.25, 0.5]]) - 7
    pulls = [
      {name: np.array([float(name == only)]) for name in PULLED}
      for only in PULLED
    ]
    found, slopes = by_tiles(
      student, teacher, [1], divergence, pulls, is_compiled=True
    )
    return found, [x[0] for x in slopes]

  def assert_all(self, actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-7)

  def test_forward(self):
    found, (costs, log_probs, entropies) = self.slopes(Divergence())
    # −1/4 log 1/2 − 3/4 log 1/4
    self.assert_all(found["costs"], [1.75 * self.LOG_TWO])
    self.assert_all(found["cross_entropies"], [1.75 * self.LOG_TWO])
    self.assert_all(found["teacher_entropies"], [1.5 * self.LOG_TWO])
    self.assert_all(found["entropies"], [1.5 * self.LOG_TWO])
    self.assert_all(found["log_probs"], [-2 * self.LOG_TWO])
    self.assert_all(found["teacher_log_probs"], [-2 * self.LOG_TWO])
    self.assert_all(costs, [0.25, 0, -0.25])  # s − t
    self.assert_all(log_probs, [-0.5, 0.75, -0.25])
    # −π (log π + H): −1/2 (−1 + 3/2), −1/4 (−2 + 3/2) twice
    self.assert_all(entropies, np.array([-0.25, 0.125, 0.125]) * self.LOG_TWO)

  def test_reverse(self):
    found, (costs, *_) = self.slopes(Divergence("reverse_kl"))
    # log s/t is (1, 0, −1) log 2, so KL = 1/4 log 2; s (log s/t − KL)
    self.assert_all(found["costs"], [0.25 * self.LOG_TWO])
    self.assert_all(costs, np.array([0.375, -0.0625, -0.3125]) * self.LOG_TWO)

  def test_a_bucket_shares_its_slope(self):
    found, (costs, log_probs, _) = self.slopes(Divergence(top_k=1))
    # (1/2, 1/2) and (1/4, 3/4): the bucket has −1/4, and two equal tokens.
    self.assert_all(found["costs"], [self.LOG_TWO])
    self.assert_all(costs, [0.25, -0.125, -0.125])
    self.assert_all(log_probs, [-0.5, 0.75, -0.25])

  def test_without_a_bucket_the_others_have_no_slope(self):
    found, (costs, log_probs, _) = self.slopes(
      Divergence("forward_kl", top_k=2, tail=False)
    )
    # (2/3, 1/3) and (1/2, 1/2); of equal logits the first is kept.
    self.assert_all(found["costs"], [np.log(9 / 8) / 2])
    self.assert_all(costs, [1 / 6, -1 / 6, 0])
    assert costs[2] == 0
    self.assert_all(log_probs, [-0.5, 0.75, -0.25])

  def test_temperature_is_in_the_costs_alone(self):
    # Logits twice as large at temperature 2: the same costs, half the slopes.
    found, (costs, log_probs, _) = self.slopes(
      Divergence(temperature=2.0), scale=2.0
    )
    self.assert_all(found["costs"], [1.75 * self.LOG_TWO])
    self.assert_all(costs, [0.125, 0, -0.125])
    # At temperature 1 they are (4, 1, 1) / 6.
    self.assert_all(log_probs, [-2 / 3, 5 / 6, -1 / 6])
    self.assert_all(found["log_probs"], [-np.log(6)])

  def test_a_clipped_token_pulls_no_more(self):
    found, (costs, *_) = self.slopes(
      Divergence("opsd", weight=1.0, token_clip=0.2)
    )
    # Summands (1/2, 0, −1/4) log 2, the first of which is above 0.2. What is
    # left has slopes (0, 1/4, 1/4 (1 − log 2)), and own − s Σ own.
    last = 0.25 * (1 - self.LOG_TWO)
    total = 0.25 + last
    self.assert_all(found["costs"], [0.2 - 0.25 * self.LOG_TWO])
    self.assert_all(costs, [-total / 2, 0.25 - total / 4, last - total / 4])


def extreme_tiles():
  """Names, and logits `[5, 7]` of student and teacher."""
  rng = np.random.default_rng(2)
  shape = (5, VOCAB_SIZE)
  certain = np.full(shape, np.log(1e-9 / 6))
  certain[np.arange(5), [0, 3, 3, 6, 1]] = np.log1p(-1e-9)
  yield "certain_teacher", rng.normal(0, 2, shape), certain
  yield "certain_student", certain, rng.normal(0, 2, shape)
  yield "both_certain", certain, certain[:, ::-1]
  large = np.full((2, *shape), -1e4)
  large[0, np.arange(5), [0, 1, 2, 3, 4]] = 1e4
  large[1, np.arange(5), [0, 4, 1, 3, 3]] = 1e4
  large[:, :, 5] = 9998
  yield "large", *large
  # What two tokens leave over is e^−40: 1 less their mass is 0 in float32.
  student, teacher = rng.normal(0, 1, (2, *shape))
  far = np.array([[0, 0, -40, -40, -40, -40, -40]])
  yield "no_tail_left", student + far, teacher + far
  yield "no_tail_of_the_student", student + far, teacher
  yield "no_tail_of_the_teacher", student, teacher + far
  yield "bfloat16", *rng.normal(0, 5, (2, *shape)).astype(ml_dtypes.bfloat16)


@functools.cache
def extremes():
  """What float32 and float64 say of all extreme tiles, by divergence.

  A list of tiles for each divergence, of which each has statistics and slopes,
  computed and expected.
  """
  tiles = [case[1:] for case in extreme_tiles()]
  # float64 has the same numbers to work with.
  student, teacher = (
    np.concatenate([np.asarray(x, np.float32) for x in side])
    for side in zip(*tiles, strict=True)
  )
  ids = np.tile([0, 3, 6, 1, 5], len(tiles))
  every, only_costs, *_ = cotangents(5)
  pulls = [
    {name: np.tile(x, len(tiles)) for name, x in pull.items()}
    for pull in (every, only_costs)
  ]
  # ½ is a temperature whose quotients are exact.
  supports = (
    {},
    {"top_k": 2},
    {"top_k": 2, "top_k_of": "teacher", "temperature": 0.5},
    {"top_k": 3, "tail": False},
  )
  results = {}
  for kind, support in itertools.product(DISTINCT_KINDS, supports):
    divergence = Divergence(**kind, **support)
    both = [by_tiles(student, teacher, ids, divergence, pulls)]
    with jax.enable_x64(True):
      both.append(by_autodiff(student, teacher, ids, divergence, pulls))
    results[divergence] = [
      jax.tree.map(lambda x, i=i: x[5 * i : 5 * i + 5], both)
      for i in range(len(tiles))
    ]
  return results


class TestStability:
  @pytest.mark.parametrize(
    "index",
    range(len(list(extreme_tiles()))),
    ids=[name for name, *_ in extreme_tiles()],
  )
  def test_float32_says_what_float64_does(self, index):
    for divergence, tiles in extremes().items():
      (found, slopes), (expected, expected_slopes) = tiles[index]
      for name in FIELDS:
        assert np.all(np.isfinite(found[name])), divergence
        assert_close(found[name], expected[name], 1e-5, (name, divergence))
      for slope, reference in zip(slopes, expected_slopes, strict=True):
        assert np.all(np.isfinite(slope)), divergence
        assert_close(slope, reference, 1e-5, divergence)

  def test_a_lost_tail_keeps_its_size(self):
    # 1 less the mass of the kept is 0 in float32, and its logarithm −inf.
    student = np.array([[0.0, -1.0, -40.0, -41.0]])
    teacher = np.log([[0.4, 0.4, 0.1, 0.1]])
    found, (slope,) = by_tiles(
      student,
      teacher,
      [0],
      Divergence(top_k=2),
      [{**NO_PULLS, "costs": [1]}],
      is_compiled=True,
    )
    tail = np.logaddexp(-40, -41) - np.logaddexp(0, -1)
    own = formulas.log_softmax(student[0])
    np.testing.assert_allclose(
      found["costs"], [-0.4 * (own[0] + own[1]) - 0.2 * tail], rtol=1e-6
    )
    # −t of the bucket, by each token's part of it.
    share = 1 / (1 + np.exp(-1))
    np.testing.assert_allclose(
      slope[0, 2:], [-0.2 * share, -0.2 * (1 - share)], rtol=1e-5
    )


class TestExcludedTokens:
  @pytest.mark.parametrize(
    "where",
    [{}, {"top_k": 2}, {"top_k": 2, "tail": False}, {"top_k": 6}],
    ids=str,
  )
  def test_what_both_exclude_costs_nothing_and_has_no_slope(self, where):
    student, teacher, _ = (x[:2] for x in tile())
    ids = np.array([0, 4])
    # With the words of 1 and 6, and without them.
    others = np.array([0, 2, 3, 4, 5])
    excluding = np.full((2, 2, VOCAB_SIZE), -np.inf, np.float32)
    excluding[0, :, others] = student[:, others].T
    excluding[1, :, others] = teacher[:, others].T
    without = student[:, others], teacher[:, others], np.array([0, 3])
    pulls = cotangents(2)[:2]
    for kind in DISTINCT_KINDS:
      divergence = Divergence(**kind, **where, temperature=1.3)
      found, slopes = by_tiles(*excluding, ids, divergence, pulls)
      expected, expected_slopes = by_tiles(*without, divergence, pulls)
      for name in FIELDS:
        assert_close(found[name], expected[name], 1e-6, (name, divergence))
      for slope, reference in zip(slopes, expected_slopes, strict=True):
        np.testing.assert_array_equal(slope[:, [1, 6]], 0.0)
        assert_close(slope[:, others], reference, 1e-6, divergence)

  @pytest.mark.parametrize("where", [{}, {"top_k": 2}], ids=str)
  def test_what_one_excludes_costs_and_pulls_as_autodiff_says(self, where):
    student, teacher, ids = tile()
    excluding = np.where(np.arange(VOCAB_SIZE) == 2, -np.inf, 0)[None]
    # Five rows where the student excludes a token, five where the teacher does.
    pair = [
      np.concatenate([student + excluding, student]),
      np.concatenate([teacher, teacher + excluding]),
    ]
    ids = np.tile(np.where(ids == 2, 0, ids), 2)
    pulls = [
      {name: np.tile(x, 2) for name, x in pull.items()}
      for pull in cotangents(5)
    ]
    for kind in DISTINCT_KINDS:
      divergence = Divergence(**kind, **where)
      found, slopes = by_tiles(*pair, ids, divergence, pulls)
      with jax.enable_x64(True):
        expected, references = by_autodiff(*pair, ids, divergence, pulls)
      for name in FIELDS:
        np.testing.assert_allclose(
          found[name],
          expected[name],
          rtol=1e-5,
          atol=1e-6,
          err_msg=f"{name} {divergence}",
        )
      # Where one has mass and the other must not have any, the divergence is
      # infinite; otherwise it is not.
      is_infinite = np.isinf(found["costs"])
      if where == {}:
        for rows, infinite in (
          (is_infinite[:5], "forward"),
          (is_infinite[5:], "reverse"),
        ):
          assert np.all(rows == kind["kind"].startswith(infinite))
      for slope, reference in zip(slopes, references, strict=True):
        assert not np.any(np.isnan(slope[~is_infinite])), divergence
        np.testing.assert_allclose(
          slope[~is_infinite],
          reference[~is_infinite],
          rtol=1e-4,
          atol=1e-6,
          err_msg=f"{divergence}",
        )

  def test_a_broken_network_is_not_hidden(self):
    student, teacher, ids = tile()
    broken = np.where(np.eye(5, VOCAB_SIZE) == 1, np.nan, 0).astype(np.float32)
    for kind in DISTINCT_KINDS:
      for pair in ((student + broken, teacher), (student, teacher + broken)):
        found, _ = by_tiles(*pair, ids, Divergence(**kind), ())
        assert np.all(np.isnan(found["costs"])), kind


class TestAlone:
  def test_slopes_equal_autodiff(self):
    logits, _, ids = tile()
    logits[0, (ids[0] + 1) % VOCAB_SIZE] = -np.inf

    @jax.jit
    def by_hand(logits, pull):
      found, residuals = statistics_vjp.read_own(logits, ids)
      return found, statistics_vjp.own_vjp(logits, ids, residuals, **pull)

    @jax.jit
    def dense(logits, pull):
      found, pull_back = jax.vjp(statistics, logits)
      return found, pull_back((pull["log_probs"], pull["entropies"]))[0]

    def statistics(logits):
      log_softmax = jax.nn.log_softmax(logits)
      of_excluded = jnp.where(logits == -jnp.inf, 0.0, log_softmax)
      entropies = -jnp.sum(jnp.exp(log_softmax) * of_excluded, axis=-1)
      return log_softmax[jnp.arange(5), ids], entropies

    for every in cotangents(5):
      pull = {name: every[name] for name in ("log_probs", "entropies")}
      with jax.enable_x64(True):
        expected, reference = dense(logits.astype(np.float64), pull)
        found, slopes = by_hand(logits.astype(np.float64), pull)
      narrow, narrow_slopes = by_hand(
        logits, {name: np.float32(x) for name, x in pull.items()}
      )
      assert narrow_slopes.dtype == np.float32
      for pair in zip(found, expected, strict=True):
        assert_close(*map(np.asarray, pair), 1e-10)
      for pair in zip(narrow, expected, strict=True):
        assert_close(*map(np.asarray, pair), 1e-5)
      slopes, narrow_slopes, reference = map(
        np.asarray, (slopes, narrow_slopes, reference)
      )
      assert_close(slopes, reference, 1e-10, axis=-1)
      assert_close(narrow_slopes, reference, 1e-5)
      assert slopes[0, (ids[0] + 1) % VOCAB_SIZE] == 0


def test_a_word_outside_the_vocabulary_is_not_hidden():
  student, teacher, _ = tile()
  ids = np.array([-1, 0, VOCAB_SIZE - 1, VOCAB_SIZE, 10**6])
  outside = [True, False, False, True, True]
  found, _ = by_tiles(student, teacher, ids, Divergence(), ())
  (own, entropies), _ = jax.jit(statistics_vjp.read_own)(student, ids)
  for log_probs in (found["log_probs"], found["teacher_log_probs"], own):
    np.testing.assert_array_equal(np.isnan(log_probs), outside)
  for finite in ("costs", "entropies", "cross_entropies", "teacher_entropies"):
    assert np.all(np.isfinite(found[finite]))
  assert np.all(np.isfinite(entropies))


@jax.jit
def _slopes_of_words(logits, ids):
  own = {"log_probs": jnp.ones(1), "entropies": jnp.zeros(1)}
  pulls = {"costs": jnp.zeros(1), **own}
  _, slopes = _by_tiles(logits, logits, ids, Divergence(), pulls)
  _, residuals = statistics_vjp.read_own(logits, ids)
  return slopes, statistics_vjp.own_vjp(logits, ids, residuals, **own)


@pytest.mark.parametrize("token", [-1, 3])
def test_a_word_that_is_not_there_pulls_on_nothing(token):
  logits = np.array([[0.3, -1.0, 2.0]], np.float32)
  for slopes in _slopes_of_words(logits, np.array([token])):
    np.testing.assert_array_equal(slopes, 0.0)
