"""Problems to prompts, to completions, to verdicts.

Shared by training and evaluation; this is where arrays meet strings.
"""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future

import jax
import jax.numpy as jnp
import numpy as np

from distil_jax import (
  endings,
  engine,
  judging,
  prefixes,
  prompts,
  rollout,
  threads,
)
from distil_jax.models import qwen3, sharding
from distil_jax.policy import Policy
from distil_jax.records import Problem, Rollout, Status, StopReason, Verdict


@dataclasses.dataclass(frozen=True)
class Experience:
  """What came of a batch of problems, on the host.

  Attributes:
    problems: P of them.
    group_size: G; the members of a group stand in a row.
    rollout: this process's rows, NumPy.
    completions: as text. Length B.
    verdicts: length B.
    usage: what the rollout took, of all processes; None: not known.
    judging_seconds: from the end of the rollout to the last verdict.
    critiques: how many of what kind, see `critiques.COUNTS`; None: none could
      be asked for.
  """

  problems: Sequence[Problem]
  group_size: int
  rollout: Rollout
  completions: list[str]
  verdicts: list[Verdict]
  usage: engine.Usage | None = None
  judging_seconds: float = 0.0
  critiques: Mapping[str, int] | None = None

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
    """Tokens of each completion. Shape `[B]`."""
    return np.asarray(self.rollout.completion_mask).sum(axis=1)

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
    """
    self.group_size = group_size
    self._tokenizer = policy.tokenizer
    self._judges = judges
    self._mesh = rollout_mesh or mesh
    self._max_prompt_length = max_prompt_length
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
    longest = int(prompt_mask.sum(axis=1).max())
    width = prefixes.narrowest(longest, prompt_mask.shape[1])
    arrays = (prompt_ids[:, -width:], prompt_mask[:, -width:], identities)
    ids, mask, names = sharding.put_batch(self._mesh, arrays)
    # Anew: its type names the mesh under which it was made.
    data = np.asarray(jax.random.key_data(key))
    with jax.set_mesh(self._mesh):
      impl = jax.random.key_impl(key)
      key = jax.random.wrap_key_data(jnp.asarray(data), impl=impl)
      keys = _sample_keys(key, names, self.group_size)
    limits = None
    if max_lengths is not None:
      of_members = np.repeat(max_lengths[:, None], self.group_size, axis=1)
      limits = sharding.put_batch(self._mesh, of_members.astype(np.int32))
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

    def judge(row: int, ids: np.ndarray) -> None:
      completions[row] = self._tokenizer.decode(ids.tolist())
      problem = problems[row // self.group_size]
      pending[row] = self._judges.submit(problem, completions[row])

    with threads.cancelled_on_failure(pending):
      sampled, usage = self.sample(
        params, ids, mask, names, key, report=report, ended=judge
      )
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
    )


_sample_keys = jax.jit(rollout.sample_keys, static_argnums=2)
