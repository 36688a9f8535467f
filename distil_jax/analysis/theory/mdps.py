"""Checks when a step towards a teacher is safe in finite-horizon MDPs.

Policies, Q and advantages have shape `[..., T, S, A]`, one row for each time
and state. Leading dimensions are instances.
"""

import dataclasses

import numpy as np

from distil_jax.analysis.theory import Array, bandits


@dataclasses.dataclass(frozen=True)
class Mdp:
  """Holds a decision process of T steps.

  Attributes:
    start: Distribution of the first state. Shape `[..., S]`.
    transitions: Distribution of the next state, given time, state and action;
      that of the last step is not used. Shape `[..., T, S, A, S]`.
    rewards: Shape `[..., T, S, A]`.
  """

  start: Array
  transitions: Array
  rewards: Array


def sample_distributions(rng: np.random.Generator, *shape: int) -> Array:
  """Samples uniformly from the simplex of the last axis, without zeros."""
  weights = rng.exponential(size=shape)
  return weights / weights.sum(axis=-1, keepdims=True)


def sample_mdps(
  rng: np.random.Generator,
  num_mdps: int,
  *,
  horizon: int,
  num_states: int,
  num_actions: int,
) -> Mdp:
  """Samples MDPs with uniform distributions and rewards in [0, 1]."""
  shape = (num_mdps, horizon, num_states, num_actions)
  return Mdp(
    start=sample_distributions(rng, num_mdps, num_states),
    transitions=sample_distributions(rng, *shape, num_states),
    rewards=rng.uniform(size=shape),
  )


def action_values(mdp: Mdp, policy: Array) -> Array:
  """Returns Qₜ(s, a) = rₜ(s, a) + E_{s'} Vₜ₊₁(s'). Shape `[..., T, S, A]`."""
  horizon = mdp.rewards.shape[-3]
  values = []
  # After the last step nothing is earned.
  later = np.zeros(mdp.rewards.shape[:-3] + mdp.rewards.shape[-2:-1])
  # Backwards in time, because the value of a step needs that of the next.
  for t in reversed(range(horizon)):
    moves = mdp.transitions[..., t, :, :, :]
    q = mdp.rewards[..., t, :, :] + np.einsum(
      "...saz,...z->...sa", moves, later
    )
    later = np.sum(policy[..., t, :, :] * q, axis=-1)
    values.append(q)
  return np.stack(values[::-1], axis=-3)


def advantages(mdp: Mdp, policy: Array) -> Array:
  """Returns A(s, a) = Q(s, a) − E_π Q(s, ·). Shape `[..., T, S, A]`."""
  q = action_values(mdp, policy)
  return q - np.sum(policy * q, axis=-1, keepdims=True)


def expected_return(mdp: Mdp, policy: Array) -> Array:
  """Returns J = E_{s₀} V₀(s₀). Shape `[...]`."""
  first = policy[..., 0, :, :] * action_values(mdp, policy)[..., 0, :, :]
  return np.sum(mdp.start * first.sum(axis=-1), axis=-1)


def state_distributions(mdp: Mdp, policy: Array) -> Array:
  """Returns d^π, the distribution of states over time. `[..., T, S]`."""
  distributions = [mdp.start]
  for t in range(mdp.rewards.shape[-3] - 1):
    distributions.append(
      np.einsum(
        "...s,...sa,...saz->...z",
        distributions[-1],
        policy[..., t, :, :],
        mdp.transitions[..., t, :, :, :],
      )
    )
  return np.stack(distributions, axis=-2)


def performance_difference(mdp: Mdp, policy: Array, new_policy: Array) -> Array:
  """Returns J(π') − J(π) by the performance difference. Shape `[...]`.

  Σₜ E_{s~d^{π'}} E_{a~π'} A^π(s, a)
  """
  gains = np.sum(new_policy * advantages(mdp, policy), axis=-1)
  visited = state_distributions(mdp, new_policy)
  return np.sum(visited * gains, axis=(-2, -1))


def mixture_step(policy: Array, teacher: Array, rate: float | Array) -> Array:
  """Returns π' = π + η (π_T − π) at every state (NPG-DistIL).

  It is the NPG step of forward cross-entropy (Algorithm 2 of the paper).

  Args:
    policy: π. Shape `[..., T, S, A]`.
    teacher: π_T. Shape `[..., T, S, A]`.
    rate: η in [0, 1], a scalar or of shape `[...]`.

  Raises:
    ValueError: η is outside [0, 1].
  """
  rate = np.asarray(rate, dtype=np.float64)
  if np.any((rate < 0) | (rate > 1)):
    raise ValueError(f"rate={rate} must be in [0, 1], the share of the teacher")
  return policy + rate[..., None, None, None] * (teacher - policy)


