"""Shows that the summed cost favors stopping early, and how credit helps.

Costs end with the completion. At a state in which the teacher stops with
probability q and the student with e, the sum H + (future cost) is

  −q ln e − (1−q) ln(1−e) + (1−e) C

with C the future cost of continuing, in nats. Its minimum is
`plateaus.cross_entropy_plateau` with stopping as the good route.
"""

import numpy as np

from distil_jax.analysis.theory import Array, plateaus


def stop_probability(
  teacher_stop: float | Array, cost_ahead: float | Array
) -> Array:
  """Returns the e that minimizes the sum above.

  For a teacher that never stops it is 1 − 1/C if C > 1 nat, else 0.

  Args:
    teacher_stop: q in [0, 1].
    cost_ahead: future_weight · C, nats.
  """
  return plateaus.cross_entropy_plateau(teacher_stop, cost_ahead)


def optimal_stopping(
  costs: Array, teacher_stop: float = 0.0
) -> tuple[Array, Array]:
  """Minimizes the summed cost over the stop probability at every token.

    Wₜ = cₜ + min_e [ H×(q, e) + (1−e) Wₜ₊₁ ]        W after the last = 0

  The cost cₜ of a state is paid whether or not the student stops there. The
  recursion runs backwards, because later stops make continuing cheaper.

  Args:
    costs: Cost at each token that cannot be learned, nats. Shape `[..., T]`.
    teacher_stop: q in [0, 1) at every token but the last.

  Returns:
    The stop probabilities (1 at the last token), and W; shape `[..., T]` each.

  Raises:
    ValueError: q is outside [0, 1).
  """
  if not 0 <= teacher_stop < 1:
    raise ValueError(
      f"teacher_stop={teacher_stop} must be in [0, 1): after a teacher that "
      "always stops no token follows; give fewer costs"
    )
  length = costs.shape[-1]
  stops, totals = np.ones_like(costs), np.array(costs, dtype=np.float64)
  for t in reversed(range(length - 1)):
    ahead = totals[..., t + 1]
    stop = stop_probability(teacher_stop, ahead)
    stops[..., t] = stop
    # For a teacher that never stops, 0 · ln 0 counts as 0.
    stopping = -teacher_stop * np.log(stop) if teacher_stop else 0.0
    going_on = -(1 - teacher_stop) * np.log1p(-stop)
    totals[..., t] = costs[..., t] + stopping + going_on + (1 - stop) * ahead
  return stops, totals


def expected_length(stops: Array) -> Array:
  """Returns Σₜ P(token t is reached). Shape `[...]`."""
  reached = np.cumprod(1 - stops[..., :-1], axis=-1)
  return 1 + reached.sum(axis=-1)


def terminal_neutral_drift(
  stop: float | Array,
  teacher_stop: float | Array,
  cost_ahead: float | Array,
  group_size: int,
) -> Array:
  """Returns the drift of logit e under terminal-neutral credit.

    q − e + C e^G (1−e)

  The last token has no future credit, and the leave-one-out baseline does not
  count it. Continuing then costs C − C = 0 compared with siblings that continue
  too, so future credit is neutral about stopping. But if all G − 1 siblings
  stop (probability e^{G−1}), there is no baseline, and continuing is charged C.

  Args:
    stop: e.
    teacher_stop: q.
    cost_ahead: future_weight · C, nats.
    group_size: G.
  """
  stop = np.asarray(stop, dtype=np.float64)
  return teacher_stop - stop + cost_ahead * stop**group_size * (1 - stop)


def terminal_neutral_limit(group_size: int) -> float:
  """Returns the future cost from which terminal-neutral credit has a trap.

  For a teacher that never stops, a second stable point near e = 1 appears at
  C = 1 / max_e e^{G−1} (1−e) = G^G / (G−1)^{G−1} nats, about 2.718 G. A student
  that starts with rare stops does not get there; one that is there stays.
  """
  return group_size**group_size / (group_size - 1) ** (group_size - 1)


def differential_cost_ahead(costs: Array, mean_cost: float | Array) -> Array:
  """Returns Σ_{i>t} (Hᵢ − ρ), the future cost beyond the average token.

  Args:
    costs: Costs of the tokens up to the end, nats. Shape `[..., T]`.
    mean_cost: ρ, nats per token; a scalar or of shape `[..., 1]`.

  Returns:
    Nats, shape `[..., T]`; 0 at the last token. If every token costs ρ it is 0
    everywhere, and the stop probability is that of the teacher. If the tokens
    to come are cheaper than ρ it is negative, which rewards continuing.
  """
  excess = costs - mean_cost
  return excess.sum(axis=-1, keepdims=True) - np.cumsum(excess, axis=-1)


def rambling_mean_cost(
  stop: float | Array, num_tokens: float | Array, cost: float | Array
) -> Array:
  """Returns the mean cost per token of a student that continues too long.

    ρ(e) = (n c − (ln e) / e) / (n + 1/e)

  First come n tokens of c nats. Then the teacher asks for the end at every
  token, and the student ends with probability e: 1/e tokens that cost −ln e
  each. Differential credit is the gradient of this mean, and not of the sum.

  Args:
    stop: e in (0, 1].
    num_tokens: n.
    cost: c, nats.
  """
  stop = np.asarray(stop, dtype=np.float64)
  return (num_tokens * cost - np.log(stop) / stop) / (num_tokens + 1 / stop)


def rambling_stop_probability(num_tokens: float, cost: float) -> float:
  """Returns the e that minimizes `rambling_mean_cost`.

    ln e = 1 − c + 1/(n e)        if c > 1 + 1/n, otherwise e = 1

  So if tokens cost more than about one nat that the student cannot save, adding
  cheap tokens lowers the mean. There ln e = 1 − ρ(e), which is the fixed point
  of `stop_probability` with differential costs ahead. As n grows, e tends to
  exp(1 − c).
  """
  # ln e + c − 1 − 1/(n e) rises with e from −∞. If it is not positive at 1
  # either, bisection leaves the upper end at 1.
  low, high = 0.0, 1.0
  for _ in range(100):
    middle = (low + high) / 2
    if np.log(middle) + cost - 1 - 1 / (num_tokens * middle) > 0:
      high = middle
    else:
      low = middle
  return high
