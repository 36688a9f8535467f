"""Turns problems into prompts, completions and verdicts.

Shared by training and evaluation; this is where arrays meet strings.
"""

import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, Protocol

import jax
import numpy as np

from distil_jax.data import padding, shared_prefixes
from distil_jax.data.tokenizer import Tokenizer
from distil_jax.envs import deadline_pool, judge_pool
from distil_jax.generation import random_keys
from distil_jax.generation.engine_config import EngineConfig
from distil_jax.generation.sampling_params import SamplingParams
from distil_jax.generation.usage import OnFinished, Report, Usage, no_report
from distil_jax.models import layers, sharding
from distil_jax.training.rollouts import multi_turn
from distil_jax.training.rollouts.between_turns import Partner
from distil_jax.training.rollouts.experience import Experience
from distil_jax.types import Problem, Rollout, Verdict


class SamplingEngine(Protocol):
  """Describes what a worker needs of `engine.Engine`."""

  @property
  def config(self) -> EngineConfig: ...

  def __call__(
    self,
    params: layers.Params,
    prompt_ids: jax.Array,
    prompt_mask: jax.Array,
    keys: jax.Array,
    sampling: SamplingParams,
    max_lengths: Any = None,
    *,
    report: Report,
    on_finished: OnFinished | None,
  ) -> tuple[Rollout, Usage]: ...


