"""Models information that only the teacher sees, which is best avoided.

At the start the student chooses L or R. R costs nothing afterwards and earns 1.
After L, one of `num_hidden` equally likely values must be named. Feedback shows
it to the teacher but not to the student, whose cost there is at least
ln num_hidden and whose reward is 1/num_hidden. The teacher chooses L with
probability q.
"""

import numpy as np

from distil_jax.analysis.theory import Array, plateaus


def naming_cost(guess: Array) -> Array:
  """Returns the mean cost of naming the hidden value, nats. Shape `[...]`.

    E_h[−ln guess(h)]  ≥  ln num_hidden        with equality at uniform

  Args:
    guess: The student's distribution after L. Shape `[..., num_hidden]`.
  """
  return -np.mean(np.log(guess), axis=-1)


def sequence_cost(
  p_left: float | Array, q_left: float | Array, naming_cost: float | Array
) -> Array:
  """Returns E Σₜ Hₜ = −q ln p − (1−q) ln(1−p) + p · naming_cost, nats."""
  p_left = np.asarray(p_left, dtype=np.float64)
  choice = -q_left * np.log(p_left) - (1 - q_left) * np.log1p(-p_left)
  return choice + p_left * naming_cost


def expected_reward(p_left: float | Array, num_hidden: int = 2) -> Array:
  """Returns J = (1 − p) + p / num_hidden, as no guess beats chance."""
  p_left = np.asarray(p_left, dtype=np.float64)
  return 1 - p_left * (1 - 1 / num_hidden)


def local_stationary_point(q_left: float | Array) -> Array:
  """Returns P(L) if each cost is minimized at its own state, which is q."""
  return np.asarray(q_left, dtype=np.float64)


def sequence_stationary_point(
  q_left: float | Array, num_hidden: int = 2
) -> Array:
  """Returns the P(L) that minimizes the cost of the sequence.

  The good route is R, so 1 − p is the plateau of 1 − q with a pull of
  ln num_hidden nats.
  """
  q_right = 1 - np.asarray(q_left, dtype=np.float64)
  return 1 - plateaus.cross_entropy_plateau(q_right, np.log(num_hidden))
