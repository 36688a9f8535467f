"""Defines what the server's worker is asked, and what it answers."""

import dataclasses
from collections.abc import Callable

import numpy as np

from distil_jax.types import StopReason


@dataclasses.dataclass(frozen=True)
class SampleJob:
  """Asks for completions of one prompt.

  Attributes:
    prompt: token ids, at least one.
    count: number of completions.
    max_tokens: most tokens of each.
    temperature, top_k, top_p, min_p, stop: see `SamplingParams`.
    seed: from 0 to 2**32 - 1; the same one gives the same completions. None
      draws one.
  """

  prompt: tuple[int, ...]
  count: int = 1
  max_tokens: int = 16
  temperature: float = 1.0
  top_k: int | None = None
  top_p: float | None = None
  min_p: float | None = None
  stop: tuple[str, ...] = ()
  seed: int | None = None


@dataclasses.dataclass(frozen=True)
class Sampled:
  """Holds one completion.

  Attributes:
    ids: its tokens, the end token included.
    reason: why it ended.
  """

  ids: tuple[int, ...]
  reason: StopReason


@dataclasses.dataclass(frozen=True)
class ScoreJob:
  """Asks for the log-probabilities of a sequence's tokens.

  Attributes:
    ids: of the whole sequence, at least one.
    size: C, most probable tokens to name at each; 0 names none.
  """

  ids: tuple[int, ...]
  size: int = 0


@dataclasses.dataclass(frozen=True)
class Scored:
  """Holds the scores of a sequence of N tokens.

  Row i is about the token at place i + 1, given all before it; nothing is known
  of the first. Nats.

  Attributes:
    log_probs: shape `[N - 1]`.
    ranks: 1 for the most probable token. Shape `[N - 1]`.
    top_ids, top_log_probs: the most probable tokens. Shape `[N - 1, C]`.
  """

  log_probs: np.ndarray
  ranks: np.ndarray
  top_ids: np.ndarray
  top_log_probs: np.ndarray


Job = SampleJob | ScoreJob
# Is told the number of a job, that of a completion, and its new tokens.
OnTokens = Callable[[int, int, tuple[int, ...]], None]


class Closed(RuntimeError):
  """The error of a job that was not done because the worker was closed."""
