"""The formulas once more, in float64 NumPy, one number at a time.

Nothing here knows the package: tests compare the two.
"""

import numpy as np


def log_softmax(logits):
  shifted = np.asarray(logits, np.float64) - np.max(logits)
  return shifted - np.log(np.exp(shifted).sum())


def support(
  student, teacher, *, top_k=None, top_k_of="student", tail=True, temperature=1
):
  """Log-probabilities of one state on the support, `[C]` each."""
  student = log_softmax(student / temperature)
  teacher = log_softmax(teacher / temperature)
  if top_k is None or top_k >= len(student):
    return student, teacher
  chooser = student if top_k_of == "student" else teacher
  order = sorted(range(len(chooser)), key=lambda a: (-chooser[a], a))
  kept, others = order[:top_k], order[top_k:]
  sides = []
  for side in (student, teacher):
    logs = [side[a] for a in kept]
    if tail:
      logs.append(np.log(sum(np.exp(side[a]) for a in others)))
    else:
      logs = np.array(logs) - np.log(sum(np.exp(x) for x in logs))
    sides.append(np.array(logs))
  return sides[0], sides[1]


def kl_summands(log_p, log_q):
  return [
    np.exp(p) * (p - q) if np.exp(p) > 0 else 0.0
    for p, q in zip(log_p, log_q, strict=True)
  ]


def divergence(student, teacher, kind, *, weight=None, token_clip=None):
  """Of log-probabilities `[C]`."""
  if kind == "forward_cross_entropy":
    return sum(
      -np.exp(t) * s
      for s, t in zip(student, teacher, strict=True)
      if np.exp(t) > 0
    )
  if kind == "forward_kl" or weight == 0:
    summands = kl_summands(teacher, student)
  elif kind == "reverse_kl" or weight == 1:
    summands = kl_summands(student, teacher)
  else:
    mixture = np.log((1 - weight) * np.exp(student) + weight * np.exp(teacher))
    summands = [
      (1 - weight) * of_student + weight * of_teacher
      for of_student, of_teacher in zip(
        kl_summands(student, mixture),
        kl_summands(teacher, mixture),
        strict=True,
      )
    ]
  if token_clip is not None:
    summands = [min(x, token_clip) for x in summands]
  return sum(summands)


def entropy(log_probs):
  return -sum(np.exp(x) * x for x in log_probs if np.exp(x) > 0)


def future_costs(costs, lengths, *, discount, normalize, average_cost=0.0):
  """R of costs `{(b, t): cost}`."""
  later = {}
  for b, t in costs:
    rest = range(t + 1, lengths[b])
    weights = [discount ** (i - t - 1) for i in rest]
    total = sum(
      w * (costs[b, i] - average_cost)
      for w, i in zip(weights, rest, strict=True)
    )
    if normalize and weights:
      total /= sum(weights)
    later[b, t] = total
  return later


def baselines(later, credited, *, baseline, group_size):
  """b at each credited position `(b, t)`."""
  result = {}
  for b, t in credited:
    if baseline is None:
      others = []
    elif baseline == "batch_mean":
      others = [later[at] for at in credited if at[1] == t]
    else:
      first = b // group_size * group_size
      others = [
        later[j, t]
        for j in range(first, first + group_size)
        if j != b and (j, t) in credited
      ]
    result[b, t] = np.mean(others) if others else 0.0
  return result


def average(losses, lengths, counted, aggregation):
  """Of losses `{(b, t): loss}` over the sequences that are counted."""
  if aggregation == "token_mean":
    chosen = [loss for (b, _), loss in losses.items() if counted[b]]
    return sum(chosen) / max(len(chosen), 1)
  means = [
    np.mean([losses[b, t] for t in range(length)])
    for b, length in enumerate(lengths)
    if counted[b] and length
  ]
  return sum(means) / len(lengths)


def numerical_gradient(function, x, step=1e-5):
  """Central differences of a scalar function of an array."""
  gradient = np.zeros_like(x)
  for index in np.ndindex(*x.shape):
    nudge = np.zeros_like(x)
    nudge[index] = step
    gradient[index] = (function(x + nudge) - function(x - nudge)) / (2 * step)
  return gradient
