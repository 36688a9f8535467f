"""A judged rollout."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from distil_jax.generation import engine
from distil_jax.training.rollouts.tool_pool import FAILED
from distil_jax.types import (
  Message,
  Problem,
  Rollout,
  Status,
  StopReason,
  Verdict,
)


@dataclasses.dataclass(frozen=True)
class Experience:
  """What came of a batch of problems, on the host.

  Attributes:
    problems: P of them.
    group_size: G; the members of a group stand in a row.
    rollout: this process's rows, NumPy.
    completions: as text; of an episode the last turn. Length B.
    verdicts: length B.
    usage: what the rollout took, of all processes; None: not known.
    judging_seconds: from the end of the rollout to the last verdict.
    critiques: how many of what kind, see `critiques.COUNTS`; None: none could
      be asked for.
    earlier: of each episode what was said before the last turn, by `student`
      and `tool`; None: there is no tool. Length B.
  """

  problems: Sequence[Problem]
  group_size: int
  rollout: Rollout
  completions: list[str]
  verdicts: list[Verdict]
  usage: engine.Usage | None = None
  judging_seconds: float = 0.0
  critiques: Mapping[str, int] | None = None
  earlier: Sequence[Sequence[Message]] | None = None

  @property
  def rewards(self) -> np.ndarray:
    """Shape `[P, G]`."""
    rewards = [verdict.reward for verdict in self.verdicts]
    return np.asarray(rewards, np.float64).reshape(-1, self.group_size)

  @property
  def is_judged(self) -> np.ndarray:
    """Whether there is a verdict on the completion. Shape `[B]`."""
    statuses = [verdict.status for verdict in self.verdicts]
    return np.asarray([status != Status.CRASHED for status in statuses], bool)

  @property
  def lengths(self) -> np.ndarray:
    """Tokens of each completion that the student chose. Shape `[B]`."""
    return np.asarray(self.rollout.student_tokens).sum(axis=1)

  @property
  def is_cut_off(self) -> np.ndarray:
    """Whether the limit ended the completion. Shape `[B]`."""
    return np.asarray(self.rollout.stop_reasons) == StopReason.LENGTH

  @property
  def tool_counts(self) -> dict[str, np.ndarray]:
    """Of each episode, for the log; nothing without a tool. Shape `[B]` each.

    The student's turns; the tool's outputs between them, those of them that it
    could not give, and their tokens, with what the chat template puts around
    them.
    """
    if self.earlier is None:
      return {}
    said = [[m["content"] for m in earlier[1::2]] for earlier in self.earlier]
    counts = {
      "turns": [1 + len(outputs) for outputs in said],
      "calls": [len(outputs) for outputs in said],
      "failed": [outputs.count(FAILED) for outputs in said],
      "tokens": self.rollout.completion_mask.sum(axis=1) - self.lengths,
    }
    return {f"tools/{name}": np.asarray(x) for name, x in counts.items()}
