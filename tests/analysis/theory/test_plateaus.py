"""Where a choice of routes comes to rest: predictions and random instances."""

import itertools

import numpy as np
import pytest

from distil_jax.analysis.theory import plateaus
from distil_jax.ops import advantages

NUM_INSTANCES = 2000
# Six digits that cannot be learnt against six that can; a teacher that takes
# the good route a quarter of the time.
GAP, Q = 6 * np.log(10), 0.25


@pytest.fixture(scope="module")
def instances():
  rng = np.random.default_rng(0)
  return rng.uniform(size=NUM_INSTANCES), rng.normal(0, 10, NUM_INSTANCES)


@pytest.mark.parametrize(
  ("pull", "expected"),
  [
    (GAP, 0.947),
    (GAP / 7, 0.680),
    (1.97, 0.679),
    (4 * GAP / 7, 0.908),
    (1.8, 0.66),
    (1.05, 0.51),
    (4.2, 0.83),
  ],
)
def test_cross_entropy_predictions(pull, expected):
  digits = 5e-3 if expected < 0.9 and pull in (1.8, 1.05, 4.2) else 5e-4
  plateau = plateaus.cross_entropy_plateau(Q, pull)
  assert plateau == pytest.approx(expected, abs=digits)


@pytest.mark.parametrize(
  ("pull", "expected"), [(4 * GAP / 7, 0.999), (4.2, 0.957)]
)
def test_reverse_kl_predictions(pull, expected):
  plateau = plateaus.reverse_kl_plateau(Q, pull)
  assert plateau == pytest.approx(expected, abs=5e-4)


def test_plateaus_solve_their_equations(instances):
  q, pull = instances
  p = plateaus.cross_entropy_plateau(q, pull)
  assert np.all((p > 0) & (p < 1))
  # Times p (1−p), as the equation itself divides by what may be tiny.
  residual = q * (1 - p) - (1 - q) * p + pull * p * (1 - p)
  np.testing.assert_allclose(residual, 0, atol=1e-12)
  p = plateaus.reverse_kl_plateau(q, pull)
  # Against log-odds of 1 − p written as another sigmoid: no cancellation.
  rest = plateaus.sigmoid(-(plateaus.logit(q) + pull))
  np.testing.assert_allclose(np.log(p) - np.log(rest) - plateaus.logit(q), pull)


def test_plateaus_are_the_cheapest_points(instances):
  q, pull = (values[:, None] for values in instances)
  grid = plateaus.sigmoid(np.linspace(-30, 30, 601))
  cross_entropy = -q * np.log(grid) - (1 - q) * np.log1p(-grid) - pull * grid
  p = plateaus.cross_entropy_plateau(q, pull)
  lowest = -q * np.log(p) - (1 - q) * np.log1p(-p) - pull * p
  assert np.all(lowest <= cross_entropy.min(axis=1, keepdims=True) + 1e-9)


def test_plateau_without_pull_is_the_teacher(instances):
  q, _ = instances
  np.testing.assert_allclose(plateaus.cross_entropy_plateau(q, 0.0), q)
  np.testing.assert_allclose(plateaus.reverse_kl_plateau(q, 0.0), q)


def test_plateau_at_a_teacher_that_is_sure():
  ends = np.array([0.0, 1.0])
  np.testing.assert_allclose(plateaus.cross_entropy_plateau(ends, 0.5), ends)
  # 1 − 1/pull: a teacher that never goes there cannot keep the student away.
  assert plateaus.cross_entropy_plateau(0.0, 4.0) == pytest.approx(0.75)
  assert plateaus.cross_entropy_plateau(1.0, -4.0) == pytest.approx(0.25)


def test_drifts_rest_at_the_plateaus(instances):
  q, pull = instances
  for q_good, each in zip(q[:200], pull[:200], strict=True):
    for drift, plateau in (
      (plateaus.cross_entropy_drift, plateaus.cross_entropy_plateau),
      (plateaus.reverse_kl_drift, plateaus.reverse_kl_plateau),
    ):
      rest = plateaus.settle(drift(q_good, each), 0.5, num_points=201)
      assert rest == pytest.approx(float(plateau(q_good, each)), abs=1e-9)


def test_cross_entropy_holds_back_more_where_the_pull_is_strong(instances):
  q, pull = instances
  rational = plateaus.cross_entropy_plateau(q, pull)
  exponential = plateaus.reverse_kl_plateau(q, pull)
  strong = (exponential > np.maximum(q, 1 - q)) & (pull > 0)
  assert np.mean(strong) > 0.3
  assert np.all((rational < exponential)[strong])
  # It is the other way round for a weak pull towards a rare route.
  assert plateaus.cross_entropy_plateau(Q, 1.0) > plateaus.reverse_kl_plateau(
    Q, 1.0
  )


