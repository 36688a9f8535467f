"""One decision: the paper's example, digit by digit, and random bandits."""

from fractions import Fraction

import numpy as np
import pytest

from distil_jax.analysis.theory import bandits, mdps

NUM_INSTANCES = 2000
REWARDS = np.array([1.0, 0.5, 0.0])
STUDENT = np.array([1 / 20, 9 / 20, 1 / 2])
TEACHER = np.array([3 / 10, 1 / 20, 13 / 20])
DIVERGENCES = {
  "cross_entropy": (bandits.cross_entropy, bandits.cross_entropy_gradient),
  "reverse_kl": (bandits.kl, bandits.reverse_kl_gradient),
  "jensen_shannon": (bandits.jensen_shannon, bandits.jensen_shannon_gradient),
}
OTHERS = ("reverse_kl", "jensen_shannon")


def gradient(name, student=STUDENT, teacher=TEACHER):
  return DIVERGENCES[name][1](student, teacher)


def fractions(*texts):
  return np.array([Fraction(text) for text in texts], dtype=object)


@pytest.fixture(scope="module")
def instances():
  """Students, teachers and rewards over four arms. Shape `[N, 4]` each."""
  rng = np.random.default_rng(0)
  return (
    mdps.sample_distributions(rng, NUM_INSTANCES, 4),
    mdps.sample_distributions(rng, NUM_INSTANCES, 4),
    rng.uniform(size=(NUM_INSTANCES, 4)),
  )


def test_the_example_begins_below_its_teacher():
  assert bandits.expected_reward(STUDENT, REWARDS) == pytest.approx(0.275)
  assert bandits.expected_reward(TEACHER, REWARDS) == pytest.approx(0.325)
  assert bandits.kl(STUDENT, TEACHER) == pytest.approx(0.767981, abs=5e-7)


def test_cross_entropy_step_is_exact_in_fractions():
  rewards = fractions("1", "1/2", "0")
  student = fractions("1/20", "9/20", "1/2")
  teacher = fractions("3/10", "1/20", "13/20")

  g = bandits.cross_entropy_gradient(student, teacher)

  direction = bandits.npg_direction(student, g)
  assert direction.tolist() == list(fractions("1/4", "-2/5", "3/20"))
  assert bandits.reward_slope(student, rewards, g) == Fraction(1, 20)
  assert bandits.largest_rate(student, g) == Fraction(9, 8)


@pytest.mark.parametrize(
  ("name", "direction", "slope"),
  [
    ("reverse_kl", (0.12799, -0.64316, 0.51517), -0.193593),
    ("jensen_shannon", (0.0346, -0.1026, 0.0679), -0.016659),
  ],
)
def test_other_divergences_lower_the_reward(name, direction, slope):
  digits = 5e-6 if name == "reverse_kl" else 5e-5
  g = gradient(name)
  np.testing.assert_allclose(
    bandits.npg_direction(STUDENT, g), direction, atol=digits
  )
  assert bandits.reward_slope(STUDENT, REWARDS, g) == pytest.approx(
    slope, abs=5e-7
  )


def test_reverse_kl_is_worse_at_every_valid_rate():
  g = gradient("reverse_kl")
  limit = bandits.largest_rate(STUDENT, g)
  assert limit == pytest.approx(0.6996, abs=1e-4)
  rates = np.linspace(0, limit, 200)[1:]
  rewards = bandits.expected_reward(
    bandits.npg_step(STUDENT, g, rates), REWARDS
  )
  assert rewards.max() < 0.275
  at_tenth = bandits.npg_step(STUDENT, g, 0.1)
  assert bandits.expected_reward(at_tenth, REWARDS) == pytest.approx(
    0.25564, abs=5e-6
  )


def test_exponentiated_step_is_worse_up_to_eight_tenths():
  rates = np.linspace(0.0001, 1, 10_000)
  rewards = bandits.expected_reward(
    bandits.exponentiated_step(STUDENT, TEACHER, rates), REWARDS
  )
  np.testing.assert_array_equal(rewards < 0.275, rates < 0.80085)
  assert rewards[-1] == pytest.approx(0.325)


def test_exponentiated_step_begins_as_the_linear_one():
  moved = bandits.exponentiated_step(STUDENT, TEACHER, 1e-7) - STUDENT
  linear = bandits.npg_direction(STUDENT, gradient("reverse_kl"))
  np.testing.assert_allclose(moved / 1e-7, linear, atol=1e-6)


def test_plain_gradient_descent_falls_before_it_rises():
  policies = bandits.softmax_gradient_descent(STUDENT, TEACHER, 0.1, 2000)
  rewards = bandits.expected_reward(policies, REWARDS)
  assert rewards.argmin() == 24
  assert rewards.min() == pytest.approx(0.2245, abs=5e-5)
  assert rewards[-1] == pytest.approx(0.325, abs=1e-6)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_gradients_are_those_of_the_divergences(name, instances):
  student, teacher, _ = instances
  divergence, gradient_of = DIVERGENCES[name]
  g = gradient_of(student, teacher)
  for arm in range(4):
    nudge = 1e-6 * student * np.eye(4)[arm]
    slope = divergence(student + nudge, teacher)
    slope = (slope - divergence(student - nudge, teacher)) / 2e-6
    np.testing.assert_allclose(slope, (student * g)[:, arm], atol=1e-7)


