"""Self-critique: what the policy says of its completions is their feedback."""

import collections
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import jax
import numpy as np

from distil_jax.data import padding
from distil_jax.data.tokenizer import Tokenizer
from distil_jax.distributed import collectives
from distil_jax.envs.base import SelfJudged
from distil_jax.generation import random_keys
from distil_jax.generation.usage import Report, Usage, no_report
from distil_jax.models import layers
from distil_jax.training.rollouts.experience import Experience
from distil_jax.types import Message, Problem, Rollout, StopReason, Verdict

# Folded into a step's key, so that critiques and completions share no noise.
_CRITIQUES = 2**31 + 2
# Names of the counts. All but the first two are numbers of requested critiques,
# or of their tokens.
COUNTS = ("asked", "no_room", "prompt_cut", "unreadable", "cut_off", "tokens")
LEFT_OUT = "\n[… part of the attempt is left out here …]\n"


@dataclasses.dataclass(frozen=True)
class CritiquePrompt:
  """Holds a prompt that fits its limit.

  Attributes:
    ids: The prompt, up to the marker that begins the assistant's turn.
    was_cut: True if part of the completion is left out.
  """

  ids: list[int]
  was_cut: bool


class ExperienceFn(Protocol):
  """Samples and judges; `rollout_worker.RolloutWorker` does."""

  group_size: int

  def __call__(
    self,
    params: layers.Params,
    problems: Sequence[Problem],
    key: jax.Array,
    *,
    report: Report,
    max_lengths: np.ndarray | None = None,
  ) -> Experience: ...


class PromptSampler(Protocol):
  """Samples completions of prompts; `rollout_worker.RolloutWorker` does."""

  def sample(
    self,
    params: layers.Params,
    prompt_ids: np.ndarray,
    prompt_mask: np.ndarray,
    identities: np.ndarray,
    key: jax.Array,
    *,
    max_lengths: np.ndarray | None = None,
  ) -> tuple[Rollout, Usage]: ...


