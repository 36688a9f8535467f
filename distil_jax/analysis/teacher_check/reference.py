"""States costs and credit once more, plainly, in NumPy and float64.

Nothing here shares code with the objectives, so that a mistake there is not
repeated here. Loops are written out where that is easier to read.
"""

import dataclasses

import numpy as np

# Float32 probabilities do not tell a smaller tail of the teacher.
_LEAST_TAIL = 1e-6


@dataclasses.dataclass(frozen=True)
class Formula:
  """Names the cost of a token, and the tokens that it is summed over.

  Attributes:
    name: `forward cross-entropy`, `forward KL`, `reverse KL`, `Jensen-Shannon`
      or `sampled reverse KL`.
    weight: w of the mixture m = (1−w) s + w t.
    token_clip: largest part of one token of the vocabulary, nats.
    top_k: tokens in the sum; None means all.
    top_k_of: whose most probable tokens these are.
    tail: one more bucket for all others.
    temperature: divides both logits.
  """

  name: str
  weight: float = 0.0
  token_clip: float | None = None
  top_k: int | None = None
  top_k_of: str = "student"
  tail: bool = True
  temperature: float = 1.0


def log_softmax(logits: np.ndarray) -> np.ndarray:
  """Returns log-probabilities in float64. Shape `[..., V]`."""
  logits = np.asarray(logits, np.float64)
  shifted = logits - logits.max(axis=-1, keepdims=True)
  with np.errstate(divide="ignore"):
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def costs(
  student_logits: np.ndarray, teacher_logits: np.ndarray, formula: Formula
) -> np.ndarray:
  """Returns the cost of each token, nats. `[T, V]` to `[T]`."""
  return compared(*supported(student_logits, teacher_logits, formula), formula)


def compared(
  student: np.ndarray, teacher: np.ndarray, formula: Formula
) -> np.ndarray:
  """Returns the cost on log-probabilities of a support, nats.

  Args:
    student, teacher: from `supported` or `listed`. Shape `[T, C]` each.
    formula: whose support is not read.

  Returns:
    Shape `[T]`.
  """
  if formula.name == "forward cross-entropy":
    return -_product(np.exp(teacher), student).sum(axis=-1)
  if formula.name == "forward KL":
    summands = _relative(teacher, student)
  elif formula.name == "reverse KL":
    summands = _relative(student, teacher)
  else:
    w = formula.weight
    with np.errstate(divide="ignore"):
      mixture = np.log((1 - w) * np.exp(student) + w * np.exp(teacher))
    summands = (1 - w) * _relative(student, mixture)
    summands += w * _relative(teacher, mixture)
  if formula.token_clip is not None:
    summands = np.minimum(summands, formula.token_clip)
  return summands.sum(axis=-1)


def supported(
  student_logits: np.ndarray, teacher_logits: np.ndarray, formula: Formula
) -> tuple[np.ndarray, np.ndarray]:
  """Returns both log-probabilities over the tokens of a formula's sum."""
  student = np.asarray(student_logits, np.float64) / formula.temperature
  teacher = np.asarray(teacher_logits, np.float64) / formula.temperature
  if formula.top_k is None or formula.top_k >= student.shape[-1]:
    return log_softmax(student), log_softmax(teacher)
  chooser = student if formula.top_k_of == "student" else teacher
  order = np.argsort(-chooser, axis=-1, kind="stable")
  kept, others = np.split(order, [formula.top_k], axis=-1)
  found = []
  for logits in (student, teacher):
    log_probs = log_softmax(logits)
    chosen = np.take_along_axis(log_probs, kept, axis=-1)
    if formula.tail:
      rest = np.exp(np.take_along_axis(log_probs, others, axis=-1))
      with np.errstate(divide="ignore"):
        rest = np.log(rest.sum(axis=-1, keepdims=True))
      chosen = np.concatenate([chosen, rest], axis=-1)
    found.append(log_softmax(chosen))
  return found[0], found[1]


def sampled_costs(student_logits: np.ndarray, ids: np.ndarray) -> np.ndarray:
  """Returns −mean log π_θ over the teacher's samples `[T, C]`, nats. `[T]`."""
  log_probs = log_softmax(student_logits)
  return -np.take_along_axis(log_probs, ids, axis=-1).mean(axis=-1)


