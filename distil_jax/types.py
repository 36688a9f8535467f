"""Defines the records that travel through a run, from problem to batch.

Letters in shapes, everywhere in this package:

  P problems            G samples per problem      B sequences, B = P * G
  S prompt length       T completion length        V vocabulary
  C teacher candidates for a token
  inside `models/` also
  L layers  D width  F feed-forward  N heads  K key-value heads  H head size

A mask is 1 where the token counts and 0 at padding. Prompts are padded on the
left, completions on the right, so that column S - 1 of a prompt is always its
last token and column 0 of a completion always its first.

A completion may be an episode: turns of the student, and what tools or the
environment wrote between them. All of it is in `completion_mask`, because later
tokens attend to it; only the student's own tokens are learned from.
"""

import dataclasses
import enum
import zlib
from collections.abc import Mapping
from typing import Any

from flax import struct

Array = Any  # jax's on the devices, or NumPy's on the host
Message = Mapping[str, str]  # {"role": ..., "content": ...}


@dataclasses.dataclass(frozen=True)
class Problem:
  """One problem, as its environment reads it from a data row.

  Attributes:
    index: identity within its data set; it seeds the problem's samples.
    messages: the student's prompt; the system message, if any, comes first.
    answer: what the environment compares with, in the environment's form.
    solution: a worked reference solution, if the data has one.
    details: anything else that the environment needs to judge.
    source: name of the data set in a mixture; empty without a mixture.
    teacher: the name of its teacher; None if there are not several.
  """

  index: int
  messages: tuple[Message, ...]
  answer: str
  solution: str | None = None
  details: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  source: str = ""
  teacher: str | None = None

  @property
  def identity(self) -> int:
    """The number that seeds the problem's samples, below 2**32.

    Problems of two data sets may share an index, but hardly ever this number.
    """
    return (self.index + zlib.crc32(self.source.encode())) % 2**32


@dataclasses.dataclass(frozen=True)
class Demonstration:
  """One supervised example.

  Attributes:
    index: identity within its data set.
    messages: the prompt.
    solution: what the model should write; the only part that is trained on.
    prefix: given beginning of the assistant's turn; not trained on.
    source: name of the data set in a mixture; empty without a mixture.
  """

  index: int
  messages: tuple[Message, ...]
  solution: str
  prefix: str = ""
  source: str = ""


class Status(enum.StrEnum):
  """The outcome of a completion, as its environment judges it.

  `ERROR` is the completion's own, such as a program that raises. `CRASHED` is
  the judge's: nothing is known of the completion.
  """

  CORRECT = "correct"
  WRONG = "wrong"
  UNPARSABLE = "unparsable"
  TIMEOUT = "timeout"
  ERROR = "error"
  CRASHED = "crashed"


@dataclasses.dataclass(frozen=True)
class Verdict:
  """An environment's judgement of one completion.

  Attributes:
    reward: in [0, 1].
    feedback: what went wrong, in words; empty if there is nothing to say.
    status: keeps wrong, unparsable and timed-out apart up to the report.
    details: numbers and strings for the log (parsed answer, passed tests...).
  """

  reward: float
  feedback: str
  status: Status
  details: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Reply:
  """An environment's answer to one turn of the student.

  Attributes:
    message: what the student is shown before its next turn; None ends the
      conversation.
    verdict: judgement of the turn that it answers. None means that there is
      none; if the conversation ends here, `judge` gives it.
  """

  message: str | None = None
  verdict: Verdict | None = None


class StopReason(enum.IntEnum):
  """The reason why a completion ended."""

  LENGTH = 0  # the length limit; the last token is not an end token
  EOS = 1
  STOP_STRING = 2  # the text contains one of the stop strings


@struct.dataclass
class Rollout:
  """Completions sampled from the student, the G of a problem in a row.

  Attributes:
    prompt_ids: left-padded. Shape `[P, S]`, int32.
    prompt_mask: shape `[P, S]`, int32.
    completion_ids: right-padded, the end token included. Shape `[B, T]`, int32.
    completion_mask: shape `[B, T]`, int32.
    log_probs: log π_θ(token) under the policy's own softmax, before
      temperature and truncation, nats; 0 at padding, and at what a tool wrote.
      Shape `[B, T]`, float32.
    behavior_log_probs: the same after temperature and truncation, under the
      distribution that was sampled from. Shape `[B, T]`, float32.
    stop_reasons: values of `StopReason`, of the last turn. Shape `[B]`, int32.
    student_mask: 1 at the tokens that the student chose; None means all of the
      completion's. Shape `[B, T]`, int32.
  """

  prompt_ids: Array
  prompt_mask: Array
  completion_ids: Array
  completion_mask: Array
  log_probs: Array
  behavior_log_probs: Array
  stop_reasons: Array
  student_mask: Array = None

  @property
  def student_tokens(self) -> Array:
    """Returns 1 at the student's own tokens. Shape `[B, T]`."""
    return _or_all(self.student_mask, self.completion_mask)


