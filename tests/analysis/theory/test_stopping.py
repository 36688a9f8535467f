"""Stopping early as an optimum, and what each cure does to it."""

import numpy as np
import pytest

from distil_jax.analysis.theory import plateaus, stopping

NUM_INSTANCES = 1000


def test_stop_probability_before_unlearnable_digits():
  # 1 − 1/(2.3 n'), n' = 5 to 6: about .92.
  for num_ahead, expected in ((5, 0.913), (6, 0.928)):
    stop = stopping.stop_probability(0.0, num_ahead * np.log(10))
    assert stop == pytest.approx(expected, abs=5e-4)
    assert stop == pytest.approx(1 - 1 / (num_ahead * np.log(10)))
  assert stopping.stop_probability(0.0, 1.0) == 0
  assert stopping.stop_probability(0.0, 0.5) == 0


def summed_cost(costs, stops, teacher_stop):
  """E Σ Hₜ of any stop probabilities, forwards from the first token."""
  total, reached = 0.0, 1.0
  for t in range(costs.shape[-1]):
    total = total + reached * costs[..., t]
    if t < costs.shape[-1] - 1:
      stop = stops[..., t]
      choice = -teacher_stop * np.log(stop)
      choice = choice - (1 - teacher_stop) * np.log1p(-stop)
      total = total + reached * choice
      reached = reached * (1 - stop)
  return total


def test_backward_recursion_is_the_forward_optimum():
  rng = np.random.default_rng(0)
  for teacher_stop in (0.01, 0.2):
    costs = rng.uniform(0, 4, (NUM_INSTANCES, 5))
    stops, totals = stopping.optimal_stopping(costs, teacher_stop)
    best = summed_cost(costs, stops, teacher_stop)
    np.testing.assert_allclose(best, totals[:, 0])
    for _ in range(20):
      logits = plateaus.logit(stops[:, :-1])
      nudged = stops.copy()
      nudged[:, :-1] = plateaus.sigmoid(logits + rng.normal(0, 1, logits.shape))
      assert np.all(summed_cost(costs, nudged, teacher_stop) > best)


def test_eight_tokens_become_one_or_two():
  # A route, six digits that cannot be learnt, the end; a teacher that never
  # stops early. Stopping later too makes going on cheaper, so that each stop
  # is rarer than 1 − 1/(2.3 n').
  costs = np.array([0.56] + 6 * [np.log(10)] + [0.0])
  stops, totals = stopping.optimal_stopping(costs)
  assert totals[6] == pytest.approx(np.log(10))
  assert stops[5] == pytest.approx(1 - 1 / np.log(10))
  assert totals[5] == pytest.approx(np.log(10) + 1 + np.log(np.log(10)))
  assert stopping.expected_length(stops) == pytest.approx(1.26, abs=5e-3)
  # Nothing is saved by stopping before tokens that are learnt.
  free, _ = stopping.optimal_stopping(np.full(8, 0.1))
  assert stopping.expected_length(free) == 8


def test_expected_length_by_hand():
  stops = np.array([0.5, 0.5, 1.0])
  assert stopping.expected_length(stops) == 1 + 0.5 + 0.25


def test_terminal_neutral_drift_agrees_with_every_group_written_out():
  # Drift = −E[∇H + ∇log π · weight] by the logit of stopping, e' = e (1−e).
  rng = np.random.default_rng(1)
  for stop, teacher_stop, cost in rng.uniform(0, 1, (NUM_INSTANCES, 3)):
    cost, group_size = 30 * cost, 3
    expected = teacher_stop - stop
    for choices in np.ndindex(2, 2, 2):
      chance = np.prod([stop if choice else 1 - stop for choice in choices])
      if choices[0] == 0:  # goes on; ∇log(1−e) = −e
        others = [cost for choice in choices[1:] if choice == 0]
        baseline = np.mean(others) if others else 0.0
        expected -= chance * -stop * (cost - baseline)
    drift = stopping.terminal_neutral_drift(
      stop, teacher_stop, cost, group_size
    )
    assert drift == pytest.approx(expected)


def rest(start, cost, group_size):
  return plateaus.settle(
    lambda stop: stopping.terminal_neutral_drift(stop, 1e-3, cost, group_size),
    start,
  )


def test_terminal_neutral_leaves_the_stop_to_the_teacher():
  # Unneutral credit would stop with .92; here siblings cancel.
  for cost in (0.0, 5 * np.log(10), 6 * np.log(10)):
    for start in (1e-4, 0.5, 0.999):
      assert rest(start, cost, 8) == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("group_size", [2, 8, 64])