def listed(
  student_logits: np.ndarray,
  ids: np.ndarray,
  log_probs: np.ndarray,
  formula: Formula,
) -> tuple[np.ndarray, np.ndarray]:
  """Returns both log-probabilities over a list of distinct tokens.

  Args:
    student_logits: shape `[T, V]`.
    ids, log_probs: the teacher's most probable tokens. Shape `[T, C]` each.
    formula: says whether there is one more bucket for all other tokens.
  """
  whole = log_softmax(student_logits)
  student = np.take_along_axis(whole, ids, axis=-1)
  teacher = np.asarray(log_probs, np.float64)
  if not formula.tail:
    student = student / formula.temperature
    teacher = teacher / formula.temperature
  elif ids.shape[-1] < whole.shape[-1]:
    rest = np.exp(whole)
    np.put_along_axis(rest, ids, 0.0, axis=-1)
    left = np.maximum(1 - np.exp(teacher).sum(-1, keepdims=True), _LEAST_TAIL)
    with np.errstate(divide="ignore"):
      student = np.append(student, np.log(rest.sum(-1, keepdims=True)), -1)
    teacher = np.append(teacher, np.log(left), -1)
  return log_softmax(student), log_softmax(teacher)


def entropy(log_probs: np.ndarray) -> np.ndarray:
  """Returns −Σ p log p, nats. `[..., C]` to `[...]`."""
  return -_product(np.exp(log_probs), log_probs).sum(axis=-1)


@dataclasses.dataclass(frozen=True)
class Credit:
  """Says what future costs make of the weight of log π_θ.

  Attributes:
    future_weight, normalize, discount, baseline, terminal_neutral,
      differential: settings of `objective` in a config.
    group_size: G.
  """

  future_weight: float
  normalize: bool
  group_size: int
  discount: float = 1.0
  baseline: str | None = None
  terminal_neutral: bool = False
  differential: bool = False


def future_costs(
  costs: np.ndarray, mask: np.ndarray, *, discount: float, normalize: bool
) -> np.ndarray:
  """Returns the cost still to come after each column, nats. Shape `[B, T]`."""
  found = np.zeros(mask.shape)
  for row in range(mask.shape[0]):
    total = weight = 0.0
    for t in reversed(range(mask.shape[1])):
      found[row, t] = total / weight if normalize and weight else total
      # A column that does not count has no cost and takes no time.
      if mask[row, t]:
        total = float(costs[row, t]) + discount * total
        weight = 1.0 + discount * weight
  return found


def credit(
  costs: np.ndarray, mask: np.ndarray, settings: Credit
) -> tuple[np.ndarray, np.ndarray]:
  """Returns future costs, and the weight of log π_θ. `[B, T]` each."""
  costs = np.where(mask, np.asarray(costs, np.float64), 0.0)
  if settings.differential:
    costs = costs - costs.sum() / max(mask.sum(), 1)
  future = future_costs(
    costs, mask, discount=settings.discount, normalize=settings.normalize
  )
  is_followed = np.zeros(mask.shape, bool)
  for t in range(mask.shape[1] - 1):
    is_followed[:, t] = mask[:, t + 1 :].any(axis=1)
  credited, alive = mask.astype(bool), mask.astype(bool) | is_followed
  if settings.terminal_neutral:
    credited, alive = credited & is_followed, is_followed
  weights = future - _baseline(future, alive, settings)
  weights = np.where(credited, settings.future_weight * weights, 0.0)
  return np.where(mask, future, 0.0), weights


def _baseline(
  future: np.ndarray, alive: np.ndarray, settings: Credit
) -> np.ndarray:
  """Returns what is subtracted from the future costs. Shape `[B, T]`."""
  found = np.zeros(future.shape)
  if settings.baseline is None:
    return found
  size = settings.group_size
  for row, t in np.argwhere(alive):
    if settings.baseline == "batch_mean":
      others = [i for i in range(len(future)) if alive[i, t]]
    else:
      start = row // size * size
      group = range(start, start + size)
      others = [i for i in group if i != row and alive[i, t]]
    if others:
      found[row, t] = np.mean([future[i, t] for i in others])
  return found


def _product(probs: np.ndarray, values: np.ndarray) -> np.ndarray:
  """Returns p · x with 0 · anything = 0."""
  return probs * np.where(probs == 0, 0.0, values)


def _relative(log_p: np.ndarray, log_q: np.ndarray) -> np.ndarray:
  """Returns the summands p (log p − log q) of KL(p‖q)."""
  probs = np.exp(log_p)
  with np.errstate(invalid="ignore"):
    return probs * np.where(probs == 0, 0.0, log_p - log_q)
