"""Problems to prompts, to completions, to verdicts.

Shared by training and evaluation; this is where arrays meet strings.
"""

import time
from collections.abc import Sequence
from concurrent.futures import Future

import jax
import numpy as np

from distil_jax.data import padding, shared_prefixes
from distil_jax.envs import deadline_pool, judge_pool
from distil_jax.generation import (
  engine,
  finished_rows,
  random_keys,
  sampling_params,
)
from distil_jax.generation.policy import Policy
from distil_jax.models import decoder, sharding
from distil_jax.training.rollouts import multi_turn
from distil_jax.training.rollouts.experience import Experience
from distil_jax.training.rollouts.tool_pool import ToolPool
from distil_jax.types import Problem, Rollout, Verdict


class RolloutWorker:
  """Samples from a policy, and has what has ended judged meanwhile."""

  def __init__(
    self,
    policy: Policy,
    judges: judge_pool.JudgePool,
    mesh: jax.sharding.Mesh,
    *,
    group_size: int,
    max_prompt_length: int,
    max_completion_length: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None = None,
    stop: Sequence[str] = (),
    num_slots: int | None = None,
    cache_dtype: str | None = None,
    rollout_mesh: jax.sharding.Mesh | None = None,
    tooling: ToolPool | None = None,
  ):
    """Nothing is compiled yet.

    Args:
      policy: network and tokenizer; its parameters are not kept.
      judges: of the environment.
      mesh: where batches come from.
      group_size: G.
      max_prompt_length: S.
      max_completion_length, num_slots, cache_dtype, stop: see
        `engine.Engine`.
      temperature, top_k, top_p, min_p: see `engine.choice`.
      rollout_mesh: of the same devices, where to sample; None: `mesh`.
      tooling: what the student may use between its turns; None: it has one
        turn.
    """
    self.group_size = group_size
    self._tokenizer = policy.tokenizer
    self._judges = judges
    self._mesh = rollout_mesh or mesh
    self._max_prompt_length = max_prompt_length
    self._max_completion_length = max_completion_length
    self._num_slots = num_slots
    self._tooling = tooling
    self._choice = sampling_params.choice(
      temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p
    )
    self._engine = engine.Engine(
      policy.graphdef,
      max_completion_length=max_completion_length,
      eos_ids=policy.tokenizer.eos_ids,
      pad_id=policy.tokenizer.pad_id,
      num_slots=num_slots,
      cache_dtype=cache_dtype,
      stop=stop,
      decode=policy.tokenizer.decode,
      mesh=rollout_mesh,
    )

  def sample(
    self,
    params: decoder.Params,
    prompt_ids: np.ndarray,
    prompt_mask: np.ndarray,
    identities: np.ndarray,
    key: jax.Array,
    *,
    report: engine.Report = lambda num_tokens, num_done: None,
    ended: finished_rows.OnFinished | None = None,
    max_lengths: np.ndarray | None = None,
  ) -> tuple[Rollout, engine.Usage]:
    """Samples G completions of each prompt.

    Args:
      params: of the policy.
      prompt_ids: this process's, left-padded. Shape `[P, S]`.
      prompt_mask: shape `[P, S]`.
      identities: from `rollout.identities`. Shape `[P, 2]`.
      key: another one for every step.
      report: told how many tokens and how many completions are done, of all
        processes.
      ended: see `engine.Engine`.
      max_lengths: of the completions of each prompt, at most T; None: T. Shape
        `[P]`.

    Returns:
      this process's rows, NumPy, and what all of them took.
    """
    sample_keys = random_keys.of_samples(
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
      ended=ended,
    )

  def __call__(
    self,
    params: decoder.Params,
    problems: Sequence[Problem],
    key: jax.Array,
    *,
    report: engine.Report = lambda num_tokens, num_done: None,
  ) -> Experience:
    """Samples G completions of each problem and judges them.

    Args:
      params: of the student.
      problems: this process's; the same number on every call.
      key: another one for every step.
      report: as for `sample`.
    """
    ids, mask = padding.pad_left(
      [self._tokenizer.encode_messages(p.messages) for p in problems],
      self._max_prompt_length,
      self._tokenizer.pad_id,
    )
    names = random_keys.identities([p.index for p in problems])
    completions = [""] * (len(problems) * self.group_size)
    pending: dict[int, Future[Verdict]] = {}

    def judge(row: int, text: str) -> None:
      completions[row] = text
      problem = problems[row // self.group_size]
      pending[row] = self._judges.submit(problem, text)

    played = self._episodes(problems, ids, mask, judge)
    with deadline_pool.cancelled_on_failure(pending):
      if played is None:
        sampled, usage = self.sample(
          params,
          ids,
          mask,
          names,
          key,
          report=report,
          ended=lambda row, ids: judge(
            row, self._tokenizer.decode(ids.tolist())
          ),
        )
      else:
        usage = self._play(params, played, names, key, report)
        sampled = played.rollout()
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
      earlier=played and played.earlier_turns(),
    )

  def _episodes(
    self,
    problems: Sequence[Problem],
    prompt_ids: np.ndarray,
    prompt_mask: np.ndarray,
    over: multi_turn.Over,
  ) -> multi_turn.Episodes | None:
    """None without a tool."""
    if self._tooling is None:
      return None
    return multi_turn.Episodes(
      self._tooling,
      self._tokenizer,
      problems,
      prompt_ids,
      prompt_mask,
      group_size=self.group_size,
      max_completion_length=self._max_completion_length,
      over=over,
    )

  def _play(
    self,
    params: decoder.Params,
    played: multi_turn.Episodes,
    identities: np.ndarray,
    key: jax.Array,
    report: engine.Report,
  ) -> engine.Usage:
    """Samples all turns; those after the first by keys of their own."""
    first_keys = random_keys.of_samples(
      self._mesh, key, identities, self.group_size
    )
    turn_keys = random_keys.TurnKeys(self._mesh, first_keys)

    def first(**told):
      prompts = (played.prompt_ids, played.prompt_mask)
      return self._sample(params, *prompts, first_keys, None, **told)

    def later(turns: multi_turn.Turns, **told):
      limits = turns.max_lengths[:, None]
      own_keys = turn_keys(turns.rows, turns.numbers, len(limits))
      prompts = (turns.prompt_ids, turns.prompt_mask)
      return self._sample(params, *prompts, own_keys, limits, **told)

    num_processes = jax.process_count()
    multiple = sharding.batch_size_multiple(self._mesh, ("data", "fsdp"))
    multiple = max(multiple // num_processes, 1)
    at_once = played.num_rows
    if self._num_slots is not None:
      num_slots = self._num_slots // num_processes // multiple * multiple
      at_once = min(at_once, max(num_slots, multiple))
    with deadline_pool.cancelled_on_failure(played.calls):
      return multi_turn.play(
        played,
        first,
        later,
        multiple=multiple,
        at_once=at_once,
        report=report,
      )

  def _sample(
    self,
    params: decoder.Params,
    prompt_ids: np.ndarray,
    prompt_mask: np.ndarray,
    sample_keys: jax.Array,
    limits: np.ndarray | None,
    *,
    report: engine.Report,
    ended: finished_rows.OnFinished | None,
  ) -> tuple[Rollout, engine.Usage]:
    """As many completions of each prompt as it has keys."""
    longest = int(prompt_mask.sum(axis=1).max())
    width = shared_prefixes.narrowest(longest, prompt_mask.shape[1])
    arrays = (prompt_ids[:, -width:], prompt_mask[:, -width:])
    ids, mask = sharding.put_batch(self._mesh, arrays)
    if limits is not None:
      limits = sharding.put_batch(self._mesh, limits.astype(np.int32))
    sampled, usage = self._engine(
      params,
      ids,
      mask,
      sample_keys,
      self._choice,
      limits,
      report=report,
      ended=ended,
    )
    rows = jax.tree.map(sharding.local_rows, sampled)
    return rows.replace(prompt_ids=prompt_ids, prompt_mask=prompt_mask), usage