@pytest.mark.parametrize("weight", [0.2, 0.9])
def test_jensen_shannon_gradient_at_other_weights(weight, instances):
  student, teacher, _ = instances
  g = bandits.jensen_shannon_gradient(student, teacher, weight)
  toward = 1e-6 * (teacher - student)
  slope = bandits.jensen_shannon(student + toward, teacher, weight)
  slope = slope - bandits.jensen_shannon(student - toward, teacher, weight)
  np.testing.assert_allclose(
    slope / 2e-6, np.sum(g * (teacher - student), axis=-1), atol=1e-7
  )


def test_jensen_shannon_weight_leans_to_one_or_the_other(instances):
  student, teacher, _ = instances
  # Divided by the weight that vanishes, each end is a KL.
  for weight, limit in (
    (1e-6, bandits.kl(teacher, student)),
    (1 - 1e-6, bandits.kl(student, teacher)),
  ):
    value = bandits.jensen_shannon(student, teacher, weight) / 1e-6
    np.testing.assert_allclose(value, limit, rtol=1e-2)
  flipped = bandits.jensen_shannon(teacher, student, 0.7)
  np.testing.assert_allclose(
    bandits.jensen_shannon(student, teacher, 0.3), flipped
  )


@pytest.mark.parametrize("name", DIVERGENCES)
def test_direction_is_the_natural_gradient_of_the_softmax(name, instances):
  # −J F⁺ ∇_θ D, with J = F = diag π − ππᵀ the softmax's Jacobian and metric.
  student, teacher, _ = instances
  g = gradient(name, student, teacher)
  metric = student[:, :, None] * (np.eye(4) - student[:, None, :])
  ascent = np.linalg.pinv(metric, hermitian=True) @ metric @ g[..., None]
  np.testing.assert_allclose(
    bandits.npg_direction(student, g), -(metric @ ascent)[..., 0], atol=1e-9
  )


@pytest.mark.parametrize("name", DIVERGENCES)
def test_slope_holds_for_the_whole_step(name, instances):
  student, teacher, rewards = instances
  g = gradient(name, student, teacher)
  rate = bandits.largest_rate(student, g)
  moved = bandits.npg_step(student, g, rate)
  np.testing.assert_allclose(moved.sum(axis=-1), 1)
  np.testing.assert_allclose(moved.min(axis=-1), 0, atol=1e-12)
  gain = bandits.expected_reward(moved, rewards)
  gain = gain - bandits.expected_reward(student, rewards)
  slope = bandits.reward_slope(student, rewards, g)
  np.testing.assert_allclose(gain, rate * slope, atol=1e-12)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_repeated_steps_arrive_at_the_teacher(name):
  policy = STUDENT
  for _ in range(2000):
    policy = bandits.npg_step(policy, gradient(name, policy, TEACHER), 0.1)
  np.testing.assert_allclose(policy, TEACHER, atol=1e-9)


def test_cross_entropy_step_goes_straight_to_the_teacher(instances):
  student, teacher, rewards = instances
  moved = bandits.npg_step(
    student, gradient("cross_entropy", *instances[:2]), 1
  )
  np.testing.assert_allclose(moved, teacher, atol=1e-12)
  slope = bandits.reward_slope(
    student, rewards, gradient("cross_entropy", student, teacher)
  )
  difference = bandits.expected_reward(teacher, rewards)
  difference = difference - bandits.expected_reward(student, rewards)
  np.testing.assert_allclose(slope, difference, atol=1e-12)


@pytest.mark.parametrize("name", OTHERS)
def test_other_steps_can_leave_a_better_teacher(name, instances):
  student, teacher, rewards = instances
  better = bandits.expected_reward(teacher - student, rewards) > 0
  slope = bandits.reward_slope(
    student, rewards, gradient(name, student, teacher)
  )
  assert 0.01 < np.mean(slope[better] < 0) < 0.2


@pytest.mark.parametrize("name", OTHERS)
def test_each_other_step_has_rewards_that_defeat_it(name, instances):
  student, teacher, _ = instances
  g = gradient(name, student, teacher)
  rewards = bandits.adverse_rewards(student, teacher, g)
  assert rewards.min() >= 0
  assert rewards.max() <= 1
  assert np.all(bandits.expected_reward(teacher - student, rewards) > 0)
  assert np.all(bandits.reward_slope(student, rewards, g) < 0)


def test_nothing_defeats_cross_entropy(instances):
  student, teacher, _ = instances
  with pytest.raises(ValueError, match="straight at the teacher"):
    bandits.adverse_rewards(
      student, teacher, gradient("cross_entropy", student, teacher)
    )


def test_a_step_out_of_the_simplex_is_refused():
  with pytest.raises(ValueError, match=r"rate=1\.2.*largest.*1\.125"):
    bandits.npg_step(STUDENT, gradient("cross_entropy"), 1.2)


def test_a_step_that_moves_nothing_has_no_limit():
  g = gradient("reverse_kl", STUDENT, STUDENT)
  assert bandits.largest_rate(STUDENT, g) == np.inf