@struct.dataclass
class TrainBatch:
  """The arrays that one training step learns from, or a slice of them.

  Supervised batches have no teacher, no rewards and no sampler: their
  `teacher_prompt_*` are `[B, 0]`, `rewards` and `old_log_probs` 0.

  The fields from `loss_weights` on depend on all sequences of an update. The
  training step fills them in before it cuts the batch into slices.

  Attributes:
    prompt_ids, prompt_mask: the student's prompt, left-padded. `[B, S]`.
    teacher_prompt_ids, teacher_prompt_mask: the teacher's, left-padded; its
      length differs from the student's. `[B, S']`.
    completion_ids, completion_mask: the tokens that both score. `[B, T]`.
    sample_mask: 1 where the sequence has a teacher signal. `[B]`.
    rewards: from the environment, in [0, 1]. `[B]`, float32.
    old_log_probs: log π of the completion's tokens when they were sampled,
      nats; 0 at padding. `[B, T]`, float32.
    teacher_candidate_ids: C tokens that the teacher gives for each of the
      student's, from an outside teacher or from `teachers.ask_teacher`; None
      if there are no such lists. `[B, T, C]`.
    teacher_candidate_log_probs: their log-probabilities, nats; −log C for each
      of C samples. `[B, T, C]`, float32.
    teacher_log_probs: the teacher's log-probability of the completion's own
      tokens, nats, if that comes with its lists; else None. `[B, T]`, float32.
    teacher_weights: of each token's comparison with its list, if only some
      tokens' lists are known: 1 / the probability that a token's is, and 0
      where it is not. None means 1. `[B, T]`, float32.
    teacher_index: which of several teachers the sequence has; None if there is
      one. `[B]`.
    teacher_prefix_ids, teacher_prefix_mask: a common beginning of the teacher's
      prompts, left-padded, each of n sequences in a row; None means that
      nothing is split off. `[B / n, S0]`.
    student_mask: 1 at the tokens that the student chose, which alone are
      learned from; None means all of the completion's. `[B, T]`.
    turn_numbers: the turn of each token if each turn has a teacher's prompt of
      its own, the first is 0; -1 where the turn's teacher is told nothing. None
      means that one prompt serves all turns. `[B, T]`, int32.
    later_prompt_ids, later_prompt_mask: the teacher's prompts of turns 1 to
      K - 1, left-padded; those of turn 0 are `teacher_prompt_*`. None likewise.
      `[B, K - 1, S']`.
    taught_mask: 1 at the tokens that a teacher may judge, 0 at those that are
      left to rewards; None means all of the student's. `[B, T]`.
    sample_weights: factor of each sequence's loss; None means 1. `[B]`,
      float32.
    loss_weights: weight of each token's loss in the average. `[B, T]`.
    advantages: of each sequence; None if rewards do not count. `[B]`.
    failure_weights: of each sequence's feedback; None means 1. `[B]`.
    score_weights: weights of log π_θ in the surrogate; None if the loss finds
      them slice by slice, or has no credit. `[B, T]`.
    future_costs: cost still to come after each token, nats; None likewise.
      `[B, T]`.
  """

  prompt_ids: Array
  prompt_mask: Array
  teacher_prompt_ids: Array
  teacher_prompt_mask: Array
  completion_ids: Array
  completion_mask: Array
  sample_mask: Array
  rewards: Array
  old_log_probs: Array
  teacher_candidate_ids: Array = None
  teacher_candidate_log_probs: Array = None
  teacher_log_probs: Array = None
  teacher_weights: Array = None
  teacher_index: Array = None
  teacher_prefix_ids: Array = None
  teacher_prefix_mask: Array = None
  student_mask: Array = None
  turn_numbers: Array = None
  later_prompt_ids: Array = None
  later_prompt_mask: Array = None
  taught_mask: Array = None
  sample_weights: Array = None
  loss_weights: Array = None
  advantages: Array = None
  failure_weights: Array = None
  score_weights: Array = None
  future_costs: Array = None

  @property
  def student_tokens(self) -> Array:
    """Returns 1 at the student's own tokens. Shape `[B, T]`."""
    return _or_all(self.student_mask, self.completion_mask)


@dataclasses.dataclass(frozen=True)
class BatchStats:
  """Says how a batch came about; known on the host alone.

  Attributes:
    teacher_prompts: the teacher's prompts as text, None for samples without
      signal. Those of several turns are one text. Length B; empty for
      demonstrations.
    num_truncated: teacher prompts whose solution or feedback was truncated.
    num_without_room: samples that lost their signal because nothing fitted.
    num_feedback, num_sibling, num_reference: teacher prompts that hold the
      feedback, another sample's solution, the problem's own.
    teacher_prompt_ids, teacher_prompt_mask: the teacher's whole prompts of
      first turns, even if the batch has their prefixes split off; None without
      a teacher. Shape `[B, S']`.
    server_counts: samples that a teacher behind a server left unanswered, and
      requests and retries; None if there is no such teacher.
  """

  teacher_prompts: list[str | None]
  num_truncated: int = 0
  num_without_room: int = 0
  num_feedback: int = 0
  num_sibling: int = 0
  num_reference: int = 0
  teacher_prompt_ids: Array = None
  teacher_prompt_mask: Array = None
  server_counts: Mapping[str, float] | None = None


def _or_all(student_mask: Array, completion_mask: Array) -> Array:
  return completion_mask if student_mask is None else student_mask
