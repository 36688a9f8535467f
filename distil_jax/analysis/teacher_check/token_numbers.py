"""Reads each token's numbers from logits that a plain pass computed."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from distil_jax.analysis.teacher_check import reference
from distil_jax.analysis.teacher_check.records import Numbers
from distil_jax.analysis.teacher_check.reference import Formula

NUM_CHOICES = 3
# What a cost could be by mistake, over the same tokens as the right one.
_RIVALS = ("forward cross-entropy", "forward KL", "reverse KL")


def of_tokens(
  student_logits: np.ndarray,
  teacher_logits: np.ndarray,
  ids: np.ndarray,
  local: Formula,
  carried: Formula,
  lists: tuple[np.ndarray, np.ndarray] | None = None,
  kind: str = "probabilities",
  num_tokens: int | None = None,
) -> Numbers:
  """Returns what is known of each token of a stretch of a completion.

  Args:
    student_logits: of the states before the T tokens. Shape `[T, V]`.
    teacher_logits: the teacher's, with one state more at either end: entry
      t + 1 belongs to token t. Shape `[T + 2, V]`.
    ids: the completion's tokens. Shape `[T]`.
    local: the cost that a token minimises.
    carried: the cost that is charged to the tokens before it.
    lists: ids and log-probabilities that the teacher gave. `[T, C]` each.
    kind: `teacher.access`.
    num_tokens: the first of the entries are tokens; None means that all are.

  Returns:
    Arrays whose first axis is T: log-probabilities and first choices of both,
    the costs, what they would be by rival formulas (`rival/...`), and the
    likelihood of the tokens one state too early and one too late.
  """
  student_logits = student_logits[:, :num_tokens]
  student_log_probs = reference.log_softmax(student_logits)
  teacher_logits = teacher_logits[:, :num_tokens]
  teacher = teacher_logits[1:-1]
  around = reference.log_softmax(teacher_logits)
  shifted = {
    name: around[start : start + len(ids)]
    for name, start in (("early", 0), ("teacher", 1), ("late", 2))
  }
  found: Numbers = {
    "student_log_probs": _pick(student_log_probs, ids),
    "cross_entropies": reference.costs(
      student_logits, teacher, Formula("forward cross-entropy")
    ),
    "teacher_entropies": reference.entropy(shifted["teacher"]),
    **{f"{k}_log_probs": _pick(x, ids) for k, x in shifted.items()},
    **_choices("student", student_log_probs),
    **_choices("teacher", shifted["teacher"]),
  }
  support = reference.supported(student_logits, teacher, local)
  found["costs"] = reference.compared(*support, local)
  if lists is not None:
    found |= _of_lists(shifted, *lists)
  if lists is not None and kind == "samples":
    found["costs"] = reference.sampled_costs(student_logits, lists[0])
  elif lists is not None:
    support = reference.listed(student_logits, *lists, local)
    found["costs"] = reference.compared(*support, local)
  if carried.name == local.name:
    found["carried"] = found["costs"]
  elif carried.name == "sampled reverse KL":
    found["carried"] = found["student_log_probs"] - found["teacher_log_probs"]
  else:
    found["carried"] = reference.compared(*support, carried)
  return found | {
    f"rival/{name}": values for name, values in _rivals(*support, local)
  }


def joined(parts: Sequence[Numbers], length: int) -> Numbers:
  """Joins stretches of one completion, and fills up with NaN to T."""
  found = {}
  for name in parts[0]:
    whole = np.concatenate([part[name] for part in parts])
    filled = np.full((length, *whole.shape[1:]), np.nan)
    filled[: len(whole)] = whole
    found[name] = filled
  return found


def stretches(length: int, vocab_size: int) -> Iterator[slice]:
  """Yields slices of a completion whose logits fit into memory."""
  # Some ten float64 arrays of this size are in memory at once.
  size = max(1, 2**22 // vocab_size)
  for start in range(0, length, size):
    yield slice(start, min(start + size, length))


def _rivals(
  student: np.ndarray, teacher: np.ndarray, local: Formula
) -> Iterator[tuple[str, np.ndarray]]:
  """Yields what the cost would be by mistake, on the same support."""
  for name in _RIVALS:
    if name != local.name:
      rival = dataclasses.replace(local, name=name, token_clip=None)
      yield name, reference.compared(student, teacher, rival)
  yield "the swapped cost", reference.compared(teacher, student, local)


def _of_lists(
  shifted: dict[str, np.ndarray], ids: np.ndarray, log_probs: np.ndarray
) -> Numbers:
  """Returns how likely the lists are, at their states and beside them."""
  found = {
    f"list/{name}": np.take_along_axis(x, ids, axis=-1).mean(axis=-1)
    for name, x in shifted.items()
  }
  listed = np.take_along_axis(shifted["teacher"], ids, axis=-1)
  found["list/distance"] = np.abs(listed - log_probs).mean(axis=-1)
  probs = np.exp(shifted["teacher"])
  with np.errstate(invalid="ignore"):
    squares = probs * np.where(probs == 0, 0.0, shifted["teacher"] ** 2)
  entropies = reference.entropy(shifted["teacher"])
  # The variance of log p(a) of a sample a, which says how far chance goes.
  variances = squares.sum(axis=-1) - entropies**2
  found["list/variance"] = np.maximum(variances, 0) / ids.shape[-1]
  return found


def _choices(name: str, log_probs: np.ndarray) -> Numbers:
  """Returns the most probable tokens and their probabilities."""
  count = min(NUM_CHOICES, log_probs.shape[-1])
  ids = np.argsort(-log_probs, axis=-1, kind="stable")[:, :count]
  return {
    f"{name}_choices": ids,
    f"{name}_choice_probs": np.exp(np.take_along_axis(log_probs, ids, -1)),
  }


def _pick(log_probs: np.ndarray, ids: Any) -> np.ndarray:
  # A token that only the student knows belongs to a sample without signal.
  ids = np.minimum(np.asarray(ids), log_probs.shape[-1] - 1)
  return np.take_along_axis(log_probs, ids[:, None], -1)[:, 0]
