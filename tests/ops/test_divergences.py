"""Divergences: by hand, in NumPy, by finite differences, and at the edges."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distil_jax.ops import divergences
from distil_jax.ops.divergences import Divergence
from tests import formulas

INF = np.inf
KINDS = [
  {"kind": "forward_cross_entropy"},
  {"kind": "forward_kl"},
  {"kind": "reverse_kl"},
  {"kind": "sdpo", "weight": 0.0},
  {"kind": "sdpo", "weight": 0.3},
  {"kind": "sdpo", "weight": 1.0},
  {"kind": "opsd", "weight": 0.0},
  {"kind": "opsd", "weight": 0.7, "token_clip": 0.05},
  {"kind": "opsd", "weight": 1.0, "token_clip": 0.1},
]
SUPPORTS = [
  {},
  {"temperature": 1.7},
  {"top_k": 3},
  {"top_k": 2, "top_k_of": "teacher", "temperature": 0.7},
  {"top_k": 1, "tail": False},
  {"top_k": 4, "top_k_of": "teacher", "tail": False},
]
# One state in which everything is a multiple of ln 2.
STUDENT = np.log([1 / 2, 1 / 4, 1 / 4])
TEACHER = np.log([1 / 4, 1 / 4, 1 / 2])
LN2 = np.log(2)


# Compiled: each of their operations alone would take as long to compile.
on_support = jax.jit(divergences.log_probs_on_support, static_argnums=2)
cost = jax.jit(divergences.cost, static_argnums=2)


@functools.partial(jax.jit, static_argnums=2)
def cost_of(student, teacher, divergence):
  """From logits, over a support."""
  return divergences.cost(
    *divergences.log_probs_on_support(student, teacher, divergence), divergence
  )


@functools.partial(jax.jit, static_argnums=2)
def values_and_gradients(student, teacher, support):
  """Of every kind at once, to compile once. Shapes `[K, ...]`, `[K, ..., V]`.

  Args:
    support: pairs of name and value.
  """
  sides = functools.partial(
    divergences.log_probs_on_support,
    teacher_logits=teacher,
    divergence=Divergence(**dict(support)),
  )
  (ours, theirs), pull = jax.vjp(sides, student)
  costs, slopes = [], []
  for settings in KINDS:
    cost, slope = jax.vjp(
      lambda s, settings=settings: divergences.cost(
        s, theirs, Divergence(**settings)
      ),
      ours,
    )
    costs.append(cost)
    slopes.append(slope(jnp.ones_like(cost))[0])
  slopes = jnp.stack(slopes)
  gradients = jax.vmap(pull)((slopes, jnp.zeros_like(slopes)))[0]
  return jnp.stack(costs), gradients


def in_numpy(student, teacher, settings):
  """Cost of one state."""
  divergence = {
    name: settings[name]
    for name in ("kind", "weight", "token_clip")
    if name in settings
  }
  rest = {k: v for k, v in settings.items() if k not in divergence}
  return formulas.divergence(
    *formulas.support(student, teacher, **rest), **divergence
  )


class TestByHand:
  @pytest.mark.parametrize(
    ("settings", "expected"),
    [
      # 1/4 · 1 + 1/4 · 2 + 1/2 · 2
      ({"kind": "forward_cross_entropy"}, 1.75 * LN2),
      # the teacher's entropy, 1/4 · 2 + 1/4 · 2 + 1/2 · 1 = 1.5, less
      ({"kind": "forward_kl"}, 0.25 * LN2),
      # 1/2 · 1 + 0 − 1/4 · 1
      ({"kind": "reverse_kl"}, 0.25 * LN2),
      # m = (3/8, 1/4, 3/8): KL(s‖m) = ½ ln 4/3 + ¼ ln 2/3, and so KL(t‖m)
      (
        {"kind": "sdpo", "weight": 0.5},
        0.5 * np.log(4 / 3) + 0.25 * np.log(2 / 3),
      ),
      # m = (7/16, 1/4, 5/16):
      # ¾ (½ ln 8/7 + ¼ ln 4/5) + ¼ (¼ ln 4/7 + ½ ln 8/5)
      (
        {"kind": "sdpo", "weight": 0.25},
        0.75 * (0.5 * np.log(8 / 7) + 0.25 * np.log(4 / 5))
        + 0.25 * (0.25 * np.log(4 / 7) + 0.5 * np.log(8 / 5)),
      ),
      # the same mixture in OPSD's words
      (
        {"kind": "opsd", "weight": 0.25},
        0.75 * (0.5 * np.log(8 / 7) + 0.25 * np.log(4 / 5))
        + 0.25 * (0.25 * np.log(4 / 7) + 0.5 * np.log(8 / 5)),
      ),
      # summands of KL(t‖s): −¼ ln 2, 0, ½ ln 2; the last is cut to 0.1
      (
        {"kind": "opsd", "weight": 0.0, "token_clip": 0.1},
        -0.25 * LN2 + 0.1,
      ),
    ],
    ids=str,
  )
  def test_costs(self, settings, expected):
    actual = cost(STUDENT, TEACHER, Divergence(**settings))
    np.testing.assert_allclose(actual, expected, rtol=1e-6)

  def test_entropy(self):
    log_probs = jnp.asarray([np.log([1 / 2, 1 / 4, 1 / 4]), [0.0, -INF, -INF]])
    np.testing.assert_allclose(
      divergences.entropy(log_probs), [1.5 * LN2, 0], rtol=1e-6
    )

  @pytest.mark.parametrize(
    ("settings", "student", "teacher"),
    [
      ({"top_k": 1}, [1 / 2, 1 / 2], [1 / 4, 3 / 4]),
      (
        {"top_k": 1, "top_k_of": "teacher"},
        [1 / 4, 3 / 4],
        [1 / 2, 1 / 2],
      ),
      # The student's second and third word tie: the earlier one is kept.
      ({"top_k": 2, "tail": False}, [2 / 3, 1 / 3], [1 / 2, 1 / 2]),
      ({"top_k": 2}, [1 / 2, 1 / 4, 1 / 4], [1 / 4, 1 / 4, 1 / 2]),
    ],
    ids=str,
  )
  def test_support(self, settings, student, teacher):
    actual = on_support(STUDENT + 5, TEACHER, Divergence(**settings))
    np.testing.assert_allclose(np.exp(actual[0]), student, rtol=1e-6)
    np.testing.assert_allclose(np.exp(actual[1]), teacher, rtol=1e-6)


@pytest.mark.parametrize("support", SUPPORTS, ids=str)
def test_against_numpy_in_float64(support):
  rng = np.random.default_rng(0)
  student, teacher = rng.normal(0, 2, (2, 2, 6))
  with jax.enable_x64(True):
    costs, gradients = values_and_gradients(
      jnp.asarray(student), jnp.asarray(teacher), tuple(support.items())
    )
  for row, settings in enumerate(KINDS):
    for at, (s, t) in enumerate(zip(student, teacher, strict=True)):
      one = functools.partial(in_numpy, teacher=t, settings=settings | support)
      np.testing.assert_allclose(costs[row, at], one(s), rtol=1e-12, atol=1e-15)
      np.testing.assert_allclose(
        gradients[row, at], formulas.numerical_gradient(one, s), atol=1e-9
      )


class TestReducesTo:
  S, T = np.random.default_rng(1).normal(0, 2, (2, 4, 5)).astype(np.float32)

  @pytest.mark.parametrize("top_k", [5, 9])
  @pytest.mark.parametrize("tail", [True, False])
  def test_top_k_of_the_whole_vocabulary(self, top_k, tail):
    full = on_support(self.S, self.T, Divergence())
    kept = on_support(self.S, self.T, Divergence(top_k=top_k, tail=tail))
    jax.tree.map(np.testing.assert_array_equal, kept, full)

  def test_weights_at_the_ends_are_the_two_kls(self):
    student, teacher = on_support(self.S, self.T, Divergence())
    forward = divergences.forward_kl(student, teacher)
    reverse = divergences.reverse_kl(student, teacher)
    for end, expected in ((0.0, forward), (1.0, reverse)):
      for actual in (
        divergences.sdpo(student, teacher, alpha=end),
        divergences.opsd(student, teacher, beta=end),
      ):
        np.testing.assert_array_equal(actual, expected)
    # The ends are no limits.
    near = divergences.sdpo(student, teacher, alpha=1e-3)
    assert np.all(near < 0.1 * forward)

  def test_the_middle_is_symmetric(self):
    student, teacher = on_support(self.S, self.T, Divergence())
    middle = divergences.sdpo(student, teacher, alpha=0.5)
    np.testing.assert_allclose(
      middle, divergences.opsd(student, teacher, beta=0.5), rtol=1e-6
    )
    np.testing.assert_allclose(
      middle, divergences.sdpo(teacher, student, alpha=0.5), rtol=1e-5
    )
    away = divergences.sdpo(student, teacher, alpha=0.2)
    assert np.all(
      np.abs(away - divergences.sdpo(teacher, student, alpha=0.2)) > 1e-4
    )

  def test_a_student_equal_to_its_teacher_costs_nothing(self):
    costs, gradients = values_and_gradients(self.S, self.S, (("top_k", 3),))
    assert KINDS[0]["kind"] == "forward_cross_entropy"
    np.testing.assert_allclose(costs[1:], 0.0, atol=1e-6)
    np.testing.assert_allclose(gradients, 0.0, atol=1e-6)


class TestTail:
  def test_where_the_kept_mass_rounds_to_one(self):
    # Kept: e³⁰ against two ones. 1 − Σp is 0 in float32, yet the tail has
    # 2 e⁻³⁰ on the student's side and, at e⁴⁰, 2 e⁻⁴⁰ on the teacher's.
    student = jnp.asarray([30.0, 0.0, 0.0])
    teacher = jnp.asarray([0.0, 40.0, 0.0])
    for top_k_of, tails in (
      ("student", (LN2 - 30, 0.0)),
      ("teacher", (0.0, LN2 - 40)),
    ):
      ours, theirs = on_support(
        student, teacher, Divergence(top_k=1, top_k_of=top_k_of)
      )
      np.testing.assert_allclose([ours[1], theirs[1]], tails, atol=1e-5)

  @pytest.mark.parametrize(
    ("top_k", "tail"),
    [(None, True), (1, True), (2, True), (2, False), (3, True)],
  )
  def test_certainty_is_finite(self, top_k, tail):
    # ±10⁴; where nothing is left; and words that both exclude.
    student = jnp.asarray(
      [
        [1e4, -1e4, -1e4, 0.0],
        [3.0, 1.0, -INF, -INF],
        [3.0, -INF, -INF, -INF],
        [50.0, 1.0, -INF, 0.0],
      ]
    )
    teacher = jnp.asarray(
      [
        [-1e4, 1e4, -1e4, 0.0],
        [0.0, 2.0, -INF, -INF],
        [1.0, -INF, -INF, -INF],
        [60.0, 1.0, -INF, 0.0],
      ]
    )
    costs, gradients = values_and_gradients(
      student, teacher, (("top_k", top_k), ("tail", tail))
    )
    assert np.all(np.isfinite(costs)), costs
    assert np.all(np.isfinite(gradients)), gradients
    # The excluded words are as good as not there.
    np.testing.assert_array_equal(gradients[:, 1, 2:], 0.0)
    reduced = {"top_k": top_k and min(top_k, 2), "tail": tail}
    for settings, cost in zip(KINDS, costs, strict=True):
      both = in_numpy(student[1, :2], teacher[1, :2], settings | reduced)
      np.testing.assert_allclose(cost[1:3], [both, 0], rtol=1e-5, atol=1e-6)

  def test_a_word_that_only_the_student_excludes_costs_infinitely(self):
    student, teacher = jnp.asarray([0.0, 1.0, -INF]), jnp.zeros(3)
    costs = cost_of(student, teacher, Divergence(top_k=1))
    assert np.isfinite(costs)  # the tail has the second word
    costs = cost_of(student, teacher, Divergence(top_k=2))
    assert costs == INF

  @pytest.mark.parametrize("tail", [True, False])
  def test_a_broken_teacher_is_not_hidden(self, tail):
    teacher = jnp.asarray([0.0, jnp.nan, 0.0])
    for top_k_of in ("student", "teacher"):
      divergence = Divergence(top_k=2, top_k_of=top_k_of, tail=tail)
      student = jnp.asarray([1.0, 2.0, 0.0])
      assert np.isnan(cost_of(student, teacher, divergence))


@pytest.mark.parametrize("chooser", ["student", "teacher"])
def test_ties_are_kept_once(chooser):
  # All words of a row tie, −0 and 0 among them, or only at the border.
  tied = np.float32(
    [[0.0, 0.0, 0.0, 0.0], [-0.0, 1.0, 0.0, 0.0], [2.0, 1.0, 1.0, 1.0]]
  )
  other = np.tile(np.float32([0.4, 0.3, 0.2, 0.1]), (3, 1))
  pair = (tied, other) if chooser == "student" else (other, tied)
  for top_k in (1, 2, 3):
    sides = on_support(*pair, Divergence(top_k=top_k, top_k_of=chooser))
    for side, logits in zip(sides, pair, strict=True):
      np.testing.assert_allclose(
        np.exp(np.asarray(side)).sum(-1), 1.0, rtol=1e-6
      )
      # The bucket is what the kept words leave of the whole.
      whole = [formulas.log_softmax(np.float64(row)) for row in logits]
      for row, kept in zip(whole, np.asarray(side[:, :-1]), strict=True):
        for log_prob in kept:
          assert np.min(np.abs(row - log_prob)) < 1e-6


def test_minus_zero_is_zero():
  # Top-k itself puts 0 before −0 and keeps the last word here.
  student = np.float32([-0.0, -0.0, 0.0])
  teacher = np.log(np.float32([0.5, 0.3, 0.2]))
  ours, theirs = on_support(student, teacher, Divergence(top_k=1))
  np.testing.assert_allclose(np.exp(ours), [1 / 3, 2 / 3], rtol=1e-6)
  np.testing.assert_allclose(np.exp(theirs), [0.5, 0.5], rtol=1e-6)


def test_bfloat16_logits_are_taken_in_float32():
  student, teacher = (
    x.astype(jnp.bfloat16)
    for x in np.random.default_rng(2).normal(0, 3, (2, 3, 8))
  )
  for settings in SUPPORTS[:4:3]:
    divergence = Divergence(**settings)
    actual = on_support(student, teacher, divergence)
    expected = on_support(
      student.astype(np.float32), teacher.astype(np.float32), divergence
    )
    jax.tree.map(np.testing.assert_array_equal, actual, expected)
    assert actual[0].dtype == jnp.float32


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"kind": "js"}, "kind='js' is none of"),
    ({"kind": "sdpo"}, r"kind='sdpo' needs a weight in \[0, 1\], got None"),
    ({"kind": "opsd", "weight": 1.5}, "got 1.5"),
    ({"kind": "opsd", "weight": np.nan}, "got nan"),
    ({"kind": "reverse_kl", "weight": 0.5}, "weight=0.5 has no meaning"),
    ({"kind": "sdpo", "weight": 0.5, "token_clip": 0.1}, "token_clip=0.1 is"),
    ({"kind": "opsd", "weight": 0.5, "token_clip": 0.0}, "above 0; None"),
    ({"top_k": 0}, "top_k=0 must be at least 1"),
    ({"top_k_of": "both"}, "top_k_of='both' is neither"),
    ({"temperature": 0.0}, "temperature=0.0 must be above 0"),
  ],
  ids=str,
)
def test_unusable_settings(settings, message):
  with pytest.raises(ValueError, match=message):
    Divergence(**settings)


def test_is_hashable():
  assert hash(Divergence(top_k=3)) == hash(Divergence(top_k=3))
  assert Divergence(top_k=3) != Divergence(top_k=4)
