"""Teacher-weighted likelihood, and what it says of Pass@N."""

import numpy as np
import pytest

from distil_jax.analysis.theory import likelihood, mdps, trees

NUM_INSTANCES = 2000


@pytest.fixture(scope="module")
def instances():
  """Eight completions, two to six of which succeed. Shape `[N, 8]` each."""
  rng = np.random.default_rng(0)
  completions = mdps.sample_distributions(rng, NUM_INSTANCES, 8)
  ranks = rng.random((NUM_INSTANCES, 8)).argsort(axis=1)
  is_success = ranks < rng.integers(2, 7, (NUM_INSTANCES, 1))
  teacher = mdps.sample_distributions(rng, NUM_INSTANCES, 8) * is_success
  return completions, is_success, teacher / teacher.sum(axis=1, keepdims=True)


def test_bound_and_gap_make_the_log_probability(instances):
  completions, is_success, teacher = instances
  chance = np.log(likelihood.success_probability(completions, is_success))
  bound = likelihood.likelihood_bound(completions, teacher)
  gap = likelihood.posterior_gap(completions, teacher, is_success)
  assert np.all(gap > 0)
  np.testing.assert_allclose(bound + gap, chance, atol=1e-12)


def test_bound_is_tight_at_the_posterior(instances):
  completions, is_success, _ = instances
  posterior = likelihood.success_posterior(completions, is_success)
  np.testing.assert_allclose(posterior.sum(axis=1), 1)
  np.testing.assert_allclose(
    likelihood.likelihood_bound(completions, posterior),
    np.log(likelihood.success_probability(completions, is_success)),
  )


def test_imitating_the_posterior_raises_the_chance_until_it_is_sure(instances):
  completions, is_success, _ = instances
  chance = likelihood.success_probability(completions, is_success)
  for _ in range(30):
    posterior = likelihood.success_posterior(completions, is_success)
    completions = completions + 0.3 * (posterior - completions)
    risen = likelihood.success_probability(completions, is_success)
    # p' = p + η (1 − p)
    np.testing.assert_allclose(risen, chance + 0.3 * (1 - chance))
    chance = risen
  assert np.all(chance > 0.9999)


def test_bound_is_a_sum_of_token_costs(instances):
  # Chain rule: Σ_y q log π = −Σₜ E_{s~q} H×(q(·|s), π(·|s)), on the states of
  # the teacher, where DistIL has those of the student.
  _, _, teacher = instances
  rng = np.random.default_rng(1)
  logits = rng.normal(0, 1.5, (NUM_INSTANCES, 7, 2))
  ids, states = trees.completions(2, 3)
  mass = np.zeros((NUM_INSTANCES, 7, 2))
  for y in range(8):
    mass[:, states[y], ids[y]] += teacher[:, y, None]
  costs = -np.sum(mass * np.log(trees.softmax(logits)), axis=(1, 2))
  entropy = -np.sum(
    teacher * np.log(np.where(teacher > 0, teacher, 1.0)), axis=1
  )
  np.testing.assert_allclose(
    likelihood.likelihood_bound(trees.chances(logits, 3), teacher),
    entropy - costs,
  )


def test_pass_at_n_and_its_bound(instances):
  completions, is_success, teacher = instances
  chance = likelihood.success_probability(completions, is_success)
  bound = likelihood.likelihood_bound(completions, teacher)
  for num_samples in (1, 4, 64):
    passed = likelihood.pass_at(chance, num_samples)
    np.testing.assert_allclose(passed, 1 - (1 - chance) ** num_samples)
    assert np.all(passed >= likelihood.pass_at_bound(bound, num_samples))
  assert likelihood.pass_at(1e-12, 4) == pytest.approx(4e-12)


def test_log_probability_mixes_the_failures_of_all_pass_at_k():
  rng = np.random.default_rng(2)
  chance = rng.uniform(0.01, 1, 1000)
  for num_terms in (1, 10, 300):
    left = -np.log(chance) - likelihood.harmonic_mixture(chance, num_terms)
    failure = 1 - chance
    assert np.all(left >= -1e-12)
    most = failure ** (num_terms + 1) / ((num_terms + 1) * chance)
    assert np.all(left <= most + 1e-12)


def test_mixture_by_hand():
  # .5 + .25/2 + .125/3
  assert likelihood.harmonic_mixture(0.5, 3) == pytest.approx(0.6666666667)
  failures = 1 - likelihood.pass_at(0.5, np.arange(1, 4))
  assert np.sum(failures / np.arange(1, 4)) == pytest.approx(2 / 3)
