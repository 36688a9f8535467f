"""Types of what an engine reports: progress, tokens, finished rows, usage."""

import dataclasses
from collections.abc import Callable

import numpy as np

# Called with the number of tokens and of completions that are done.
Report = Callable[[int, int], None]
# Called with a row of this process and the row's tokens.
OnFinished = Callable[[int, np.ndarray], None]
# Returns the tokens so far of all rows, `[R, T]`, and their numbers, `[R]`.
ReadTokens = Callable[[], tuple[np.ndarray, np.ndarray]]


def no_report(num_tokens: int, num_done: int) -> None:
  """Ignores the progress of a rollout."""
  del num_tokens, num_done


@dataclasses.dataclass(frozen=True)
class Watch:
  """Follows the rows of a rollout in a single process, and may end some.

  Attributes:
    look: Called after each stretch of decode steps with a function that reads
      the tokens. Returns how many tokens each row keeps, negative for rows that
      go on, shape `[R]`; None ends none. A row that still waits for a slot
      begins nonetheless, and ends at the look after.
    num_steps: Decode steps between two looks, at most.
  """

  look: Callable[[ReadTokens], np.ndarray | None]
  num_steps: int


@dataclasses.dataclass(frozen=True)
class Listener:
  """Says who is told what while an engine samples.

  Attributes:
    report: Called with the number of tokens and of completions that are done.
    on_finished: Called once for each row of this process, while others are
      still sampled: with its number among them, and its tokens.
    watch: Follows all rows.
  """

  report: Report = no_report
  on_finished: OnFinished | None = None
  watch: Watch | None = None


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