def test_terminal_neutral_has_a_trap_beyond_its_limit(group_size):
  limit = stopping.terminal_neutral_limit(group_size)
  assert limit / group_size == pytest.approx(np.e, rel=0.5 / group_size + 0.25)
  stops = np.linspace(0, 1, 10_001)[1:]
  for cost, is_trap in ((0.999 * limit, False), (1.001 * limit, True)):
    drift = stopping.terminal_neutral_drift(stops, 0.0, cost, group_size)
    assert np.any(drift > 0) == is_trap
  if group_size == 8:
    assert limit == pytest.approx(20.37, abs=5e-3)
    # Rare stops still end at the teacher's; a fallen student stays.
    assert rest(0.2, 30.0, 8) == pytest.approx(1e-3, rel=1e-3)
    assert rest(0.95, 30.0, 8) > 0.9


def test_differential_credit_makes_the_average_token_free():
  rng = np.random.default_rng(2)
  cost = rng.uniform(0, 5, (NUM_INSTANCES, 1))
  ahead = stopping.differential_cost_ahead(np.repeat(cost, 7, axis=1), cost)
  np.testing.assert_allclose(ahead, 0, atol=1e-12)
  stop = stopping.stop_probability(0.01, ahead)
  np.testing.assert_allclose(stop, 0.01)


def test_differential_credit_by_hand():
  costs = np.array([4.0, 1.0, 0.0, 3.0])
  ahead = stopping.differential_cost_ahead(costs, 2.0)
  np.testing.assert_allclose(ahead, [-2.0, -1.0, 1.0, 0.0])


def test_differential_credit_still_stops_before_what_is_dearer_than_average():
  costs = np.array([0.0, 0.0, 5.0, 5.0])
  ahead = stopping.differential_cost_ahead(costs, costs.mean())
  np.testing.assert_allclose(ahead, [2.5, 5.0, 2.5, 0.0])
  plain = stopping.differential_cost_ahead(costs, 0.0)
  stops = stopping.stop_probability(0.0, ahead)
  # Half of the saving is left: .6 and .8 in place of .9.
  np.testing.assert_allclose(stops[:2], [0.6, 0.8])
  np.testing.assert_allclose(
    stopping.stop_probability(0.0, plain)[:2], [0.9, 0.9]
  )


def test_differential_credit_follows_the_mean_and_not_the_sum():
  # Over e, ∇(J/L) = (∇J − ρ ∇L) / L: the sum's gradient with ρ taken off.
  rng = np.random.default_rng(3)
  stop = rng.uniform(0.05, 0.95, NUM_INSTANCES)
  num_tokens = rng.integers(1, 50, NUM_INSTANCES)
  cost = rng.uniform(0, 5, NUM_INSTANCES)

  def total(e):
    return num_tokens * cost - np.log(e) / e

  def length(e):
    return num_tokens + 1 / e

  def slope(function):
    return (function(stop + 1e-6) - function(stop - 1e-6)) / 2e-6

  mean = stopping.rambling_mean_cost(stop, num_tokens, cost)
  np.testing.assert_allclose(mean, total(stop) / length(stop))
  np.testing.assert_allclose(
    slope(lambda e: stopping.rambling_mean_cost(e, num_tokens, cost)),
    (slope(total) - mean * slope(length)) / length(stop),
    atol=1e-5,
  )


def test_differential_credit_rambles_beyond_one_nat_a_token():
  rng = np.random.default_rng(4)
  grid = np.linspace(0, 1, 2001)[1:]
  for num_tokens, cost in zip(
    rng.integers(1, 50, NUM_INSTANCES),
    rng.uniform(0, 5, NUM_INSTANCES),
    strict=True,
  ):
    stop = stopping.rambling_stop_probability(num_tokens, cost)
    least = stopping.rambling_mean_cost(stop, num_tokens, cost)
    others = stopping.rambling_mean_cost(grid, num_tokens, cost)
    assert least <= others.min() + 1e-12
    assert (stop < 1) == (cost > 1 + 1 / num_tokens)
    if stop < 1:
      # The same stop as by credit: rambling on saves ρ − cost of each token.
      ahead = (-np.log(stop) - least) / stop
      by_credit = stopping.stop_probability(1.0, ahead)
      assert by_credit == pytest.approx(stop, rel=1e-9)


def test_rambling_after_six_digits():
  assert stopping.rambling_stop_probability(6, np.log(10)) == pytest.approx(
    0.4087, abs=5e-5
  )
  long = stopping.rambling_stop_probability(100_000, np.log(10))
  assert long == pytest.approx(np.e / 10, rel=1e-3)


def test_a_teacher_that_always_stops_is_refused():
  with pytest.raises(ValueError, match=r"teacher_stop=1\.0"):
    stopping.optimal_stopping(np.ones(3), 1.0)