class SelfCritic:
  """Samples and judges as a worker does, then has the policy criticise.

  The parameters that sampled a completion sample one critique of it, if there
  is something to ask. All processes take part, even one that has nothing to
  ask, and the number of rows is always the same: a row without a request ends
  with its first token.
  """

  def __init__(
    self,
    student: ExperienceFn,
    critic: PromptSampler,
    environment: SelfJudged,
    tokenizer: Tokenizer,
    *,
    max_prompt_length: int,
    max_length: int,
  ):
    """Prepares the critic; nothing is compiled yet.

    Args:
      student: Samples and judges.
      critic: Samples critiques; its group size is 1.
      environment: Writes the request and reads the critique.
      tokenizer: Tokenizer of the policy.
      max_prompt_length: Most tokens of a request.
      max_length: Most tokens of a critique.
    """
    self.group_size = student.group_size
    self._student = student
    self._critic = critic
    self._environment = environment
    self._tokenizer = tokenizer
    self._max_prompt_length = max_prompt_length
    self._max_length = max_length

  def __call__(
    self,
    params: layers.Params,
    problems: Sequence[Problem],
    key: jax.Array,
    *,
    report: Report = no_report,
    max_lengths: np.ndarray | None = None,
  ) -> Experience:
    """Returns an experience whose verdicts are made by the critiques.

    The completions are those that the student alone would sample. A critique
    depends on the key, its own prompt, its problem and its number within the
    group: not on the other critiques.

    Args:
      params, problems, key, report, max_lengths: As for `RolloutWorker`.
    """
    experience = self._student(
      params, problems, key, report=report, max_lengths=max_lengths
    )
    requests, counts = self._requests(experience)
    verdicts = list(experience.verdicts)
    # Sampling is a program of all devices: if one process asks, all take part.
    if collectives.global_max(len(requests)):
      sampled = self._sample(params, experience, requests, key)
      for row in requests:
        ids = sampled.completion_ids[row][sampled.completion_mask[row] == 1]
        text = self._tokenizer.decode(ids.tolist())
        verdict = self._environment.with_critique(verdicts[row], text)
        is_cut_off = sampled.stop_reasons[row] == StopReason.LENGTH
        counts["tokens"] += len(ids)
        counts["cut_off"] += int(is_cut_off)
        counts["unreadable"] += not verdict.details.get("has_critique", True)
        verdicts[row] = verdict
    return dataclasses.replace(
      experience, verdicts=verdicts, critiques=dict(counts)
    )

  def _requests(
    self, experience: Experience
  ) -> tuple[dict[int, list[int]], collections.Counter[str]]:
    """Returns the token ids of each request, by row, and counts."""
    requests: dict[int, list[int]] = {}
    counts: collections.Counter[str] = collections.Counter()
    # All counts are there at every step, so that the log has no gaps.
    counts.update(dict.fromkeys(COUNTS, 0))
    for row, verdict in enumerate(experience.verdicts):
      problem = experience.problems[row // self.group_size]
      prompt = self._prompt(problem, experience.completions[row], verdict)
      if prompt is None:
        continue
      if not prompt.ids:
        counts["no_room"] += 1
        continue
      requests[row] = prompt.ids
      counts["asked"] += 1
      counts["prompt_cut"] += prompt.was_cut
    return requests, counts

  def _prompt(
    self, problem: Problem, completion: str, verdict: Verdict
  ) -> CritiquePrompt | None:
    """Returns the request, or None if there is nothing to ask."""
    # Text that the student has written must not become a special token.
    escape = self._tokenizer.escape_special_tokens
    verdict = dataclasses.replace(verdict, feedback=escape(verdict.feedback))

    def build(text: str) -> Sequence[Message] | None:
      return self._environment.critique_prompt(problem, text, verdict)

    return fit_critique_prompt(
      build,
      escape(completion),
      encode=self._tokenizer.encode_messages,
      encode_text=self._tokenizer.encode,
      decode=self._tokenizer.decode,
      limit=self._max_prompt_length,
    )

  def _sample(
    self,
    params: layers.Params,
    experience: Experience,
    requests: Mapping[int, list[int]],
    key: jax.Array,
  ) -> Rollout:
    """Samples a critique for each row; without a request it is meaningless."""
    pad_id, num_rows = self._tokenizer.pad_id, len(experience.completions)
    ids, mask = padding.pad_left(
      [requests.get(row, [pad_id]) for row in range(num_rows)],
      self._max_prompt_length,
      pad_id,
    )
    # Each sample of a group gets an identity of its own, so that equal
    # completions get different critiques.
    names = random_keys.identities(
      [p.identity for p in experience.problems for _ in range(self.group_size)]
    )
    is_requested = np.isin(np.arange(num_rows), list(requests))
    sampled, _ = self._critic.sample(
      params,
      ids,
      mask,
      names,
      jax.random.fold_in(key, _CRITIQUES),
      max_lengths=np.where(is_requested, self._max_length, 1),
    )
    return sampled


def fit_critique_prompt(
  build: Callable[[str], Sequence[Message] | None],
  completion: str,
  *,
  encode: Callable[[Sequence[Message]], list[int]],
  encode_text: Callable[[str], list[int]],
  decode: Callable[[Sequence[int]], str],
  limit: int,
) -> CritiquePrompt | None:
  """Returns the request for a critique, cut if it is too long.

  The middle of the completion is replaced by a mark, between two tokens; all
  else stays whole.

  Args:
    build: Makes the messages from a completion, or what is left of it.
    completion: Text to be criticised.
    encode: Turns messages into the ids of the whole prompt.
    encode_text: Turns text into ids.
    decode: Turns ids into text.
    limit: Most tokens of the prompt.

  Returns:
    None if `build` asks nothing; a prompt without ids if it does not fit even
    without the completion.
  """
  messages = build(completion)
  if messages is None:
    return None
  ids = encode(messages)
  if len(ids) <= limit:
    return CritiquePrompt(ids, was_cut=False)
  tokens = encode_text(completion)
  # Binary search, in which `low` tokens fit and `high` do not.
  best, low, high = [], -1, min(len(tokens), limit) + 1
  while low + 1 < high:
    middle = (low + high) // 2
    messages = build(_without_middle(tokens, middle, decode))
    ids = encode(messages or ())
    if len(ids) > limit:
      high = middle
    else:
      low, best = middle, ids
  return CritiquePrompt(best, was_cut=True)


def _without_middle(
  tokens: Sequence[int], num_kept: int, decode: Callable[[Sequence[int]], str]
) -> str:
  """Returns the text of the first and the last tokens, half of each."""
  num_last = num_kept // 2
  first = tokens[: num_kept - num_last]
  last = tokens[len(tokens) - num_last :]
  # A cut inside a character leaves bytes that decode to U+FFFD.
  return (
    decode(first).rstrip("\ufffd") + LEFT_OUT + decode(last).lstrip("\ufffd")
  )