def rest(drift, success_good=1.0, success_poor=0.0, *, reward, **settings):
  term = plateaus.reward_drift(reward, success_good, success_poor, **settings)
  weighted = plateaus.failure_weighted(drift, success_good, success_poor, term)
  return plateaus.settle(weighted, Q)


@pytest.mark.parametrize("pull", [0.0, 1.05, GAP])
def test_failure_weight_alone_moves_no_plateau(pull):
  for drift, plateau in (
    (plateaus.cross_entropy_drift, plateaus.cross_entropy_plateau),
    (plateaus.reverse_kl_drift, plateaus.reverse_kl_plateau),
  ):
    start = 0.1
    weighted = plateaus.failure_weighted(
      drift(Q, pull), 1.0, 0.0, plateaus.reward_drift(0.0, 1.0, 0.0)
    )
    expected = float(plateau(Q, pull))
    assert plateaus.settle(weighted, start) == pytest.approx(expected)


@pytest.mark.parametrize("pull", [0.0, 1.05, GAP])
def test_with_reward_no_anchor_is_left_where_the_group_succeeds(pull):
  cross_entropy = plateaus.cross_entropy_drift(Q, pull)
  reverse_kl = plateaus.reverse_kl_drift(Q, pull)
  assert rest(cross_entropy, reward=1.0) > 1 - 1e-9
  assert rest(reverse_kl, reward=1.0) > 1 - 1e-9
  assert rest(cross_entropy, reward=1.0, group_size=8) > 1 - 1e-9
  assert rest(reverse_kl, reward=1.0, group_size=8) > 1 - 1e-9
  # The plain sum of the two keeps it: 1 − q is left where reward dies out.
  reward = plateaus.reward_drift(1.0, 1.0, 0.0)
  plain = plateaus.settle(lambda p: cross_entropy(p) + reward(p), Q)
  assert plain == pytest.approx(
    float(plateaus.cross_entropy_plateau(Q, pull + 1.0))
  )


@pytest.mark.parametrize(
  ("group_size", "scale"), [(None, 1.0), (2, 2.0), (8, 8 / np.sqrt(7))]
)
def test_reward_must_outweigh_the_anchor(group_size, scale):
  # Near p = 1 the drift is (1−p) (q − 1 + reward_weight · scale).
  drift = plateaus.cross_entropy_drift(Q, 0.0)
  for factor, escapes in ((1.01, True), (0.99, False)):
    reward = factor * (1 - Q) / scale
    term = plateaus.reward_drift(reward, 1.0, 0.0, group_size)
    weighted = plateaus.failure_weighted(drift, 1.0, 0.0, term)
    assert (weighted(np.array(1 - 1e-6)) > 0) == escapes


def test_an_anchor_is_left_where_even_the_good_route_may_fail():
  drift = plateaus.cross_entropy_drift(Q, GAP)
  always = rest(drift, reward=1.0, group_size=8)
  often = rest(drift, 0.9, 0.1, reward=1.0, group_size=8)
  assert always > 1 - 1e-9
  assert 0.95 < often < 0.99


def test_reward_drift_agrees_with_every_group_written_out():
  rng = np.random.default_rng(5)
  group_size = 4
  groups = np.array(list(itertools.product((0.0, 1.0), repeat=group_size)))
  relative = np.asarray(
    advantages.group_advantages(
      groups.reshape(-1),
      group_size=group_size,
      normalize_std=True,
      leave_one_out=True,
      epsilon=0.0,
    )
  ).reshape(groups.shape) * (np.ptp(groups, axis=1, keepdims=True) > 0)
  relative = np.nan_to_num(relative)
  for p, good, poor in rng.uniform(0.05, 0.95, (1000, 3)):
    mean = p * good + (1 - p) * poor
    others = groups[:, 1:]
    chance = np.prod(np.where(others > 0, mean, 1 - mean), axis=1)
    # The first member took the good route with p, and then succeeded or not.
    own = groups[:, 0]
    on_good = np.where(own > 0, good, 1 - good)
    on_poor = np.where(own > 0, poor, 1 - poor)
    scores = p * (1 - p) * (on_good - on_poor)
    expected = np.sum(chance * scores * relative[:, 0])
    drift = plateaus.reward_drift(1.0, good, poor, group_size)
    assert drift(np.array(p)) == pytest.approx(expected, abs=1e-6)


def test_settle_stays_where_it_starts_without_a_drift():
  assert plateaus.settle(lambda p: 0.0 * p, 0.3) == 0.3
  assert plateaus.settle(lambda p: -p, 0.3, num_points=11) == 0.0


def test_a_teacher_has_a_probability():
  with pytest.raises(ValueError, match="in \\[0, 1\\]"):
    plateaus.cross_entropy_plateau(1.2, 1.0)
