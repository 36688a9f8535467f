"""Problems to prompts, to completions, to verdicts.

Shared by training and evaluation; this is where arrays meet strings.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import numpy as np

from distil_jax import prompts, rollout
from distil_jax.envs import Environment
from distil_jax.models import qwen3, sharding
from distil_jax.policy import Policy
from distil_jax.records import Problem, Rollout, StopReason, Verdict


@dataclasses.dataclass(frozen=True)
class Experience:
  """What came of a batch of problems, on the host.

  Attributes:
    problems: P of them.
    group_size: G; the members of a group stand in a row.
    rollout: this process's rows, NumPy.
    completions: as text. Length B.
    verdicts: length B.
  """

  problems: Sequence[Problem]
  group_size: int
  rollout: Rollout
  completions: list[str]
  verdicts: list[Verdict]

  @property
  def rewards(self) -> np.ndarray:
    """Shape `[P, G]`."""
    rewards = [verdict.reward for verdict in self.verdicts]
    return np.asarray(rewards, np.float64).reshape(-1, self.group_size)

  @property
  def lengths(self) -> np.ndarray:
    """Tokens of each completion. Shape `[B]`."""
    return np.asarray(self.rollout.completion_mask).sum(axis=1)

  @property
  def is_cut_off(self) -> np.ndarray:
    """Whether the limit ended the completion. Shape `[B]`."""
    return np.asarray(self.rollout.stop_reasons) == StopReason.LENGTH


class Actor:
  """Samples from a policy and has the environment judge."""

  def __init__(
    self,
    policy: Policy,
    environment: Environment,
    mesh: jax.sharding.Mesh,
    *,
    group_size: int,
    max_prompt_length: int,
    max_completion_length: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
  ):
    self.group_size = group_size
    self._tokenizer = policy.tokenizer
    self._texts = policy.texts
    self._environment = environment
    self._mesh = mesh
    self._max_prompt_length = max_prompt_length
    generate = functools.partial(
      rollout.generate,
      graphdef=policy.graphdef,
      max_completion_length=max_completion_length,
      eos_ids=policy.tokenizer.eos_ids,
      pad_id=policy.tokenizer.pad_id,
      temperature=temperature,
      top_k=top_k,
      top_p=top_p,
    )

    def sample(params, prompt_ids, prompt_mask, key, identities):
      keys = rollout.sample_keys(key, identities, group_size)
      return generate(params, prompt_ids, prompt_mask, keys)

    self.sample = jax.jit(
      sample, out_shardings=sharding.sharding(mesh, "batch")
    )

  def __call__(
    self, params: qwen3.Params, problems: Sequence[Problem], key: jax.Array
  ) -> Experience:
    """Samples G completions of each problem and judges them.

    Args:
      params: of the student.
      problems: this process's; the same number on every call.
      key: another one for every step.
    """
    ids, mask = prompts.pad_left(
      [self._tokenizer.encode_messages(p.messages) for p in problems],
      self._max_prompt_length,
      self._tokenizer.pad_id,
    )
    identities = rollout.identities([p.index for p in problems])
    arrays = sharding.put_batch(self._mesh, (ids, mask, identities))
    sampled = self.sample(params, arrays[0], arrays[1], key, arrays[2])
    host = jax.tree.map(sharding.local_rows, sampled)
    completions = self._texts(host.completion_ids, host.completion_mask)
    verdicts = [
      self._environment.judge(problems[i // self.group_size], completion)
      for i, completion in enumerate(completions)
    ]
    return Experience(
      problems=problems,
      group_size=self.group_size,
      rollout=host,
      completions=completions,
      verdicts=verdicts,
    )
