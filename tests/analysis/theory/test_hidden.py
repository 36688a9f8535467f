"""Local costs walk into what cannot be learnt; the sequence's go around."""

import numpy as np
import pytest

from distil_jax.analysis.theory import hidden


@pytest.mark.parametrize(
  ("q", "p", "local_reward", "sequence_reward"),
  [
    (0.5, 0.3437, 0.75, 0.8282),
    (0.6, 0.4301, 0.70, 0.7850),
    (0.7, 0.5272, 0.65, 0.7364),
  ],
)
def test_stationary_points(q, p, local_reward, sequence_reward):
  local = hidden.local_stationary_point(q)
  sequence = hidden.sequence_stationary_point(q)
  assert local == q
  assert sequence == pytest.approx(p, abs=5e-5)
  assert hidden.expected_reward(local) == pytest.approx(local_reward)
  assert hidden.expected_reward(sequence) == pytest.approx(
    sequence_reward, abs=5e-5
  )


def test_naming_costs_least_at_uniform():
  rng = np.random.default_rng(0)
  guesses = rng.dirichlet(np.ones(2), 1000)
  assert np.all(hidden.naming_cost(guesses) >= np.log(2))
  assert hidden.naming_cost(np.full(2, 0.5)) == pytest.approx(np.log(2))


def test_reward_agrees_with_every_case_written_out():
  rng = np.random.default_rng(1)
  for p_left in rng.uniform(size=1000):
    guess = rng.dirichlet(np.ones(3))
    named = np.mean([guess[value] for value in range(3)])
    expected = (1 - p_left) + p_left * named
    assert hidden.expected_reward(p_left, 3) == pytest.approx(expected)


@pytest.mark.parametrize("num_hidden", [2, 10])
def test_sequence_point_is_the_cheapest_and_earns_more(num_hidden):
  q = np.random.default_rng(2).uniform(0.001, 0.999, 1000)
  least = np.log(num_hidden)
  sequence = hidden.sequence_stationary_point(q, num_hidden)
  grid = np.linspace(0, 1, 2001)[1:-1, None]
  cheapest = hidden.sequence_cost(grid, q, least).min(axis=0)
  assert np.all(hidden.sequence_cost(sequence, q, least) <= cheapest + 1e-12)
  # The local point minimises the choice's own cost, as if L were free.
  local = hidden.local_stationary_point(q)
  at_choice = hidden.sequence_cost(grid, q, 0.0).min(axis=0)
  assert np.all(hidden.sequence_cost(local, q, 0.0) <= at_choice + 1e-12)
  assert np.all(
    hidden.expected_reward(sequence, num_hidden)
    > hidden.expected_reward(local, num_hidden)
  )


def test_what_is_dearer_to_name_is_avoided_more():
  q = np.linspace(0.1, 0.9, 9)
  assert np.all(
    hidden.sequence_stationary_point(q, 100)
    < hidden.sequence_stationary_point(q, 2)
  )
