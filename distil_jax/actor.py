"""Problems to prompts, to completions, to verdicts.

Shared by training and evaluation; this is where arrays meet strings.
"""

import dataclasses
import functools
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distil_jax import (
  endings,
  engine,
  episodes,
  judging,
  prefixes,
  prompts,
  rollout,
  threads,
)
from distil_jax.models import qwen3, sharding
from distil_jax.policy import Policy
from distil_jax.records import (
  Message,
  Problem,
  Rollout,
  Status,
  StopReason,
  Verdict,
)
from distil_jax.tooling import Tooling

# Folded into a sample's key with the number of a turn that is not the first:
# above all numbers of tokens, which are folded into the same key.
_TURN = 2**31


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
    num_failed_calls: outputs that the tool could not give.
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
  num_failed_calls: int = 0

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


class Actor:
  """Samples from a policy, and has what has ended judged meanwhile."""

  def __init__(
    self,
    policy: Policy,
    judges: judging.Judges,
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
    tooling: Tooling | None = None,
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
    self._tooling = tooling
    self._choice = engine.choice(
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
    params: qwen3.Params,
    prompt_ids: np.ndarray,
    prompt_mask: np.ndarray,
    identities: np.ndarray,
    key: jax.Array,
    *,
    report: engine.Report = lambda num_tokens, num_done: None,
    ended: endings.Ended | None = None,
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
    keys = self._keys(key, identities)
    limits = None
    if max_lengths is not None:
      limits = np.repeat(max_lengths[:, None], self.group_size, axis=1)
    return self._sample(
      params,
      prompt_ids,
      prompt_mask,
      keys,
      limits,
      report=report,
      ended=ended,
    )

  def __call__(
    self,
    params: qwen3.Params,
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
    ids, mask = prompts.pad_left(
      [self._tokenizer.encode_messages(p.messages) for p in problems],
      self._max_prompt_length,
      self._tokenizer.pad_id,
    )
    names = rollout.identities([p.index for p in problems])
    completions = [""] * (len(problems) * self.group_size)
    pending: dict[int, Future[Verdict]] = {}

    def judge(row: int, text: str) -> None:
      completions[row] = text
      problem = problems[row // self.group_size]
      pending[row] = self._judges.submit(problem, text)

    played = self._episodes(problems, ids, mask, judge)
    with threads.cancelled_on_failure(pending):
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
      num_failed_calls=played.num_failed_calls if played else 0,
    )

  def _episodes(
    self,
    problems: Sequence[Problem],
    prompt_ids: np.ndarray,
    prompt_mask: np.ndarray,
    over: episodes.Over,
  ) -> episodes.Episodes | None:
    """None without a tool."""
    if self._tooling is None:
      return None
    return episodes.Episodes(
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
    params: qwen3.Params,
    played: episodes.Episodes,
    identities: np.ndarray,
    key: jax.Array,
    report: engine.Report,
  ) -> engine.Usage:
    """Samples all turns; those after the first by keys of their own."""
    keys = self._keys(key, identities)
    with jax.set_mesh(self._mesh):
      data = sharding.local_rows(_key_data(keys))
    impl = jax.random.key_impl(keys)

    def first(**told):
      prompts = (played.prompt_ids, played.prompt_mask)
      return self._sample(params, *prompts, keys, None, **told)

    def later(turn: episodes.Turn, **told):
      size = len(turn.max_lengths)
      of_rows = np.zeros((size, 1, data.shape[-1]), data.dtype)
      of_rows[: len(turn.rows), 0] = data.reshape(-1, data.shape[-1])[
        list(turn.rows)
      ]
      placed = sharding.put_batch(self._mesh, of_rows)
      with jax.set_mesh(self._mesh):
        keys = _turn_keys(placed, np.uint32(_TURN + turn.number), impl=impl)
      prompts = (turn.prompt_ids, turn.prompt_mask)
      limits = turn.max_lengths[:, None]
      return self._sample(params, *prompts, keys, limits, **told)

    multiple = sharding.batch_size_multiple(self._mesh, ("data", "fsdp"))
    with threads.cancelled_on_failure(played.calls):
      return episodes.play(
        played,
        first,
        later,
        multiple=max(multiple // jax.process_count(), 1),
        report=report,
      )

  def _keys(self, key: jax.Array, identities: np.ndarray) -> jax.Array:
    """Of each sample. Shape `[P, G]`."""
    names = sharding.put_batch(self._mesh, identities)
    # Anew: its type names the mesh under which it was made.
    data = np.asarray(jax.random.key_data(key))
    with jax.set_mesh(self._mesh):
      impl = jax.random.key_impl(key)
      key = jax.random.wrap_key_data(jnp.asarray(data), impl=impl)
      return _sample_keys(key, names, self.group_size)

  def _sample(
    self,
    params: qwen3.Params,
    prompt_ids: np.ndarray,
    prompt_mask: np.ndarray,
    keys: jax.Array,
    limits: np.ndarray | None,
    *,
    report: engine.Report,
    ended: endings.Ended | None,
  ) -> tuple[Rollout, engine.Usage]:
    """As many completions of each prompt as it has keys."""
    longest = int(prompt_mask.sum(axis=1).max())
    width = prefixes.narrowest(longest, prompt_mask.shape[1])
    arrays = (prompt_ids[:, -width:], prompt_mask[:, -width:])
    ids, mask = sharding.put_batch(self._mesh, arrays)
    if limits is not None:
      limits = sharding.put_batch(self._mesh, limits.astype(np.int32))
    sampled, usage = self._engine(
      params,
      ids,
      mask,
      keys,
      self._choice,
      limits,
      report=report,
      ended=ended,
    )
    rows = jax.tree.map(sharding.local_rows, sampled)
    return rows.replace(prompt_ids=prompt_ids, prompt_mask=prompt_mask), usage


@jax.jit
def _key_data(keys: jax.Array) -> jax.Array:
  """Where the rows are. Shape `[P, G, n]`."""
  data = jax.random.key_data(keys)
  return sharding.constrain(data, "batch", None, None)


@functools.partial(jax.jit, static_argnames="impl")
def _turn_keys(data: jax.Array, number: Any, *, impl: Any) -> jax.Array:
  """Of rows, whose keys' data is given, in a turn that is not the first."""
  keys = jax.random.wrap_key_data(data, impl=impl)
  return jax.vmap(jax.vmap(lambda key: jax.random.fold_in(key, number)))(keys)


_sample_keys = jax.jit(rollout.sample_keys, static_argnums=2)
