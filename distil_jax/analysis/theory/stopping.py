"""Stopping early: an optimum of the summed cost, and what other credit does.

Costs end with the completion. At a state where the teacher stops with q and
the student with e, the sum H + (cost still ahead) is

  −q ln e − (1−q) ln(1−e) + (1−e) C

with C the future cost of going on, nats. That is the plateau of
`plateaus.cross_entropy_plateau` with stopping as the good route.
"""

import numpy as np

from distil_jax.analysis.theory import Array, plateaus


def stop_probability(
  teacher_stop: float | Array, cost_ahead: float | Array
) -> Array:
  """The e that minimises the sum above.

  For a teacher that never stops: 1 − 1/C where C > 1 nat, else 0.

  Args:
    teacher_stop: q in [0, 1].
    cost_ahead: future_weight · C, nats.
  """
  return plateaus.cross_entropy_plateau(teacher_stop, cost_ahead)


def optimal_stopping(
  costs: Array, teacher_stop: float = 0.0
) -> tuple[Array, Array]:
  """Minimises the summed cost over the stop probability at every token.

    Wₜ = cₜ + min_e [ H×(q, e) + (1−e) Wₜ₊₁ ]        W after the last = 0

  The cost cₜ of a state is paid there whether or not the student stops.
  Backwards, as later stops make going on cheaper.

  Args:
    costs: cost that cannot be learnt at each token, nats. Shape `[..., T]`.
    teacher_stop: q in [0, 1), the teacher's at every token but the last.

  Returns:
    the stop probabilities (1 at the last token), and W; shape `[..., T]` each.

  Raises:
    ValueError: q outside [0, 1).
  """
  if not 0 <= teacher_stop < 1:
    raise ValueError(
      f"teacher_stop={teacher_stop} is not in [0, 1): a teacher that always "
      "stops leaves no token to come; give fewer costs"
    )
  length = costs.shape[-1]
  stops, totals = np.ones_like(costs), np.array(costs, dtype=np.float64)
  for t in reversed(range(length - 1)):
    ahead = totals[..., t + 1]
    stop = stop_probability(teacher_stop, ahead)
    stops[..., t] = stop
    # 0 · ln 0 = 0 for a teacher that never stops.
    stopping = -teacher_stop * np.log(stop) if teacher_stop else 0.0
    going_on = -(1 - teacher_stop) * np.log1p(-stop)
    totals[..., t] = costs[..., t] + stopping + going_on + (1 - stop) * ahead
  return stops, totals


def expected_length(stops: Array) -> Array:
  """Σₜ P(token t is reached). Shape `[...]`."""
  reached = np.cumprod(1 - stops[..., :-1], axis=-1)
  return 1 + reached.sum(axis=-1)


def terminal_neutral_drift(
  stop: float | Array,
  teacher_stop: float | Array,
  cost_ahead: float | Array,
  group_size: int,
) -> Array:
  """Drift of logit e under terminal-neutral, leave-one-out credit.

    q − e + C e^G (1−e)

  The last token has no future credit, and the others' baseline does not count
  it. Going on then costs C − C = 0 compared with siblings that also go on:
  the future says nothing on stopping. But if all G − 1 siblings stop, there is
  no baseline left (chance e^{G−1}), and going on is charged C once more.

  Args:
    stop: e.
    teacher_stop: q.
    cost_ahead: future_weight · C, nats.
    group_size: G.
  """
  stop = np.asarray(stop, dtype=np.float64)
  return teacher_stop - stop + cost_ahead * stop**group_size * (1 - stop)


def terminal_neutral_limit(group_size: int) -> float:
  """Cost ahead, nats, from which terminal-neutral credit too has a trap.

  For a teacher that never stops, a second resting point near e = 1 appears at
  C = 1 / max_e e^{G−1} (1−e) = G^G / (G−1)^{G−1}, about G · e. A student that
  begins with rare stops does not get there; one that has fallen in stays.
  """
  return group_size**group_size / (group_size - 1) ** (group_size - 1)


def differential_cost_ahead(costs: Array, mean_cost: float | Array) -> Array:
  """Σ_{i>t} (Hᵢ − ρ): what going on costs beyond the average token.

  Args:
    costs: of the tokens if the student goes on to the end. Shape `[..., T]`.
    mean_cost: ρ, nats per token; one or of shape `[..., 1]`.

  Returns:
    nats. Shape `[..., T]`; 0 at the last token. Where every token costs ρ it is
    0 everywhere and the stop probability is the teacher's own; where what
    follows is cheaper than ρ it is negative and pays for going on.
  """
  excess = costs - mean_cost
  return excess.sum(axis=-1, keepdims=True) - np.cumsum(excess, axis=-1)


def rambling_mean_cost(
  stop: float | Array, num_tokens: float | Array, cost: float | Array
) -> Array:
  """Mean cost per token of a student that rambles on after the end.

    ρ(e) = (n c − (ln e) / e) / (n + 1/e)

  n tokens of c nats; then the teacher asks for the end at every token, and the
  student gives it with e: 1/e tokens that cost −ln e each. Differential credit
  is the gradient of exactly this mean, and not of the sum.

  Args:
    stop: e in (0, 1].
    num_tokens: n.
    cost: c, nats.
  """
  stop = np.asarray(stop, dtype=np.float64)
  return (num_tokens * cost - np.log(stop) / stop) / (num_tokens + 1 / stop)


def rambling_stop_probability(num_tokens: float, cost: float) -> float:
  """The e that minimises `rambling_mean_cost`.

    ln e = 1 − c + 1/(n e)        if c > 1 + 1/n, else 1: no rambling

  So beyond about one nat per token that the student cannot save, the mean is
  lowered by adding cheap tokens. There ln e = 1 − ρ(e), which is the resting
  point of `stop_probability` with differential costs ahead. As n grows, e tends
  to exp(1 − c).
  """
  # ln e + c − 1 − 1/(n e) rises with e from −∞; if it is not > 0 even at 1, the
  # upper end stays there.
  low, high = 0.0, 1.0
  for _ in range(100):
    middle = (low + high) / 2
    if np.log(middle) + cost - 1 - 1 / (num_tokens * middle) > 0:
      high = middle
    else:
      low = middle
  return high