class RolloutWorker:
  """Samples from a policy, and has finished completions judged meanwhile."""

  def __init__(
    self,
    engine: SamplingEngine,
    tokenizer: Tokenizer,
    judges: judge_pool.JudgePool,
    mesh: jax.sharding.Mesh,
    sampling: SamplingParams,
    *,
    group_size: int,
    max_prompt_length: int,
    partner: Partner | None = None,
  ):
    """Prepares the worker; nothing is compiled yet.

    Args:
      engine: Samples on its own mesh, or on `mesh` if it has none.
      tokenizer: Tokenizer of the policy.
      judges: Judge the completions.
      mesh: Mesh of the training batches.
      sampling: How completions are sampled; its `max_tokens` is T.
      group_size: G.
      max_prompt_length: S.
      partner: Replies to the student's turns; None means that it has one.
    """
    self.group_size = group_size
    self._engine = engine
    self._tokenizer = tokenizer
    self._judges = judges
    self._mesh = engine.config.mesh or mesh
    self._sampling = sampling
    self._max_prompt_length = max_prompt_length
    self._partner = partner

  def sample(
    self,
    params: layers.Params,
    prompt_ids: np.ndarray,
    prompt_mask: np.ndarray,
    identities: np.ndarray,
    key: jax.Array,
    *,
    report: Report = no_report,
    on_finished: OnFinished | None = None,
    max_lengths: np.ndarray | None = None,
  ) -> tuple[Rollout, Usage]:
    """Samples G completions of each prompt.

    Args:
      params: Parameters of the policy.
      prompt_ids: This process's prompts, left-padded. Shape `[P, S]`.
      prompt_mask: 1 where the token counts. Shape `[P, S]`.
      identities: From `random_keys.identities`. Shape `[P, 2]`.
      key: Another one for every step.
      report: Called with the number of tokens and of completions that are done,
        of all processes.
      on_finished: Called for each row as it finishes; see `engine.Engine`.
      max_lengths: Most tokens of each prompt's completions, up to T; None means
        T. Shape `[P]`.

    Returns:
      This process's rows as NumPy arrays, and what all processes' rows took.
    """
    sample_keys = random_keys.sample_keys_on_mesh(
      self._mesh, key, identities, self.group_size
    )
    limits = None
    if max_lengths is not None:
      limits = np.repeat(max_lengths[:, None], self.group_size, axis=1)
    return self._sample(
      params,
      prompt_ids,
      prompt_mask,
      sample_keys,
      limits,
      report=report,
      on_finished=on_finished,
    )

  def __call__(
    self,
    params: layers.Params,
    problems: Sequence[Problem],
    key: jax.Array,
    *,
    report: Report = no_report,
    max_lengths: np.ndarray | None = None,
  ) -> Experience:
    """Samples G completions of each problem and judges them.

    Args:
      params: Parameters of the student.
      problems: This process's problems; the same number on every call.
      key: Another one for every step.
      report: As for `sample`.
      max_lengths: As for `sample`; with a tool all episodes have T tokens.
    """
    ids, mask = padding.pad_left(
      [self._tokenizer.encode_messages(p.messages) for p in problems],
      self._max_prompt_length,
      self._tokenizer.pad_id,
    )
    names = random_keys.identities([p.identity for p in problems])
    completions = [""] * (len(problems) * self.group_size)
    pending: dict[int, Future[Verdict]] = {}

    def judge(row: int, text: str, verdict: Verdict | None = None) -> None:
      completions[row] = text
      if verdict is not None:
        # The environment has judged the turn when it replied.
        pending[row] = Future()
        pending[row].set_result(verdict)
        return
      problem = problems[row // self.group_size]
      pending[row] = self._judges.submit(problem, text)

    def judge_ids(row: int, ids: np.ndarray) -> None:
      judge(row, self._tokenizer.decode(ids.tolist()))

    episodes = self._episodes(problems, ids, mask, judge)
    with deadline_pool.cancelled_on_failure(pending):
      if episodes is None:
        sampled, usage = self.sample(
          params,
          ids,
          mask,
          names,
          key,
          report=report,
          on_finished=judge_ids,
          max_lengths=max_lengths,
        )
      else:
        usage = self._play(params, episodes, names, key, report)
        sampled = episodes.rollout()
      # Judges have worked since the first completion finished; only the time
      # after the last one delays the step.
      begun = time.monotonic()
      verdicts = [pending[row].result() for row in range(len(completions))]
    return Experience(
      problems=problems,
      group_size=self.group_size,
      rollout=sampled,
      usage=usage,
      completions=completions,
      verdicts=verdicts,
      judging_seconds=time.monotonic() - begun,
      earlier=episodes and episodes.earlier_turns(),
      earlier_verdicts=episodes and episodes.earlier_verdicts(),
    )

  def _episodes(
    self,
    problems: Sequence[Problem],
    prompt_ids: np.ndarray,
    prompt_mask: np.ndarray,
    on_episode_end: multi_turn.OnEpisodeEnd,
  ) -> multi_turn.Episodes | None:
    """Returns the episodes as they begin, or None if nobody replies."""
    if self._partner is None:
      return None
    return multi_turn.Episodes(
      self._partner,
      self._tokenizer,
      problems,
      prompt_ids,
      prompt_mask,
      group_size=self.group_size,
      max_completion_length=self._sampling.max_tokens,
      on_episode_end=on_episode_end,
    )

  def _play(
    self,
    params: layers.Params,
    episodes: multi_turn.Episodes,
    identities: np.ndarray,
    key: jax.Array,
    report: Report,
  ) -> Usage:
    """Samples all turns; each turn after the first has its own keys."""
    first_keys = random_keys.sample_keys_on_mesh(
      self._mesh, key, identities, self.group_size
    )
    turn_keys = random_keys.TurnKeys(self._mesh, first_keys)

    def sample_first(**callbacks):
      prompts = (episodes.prompt_ids, episodes.prompt_mask)
      return self._sample(params, *prompts, first_keys, None, **callbacks)

    def sample_later(turns: multi_turn.Turns, **callbacks):
      # A later turn has a prompt for each row, so its group size is 1.
      limits = turns.max_lengths[:, None]
      keys = turn_keys(turns.rows, turns.numbers, len(limits))
      prompts = (turns.prompt_ids, turns.prompt_mask)
      return self._sample(params, *prompts, keys, limits, **callbacks)

    num_processes = jax.process_count()
    # The mesh shards what all processes sample together, so each samples a
    # share of what the batch axes divide.
    multiple = sharding.batch_size_multiple(self._mesh, ("data", "fsdp"))
    multiple = max(multiple // num_processes, 1)
    # Each row of a later turn has a prompt of its own in memory, so no more
    # rows than slots are sampled at once.
    at_once = episodes.num_rows
    if self._engine.config.num_slots is not None:
      num_slots = self._engine.config.num_slots // num_processes
      num_slots = num_slots // multiple * multiple
      # A mesh needs that many rows at least, even if there are fewer slots.
      at_once = min(at_once, max(num_slots, multiple))
    with deadline_pool.cancelled_on_failure(episodes.calls):
      return multi_turn.play(
        episodes,
        sample_first,
        sample_later,
        multiple=multiple,
        at_once=at_once,
        report=report,
      )

  def _sample(
    self,
    params: layers.Params,
    prompt_ids: np.ndarray,
    prompt_mask: np.ndarray,
    sample_keys: jax.Array,
    limits: np.ndarray | None,
    *,
    report: Report,
    on_finished: OnFinished | None,
  ) -> tuple[Rollout, Usage]:
    """Samples as many completions of each prompt as it has keys."""
    # Columns that are padding in all rows are cut off; few widths are allowed,
    # because each of them is a program.
    longest = int(prompt_mask.sum(axis=1).max())
    width = shared_prefixes.narrowest_width(longest, prompt_mask.shape[1])
    arrays = (prompt_ids[:, -width:], prompt_mask[:, -width:])
    ids, mask = sharding.put_batch(self._mesh, arrays)
    if limits is not None:
      limits = sharding.put_batch(self._mesh, limits.astype(np.int32))
    sampled, usage = self._engine(
      params,
      ids,
      mask,
      sample_keys,
      self._sampling,
      limits,
      report=report,
      on_finished=on_finished,
    )
    rows = jax.tree.map(sharding.local_rows, sampled)
    # Prompts at the full width again, which the batch of a step has.
    return rows.replace(prompt_ids=prompt_ids, prompt_mask=prompt_mask), usage
