"""Makes the records of one completion that no run has sampled."""

from collections.abc import Sequence

import numpy as np

from distil_jax.data import padding
from distil_jax.data.tokenizer import Tokenizer
from distil_jax.training.rollouts.experience import Experience
from distil_jax.types import Problem, Rollout, StopReason, Verdict


def completion_ids(tokenizer: Tokenizer, text: str) -> list[int]:
  """Returns the tokens of a whole completion, the end token included."""
  ids = list(tokenizer.encode(text))
  return (
    ids if ids and ids[-1] in tokenizer.eos_ids else [*ids, tokenizer.end_id]
  )


def experience_of(
  tokenizer: Tokenizer,
  problem: Problem,
  ids: Sequence[int],
  verdict: Verdict,
  *,
  max_prompt_length: int,
  max_completion_length: int,
) -> Experience:
  """Returns one judged completion as an experience.

  Args:
    tokenizer: of the policy.
    problem: that the completion answers.
    ids: its tokens.
    verdict: on it.
    max_prompt_length, max_completion_length: lengths of the arrays, tokens.
  """
  prompt_ids, prompt_mask = padding.pad_left(
    [tokenizer.encode_messages(problem.messages)],
    max_prompt_length,
    tokenizer.pad_id,
  )
  length = max_completion_length
  padded, mask = padding.pad_right([ids], length, tokenizer.pad_id)
  # Nobody has sampled it, so there are no log-probabilities of a sampler.
  unknown = np.zeros((1, length), np.float32)
  is_ended = ids[-1] in tokenizer.eos_ids
  return Experience(
    problems=[problem],
    group_size=1,
    rollout=Rollout(
      prompt_ids=prompt_ids,
      prompt_mask=prompt_mask,
      completion_ids=padded,
      completion_mask=mask,
      log_probs=unknown,
      behavior_log_probs=unknown,
      stop_reasons=np.asarray(
        [StopReason.EOS if is_ended else StopReason.LENGTH], np.int32
      ),
    ),
    completions=[tokenizer.decode(ids)],
    verdicts=[verdict],
  )
