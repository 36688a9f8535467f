"""Types of what an engine reports: progress, finished rows and usage."""

import dataclasses
from collections.abc import Callable

import numpy as np

# Called with the number of tokens and of completions that are done.
Report = Callable[[int, int], None]
# Called with a row of this process and the row's tokens.
OnFinished = Callable[[int, np.ndarray], None]


def no_report(num_tokens: int, num_done: int) -> None:
  """Ignores the progress of a rollout."""
  del num_tokens, num_done


@dataclasses.dataclass(frozen=True)
class Usage:
  """Holds what a rollout took.

  Attributes:
    num_tokens: Number of sampled tokens that count.
    num_steps: Decode steps, one after the other.
    num_slot_steps: Tokens that could have been sampled: the slots that were
      computed, summed over the steps.
    cache_bytes: Largest size of the KV caches, on all devices together.
    num_programs: Programs compiled so far for the engine's decode steps.
  """

  num_tokens: int
  num_steps: int
  num_slot_steps: int
  cache_bytes: int
  num_programs: int

  @property
  def slot_efficiency(self) -> float:
    """Share of the slots' steps that gave a token that counts."""
    # A rollout without a step has used nothing, and wasted nothing.
    return self.num_tokens / max(self.num_slot_steps, 1)

  def add(self, later: "Usage", *, num_stand_ins: int = 0) -> "Usage":
    """Returns what this rollout and a later one took together.

    Args:
      later: Usage of the later one.
      num_stand_ins: Its rows that count for nothing, each of one token.
    """
    return Usage(
      num_tokens=self.num_tokens + later.num_tokens - num_stand_ins,
      num_steps=self.num_steps + later.num_steps,
      num_slot_steps=self.num_slot_steps + later.num_slot_steps,
      cache_bytes=max(self.cache_bytes, later.cache_bytes),
      num_programs=later.num_programs,
    )
