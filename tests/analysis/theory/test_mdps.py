"""Several decisions: identities, the condition, and what it does not need."""

import itertools

import numpy as np
import pytest

from distil_jax.analysis.theory import bandits, mdps

NUM_INSTANCES = 3000
SHAPE = (NUM_INSTANCES, 3, 3, 3)
GRADIENTS = (
  bandits.cross_entropy_gradient,
  bandits.reverse_kl_gradient,
  bandits.jensen_shannon_gradient,
)


@pytest.fixture(scope="module")
def instances():
  """MDPs, students and teachers; T = S = A = 3."""
  rng = np.random.default_rng(1)
  mdp = mdps.sample_mdps(
    rng, NUM_INSTANCES, horizon=3, num_states=3, num_actions=3
  )
  policies = [mdps.sample_distributions(rng, *SHAPE) for _ in range(2)]
  return mdp, *policies


def test_values_agree_with_every_path_written_out():
  rng = np.random.default_rng(2)
  mdp = mdps.sample_mdps(rng, 1, horizon=3, num_states=2, num_actions=2)
  policy = mdps.sample_distributions(rng, 1, 3, 2, 2)
  expected = 0.0
  visits = np.zeros((3, 2))
  for path in itertools.product(range(2), repeat=6):
    states, actions = path[::2], path[1::2]
    chance = mdp.start[0, states[0]]
    for t, (state, action) in enumerate(zip(states, actions, strict=True)):
      chance = chance * policy[0, t, state, action]
      if t < 2:
        chance = chance * mdp.transitions[0, t, state, action, states[t + 1]]
    for t in range(3):
      visits[t, states[t]] += chance
      expected += chance * mdp.rewards[0, t, states[t], actions[t]]
  assert mdps.expected_return(mdp, policy)[0] == pytest.approx(expected)
  np.testing.assert_allclose(mdps.state_distributions(mdp, policy)[0], visits)


def test_one_state_and_one_step_are_a_bandit():
  student, teacher = np.array([0.05, 0.45, 0.5]), np.array([0.3, 0.05, 0.65])
  mdp = mdps.Mdp(
    np.ones(1), np.ones((1, 1, 3, 1)), np.array([[[1.0, 0.5, 0.0]]])
  )
  mixed = mdps.mixture_step(student[None, None], teacher[None, None], 0.5)
  assert mdps.expected_return(mdp, mixed) == pytest.approx(0.3)


def test_performance_difference(instances):
  mdp, student, teacher = instances
  np.testing.assert_allclose(
    mdps.performance_difference(mdp, student, teacher),
    mdps.expected_return(mdp, teacher) - mdps.expected_return(mdp, student),
    atol=1e-12,
  )


@pytest.mark.parametrize("gradient_of", GRADIENTS)
def test_covariance_expansion_is_exact_and_its_start_the_slope(
  gradient_of, instances
):
  mdp, student, teacher = instances
  g = gradient_of(student, teacher)
  limit = bandits.largest_rate(student, g).min(axis=(-2, -1))
  before = mdps.expected_return(mdp, student)
  for share in (0.9, 1e-6):
    rate = share * np.minimum(limit, 1.0)
    moved = bandits.npg_step(student, g, rate[:, None, None])
    gain = mdps.expected_return(mdp, moved) - before
    exact = rate * mdps.covariance_expansion(
      mdp, student, g, mdps.state_distributions(mdp, moved)
    )
    np.testing.assert_allclose(gain, exact, atol=1e-12)
  slope = mdps.covariance_expansion(
    mdp, student, g, mdps.state_distributions(mdp, student)
  )
  np.testing.assert_allclose(gain / rate, slope, atol=1e-4)


def test_mixture_is_the_step_of_cross_entropy(instances):
  _, student, teacher = instances
  g = bandits.cross_entropy_gradient(student, teacher)
  np.testing.assert_allclose(
    mdps.mixture_step(student, teacher, 0.3),
    bandits.npg_step(student, g, 0.3),
    atol=1e-12,
  )


def with_condition(mdp, student, teacher):
  """The teacher where it meets the condition, and the student elsewhere."""
  meets = mdps.teacher_advantages(mdp, student, teacher) >= 0
  return np.where(meets[..., None], teacher, student)


@pytest.mark.parametrize("rate", [0.01, 0.3, 1.0])
def test_no_mixture_is_worse_if_the_condition_holds(rate, instances):
  mdp, student, teacher = instances
  teacher = with_condition(mdp, student, teacher)
  assert np.all(mdps.teacher_advantages(mdp, student, teacher) > -1e-12)
  before = mdps.expected_return(mdp, student)
  gain = mdps.expected_return(mdp, mdps.mixture_step(student, teacher, rate))
  gain = gain - before
  # Every state is visited, so it rises wherever the teacher differs at all.
  moves = np.any(teacher != student, axis=(1, 2, 3))
  assert np.all(gain[moves] > 0)
  np.testing.assert_allclose(gain[~moves], 0, atol=1e-12)
  assert np.mean(moves) > 0.99


def test_a_better_teacher_is_not_enough_in_five_of_a_hundred(instances):
  mdp, student, teacher = instances
  before = mdps.expected_return(mdp, student)
  better = mdps.expected_return(mdp, teacher) > before
  shares = []
  for rate in (1e-4, 0.1, 0.5):
    mixed = mdps.mixture_step(student, teacher, rate)
    worse = mdps.expected_return(mdp, mixed) < before
    shares.append(np.mean(worse[better]))
  # 1500 better teachers: two standard errors are .011.
  assert shares[0] == pytest.approx(0.05, abs=0.011)
  assert shares[0] > shares[1] > shares[2] > 0.01