def covariance_expansion(
  mdp: Mdp, policy: Array, gradient: Array, visited: Array
) -> Array:
  """Returns −Σₜ E_{s~visited} Cov_π(A^π(s, ·), g(s, ·)). Shape `[...]`.

  With `visited` = d^π this is dJ/dη of the NPG step on any divergence with
  gradient g. With `visited` = d^{π'}, times η, it is J(π') − J(π) exactly.

  Args:
    mdp: The process.
    policy: π. Shape `[..., T, S, A]`.
    gradient: g = ∂D/∂π at every state. Shape `[..., T, S, A]`.
    visited: Distribution of states. Shape `[..., T, S]`.
  """
  slopes = bandits.reward_slope(policy, advantages(mdp, policy), gradient)
  return np.sum(visited * slopes, axis=(-2, -1))


def teacher_advantages(mdp: Mdp, policy: Array, teacher: Array) -> Array:
  """Returns E_{a~π_T} A^π(s, a). Shape `[..., T, S]`.

  If it is ≥ 0 at every state, no mixture step lowers J. J_T > J is not enough,
  because the mixture also visits states that the teacher avoids.
  """
  return np.sum(teacher * advantages(mdp, policy), axis=-1)


def success_teacher(mdp: Mdp, policy: Array) -> Array:
  """Returns the student conditioned on success. Shape `[..., T, S, A]`.

    π_T(a|s) = π(a|s) Q(s, a) / V(s)      E_{π_T} A^π(s, ·) = Var_π(Q) / V ≥ 0

  If Q is a probability of success, this is Bayes' rule; it needs rewards > 0.
  It meets the condition of `teacher_advantages` at every state.
  """
  weights = policy * action_values(mdp, policy)
  return weights / weights.sum(axis=-1, keepdims=True)


def detour() -> tuple[Mdp, Array, Array]:
  """Returns a better teacher for which the mixture first gets worse.

  At the start, action 0 leads to a safe state and action 1 to a rich one. There
  action 1 earns .8 and 1, and action 0 nothing. The student nearly always goes
  to the safe state and earns there. The teacher goes to the rich state, and
  acts wrongly in the safe one, which it never visits.

  Returns:
    The MDP, the student and the teacher; T = 2, S = 3, A = 2.
  """
  transitions = np.zeros((2, 3, 2, 3))
  transitions[0, 0, 0, 1] = transitions[0, 0, 1, 2] = 1.0
  transitions[0, 1:, :, 0] = transitions[1, :, :, 0] = 1.0  # never used
  rewards = np.zeros((2, 3, 2))
  rewards[1, 1, 1], rewards[1, 2, 1] = 0.8, 1.0
  student = np.full((2, 3, 2), 0.5)
  teacher = student.copy()
  student[0, 0], teacher[0, 0] = (0.9, 0.1), (0.0, 1.0)
  student[1, 1], teacher[1, 1] = (0.0, 1.0), (1.0, 0.0)
  student[1, 2], teacher[1, 2] = (1.0, 0.0), (0.0, 1.0)
  mdp = Mdp(np.array([1.0, 0.0, 0.0]), transitions, rewards)
  return mdp, student, teacher


def regret(mdp: Mdp, policies: Array, teacher: Array) -> Array:
  """Returns the regret εₙ of a sequence of policies, nats. Shape `[...]`.

    εₙ = (1/n) Σᵢ Σₜ E_{s~d^{πᵢ}} KL(π_T(·|s)‖πᵢ(·|s))

  Args:
    mdp: The process.
    policies: π₁…πₙ. Shape `[n, ..., T, S, A]`.
    teacher: π_T. Shape `[..., T, S, A]`.
  """
  divergences = bandits.kl(np.broadcast_to(teacher, policies.shape), policies)
  summed = [
    np.sum(state_distributions(mdp, policy) * each, axis=(-2, -1))
    for policy, each in zip(policies, divergences, strict=True)
  ]
  return np.mean(summed, axis=0)


def regret_bound(mdp: Mdp, teacher: Array, regret: Array) -> Array:
  """Returns the largest mean gap in J that a regret εₙ allows. Shape `[...]`.

    | (1/n) Σᵢ J_T − J(πᵢ) |  ≤  range(Q^{π_T}) √(T εₙ / 2)

  This follows from the performance difference on the states of πᵢ, Pinsker's
  inequality, and the concavity of the root. The range is taken over actions, at
  the state with the widest one.
  """
  q = action_values(mdp, teacher)
  widest = np.max(q.max(axis=-1) - q.min(axis=-1), axis=(-2, -1))
  return widest * np.sqrt(mdp.rewards.shape[-3] * regret / 2)