def test_the_same_in_one_step_never_happens():
  rng = np.random.default_rng(3)
  mdp = mdps.sample_mdps(rng, 1000, horizon=1, num_states=1, num_actions=3)
  student, teacher = (
    mdps.sample_distributions(rng, 1000, 1, 1, 3) for _ in range(2)
  )
  before = mdps.expected_return(mdp, student)
  better = mdps.expected_return(mdp, teacher) > before
  mixed = mdps.mixture_step(student, teacher, 1e-3)
  assert np.all((mdps.expected_return(mdp, mixed) > before) == better)


def test_detour_by_hand():
  # (.9 − .9η)(1 − η) .8 + (.1 + .9η) η
  mdp, student, teacher = mdps.detour()
  rates = np.array([0.0, 0.1, 0.5, 1.0])
  returns = [
    mdps.expected_return(mdp, mdps.mixture_step(student, teacher, rate))
    for rate in rates
  ]
  np.testing.assert_allclose(returns, [0.72, 0.6022, 0.455, 1.0])
  np.testing.assert_allclose(
    mdps.teacher_advantages(mdp, student, teacher)[[0, 1, 1], [0, 1, 2]],
    [-0.72, -0.8, 1.0],
  )


def test_success_teacher_meets_the_condition_at_every_state(instances):
  mdp, student, _ = instances
  teacher = mdps.success_teacher(mdp, student)
  np.testing.assert_allclose(teacher.sum(axis=-1), 1)
  q = mdps.action_values(mdp, student)
  value = np.sum(student * q, axis=-1)
  variance = np.sum(student * (q - value[..., None]) ** 2, axis=-1)
  np.testing.assert_allclose(
    mdps.teacher_advantages(mdp, student, teacher), variance / value, atol=1e-12
  )


def test_under_a_success_teacher_every_divergence_rises(instances):
  # All three steps follow an increasing function of Q: the choice between
  # them matters where the teacher is not the ideal one.
  mdp, student, _ = instances
  teacher = mdps.success_teacher(mdp, student)
  visited = mdps.state_distributions(mdp, student)
  for gradient_of in GRADIENTS:
    g = gradient_of(student, teacher)
    assert np.all(mdps.covariance_expansion(mdp, student, g, visited) > 0)


def test_success_teacher_taken_to_its_end_is_optimal():
  rng = np.random.default_rng(4)
  mdp = mdps.sample_mdps(rng, 1000, horizon=3, num_states=2, num_actions=2)
  policy = mdps.sample_distributions(rng, 1000, 3, 2, 2)
  best = np.zeros((1000, 2))
  for t in (2, 1, 0):
    later = np.einsum("nsaz,nz->nsa", mdp.transitions[:, t], best)
    best = np.max(mdp.rewards[:, t] + later, axis=-1)
  optimum = np.sum(mdp.start * best, axis=-1)
  returns = [mdps.expected_return(mdp, policy)]
  for _ in range(100):
    policy = mdps.success_teacher(mdp, policy)
    returns.append(mdps.expected_return(mdp, policy))
  assert np.all(np.diff(returns, axis=0) > -1e-12)
  assert np.all(returns[-1] <= optimum + 1e-12)
  assert np.mean(optimum - returns[0]) > 0.3
  assert np.mean(optimum - returns[-1]) < 0.01


def test_regret_bounds_the_gap_and_falls_as_one_over_n(instances):
  mdp, student, teacher = instances
  rate, num_steps = 0.2, 20
  policies = [student]
  for _ in range(num_steps - 1):
    policies.append(mdps.mixture_step(policies[-1], teacher, rate))
  policies = np.stack(policies)
  regret = mdps.regret(mdp, policies, teacher)

  gaps = mdps.expected_return(mdp, teacher) - np.stack(
    [mdps.expected_return(mdp, policy) for policy in policies]
  )
  bound = mdps.regret_bound(mdp, teacher, regret)
  assert np.all(np.abs(gaps.mean(axis=0)) <= bound)
  # KL is convex, and the distance to the teacher shrinks by 1 − η a step.
  first = bandits.kl(teacher, student).max(axis=-1).sum(axis=-1)
  assert np.all(num_steps * regret <= first / rate)
  one = mdps.regret(mdp, policies[:1], teacher)
  assert np.all(regret < one)


def test_regret_by_hand():
  mdp = mdps.Mdp(np.ones(1), np.ones((2, 1, 2, 1)), np.zeros((2, 1, 2)))
  teacher = np.array([[[0.5, 0.5]], [[0.25, 0.75]]])
  uniform = np.full((2, 1, 2), 0.5)
  second = 0.25 * np.log(0.5) + 0.75 * np.log(1.5)
  policies = np.stack([uniform, teacher])
  assert mdps.regret(mdp, policies, teacher) == pytest.approx(second / 2)


@pytest.mark.parametrize("rate", [-0.1, 1.1])
def test_a_mixture_has_shares(rate, instances):
  _, student, teacher = instances
  with pytest.raises(ValueError, match="in \\[0, 1\\]"):
    mdps.mixture_step(student, teacher, rate)
