"""A judged rollout."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from distil_jax.generation.usage import Usage
from distil_jax.types import (
  Message,
  Problem,
  Rollout,
  Status,
  StopReason,
  Verdict,
)


@dataclasses.dataclass(frozen=True)
class Experience:
  """Holds the judged completions of a batch of problems, on the host.

  Attributes:
    problems: P problems.
    group_size: G; the completions of a problem stand next to each other.
    rollout: This process's rows, as NumPy arrays.
    completions: Texts; of an episode the last turn. Length B.
    verdicts: Length B.
    usage: What the rollout took, of all processes; None means not known.
    judging_seconds: Time from the end of the rollout to the last verdict.
    critiques: Number of critiques of each kind, see `self_critique.COUNTS`;
      None means that none could be requested.
    earlier: What was said before the last turn of each episode, with the roles
      `student`, and `tool` or `environment`; None means that nobody replies to
      turns. Length B.
    earlier_verdicts: What the environment says of the turns before the last
      one, None for a turn that it does not judge; None means that it does not
      reply to turns. Length B.
    refills: Counts of groups that were replaced, of all processes, see
      `refill.Refill`; None means that none are looked for.
  """

  problems: Sequence[Problem]
  group_size: int
  rollout: Rollout
  completions: list[str]
  verdicts: list[Verdict]
  usage: Usage | None = None
  judging_seconds: float = 0.0
  critiques: Mapping[str, int] | None = None
  earlier: Sequence[Sequence[Message]] | None = None
  earlier_verdicts: Sequence[Sequence[Verdict | None]] | None = None
  refills: Mapping[str, int] | None = None

  @property
  def rewards(self) -> np.ndarray:
    """Reward of each completion. Shape `[P, G]`."""
    rewards = [verdict.reward for verdict in self.verdicts]
    return np.asarray(rewards, np.float64).reshape(-1, self.group_size)

  @property
  def is_judged(self) -> np.ndarray:
    """True if a judge has judged the completion. Shape `[B]`."""
    statuses = [verdict.status for verdict in self.verdicts]
    # A verdict of a judge that crashed is none, whatever reward stands in it.
    return np.asarray([status != Status.CRASHED for status in statuses], bool)

  @property
  def lengths(self) -> np.ndarray:
    """Tokens of each completion that the student chose. Shape `[B]`."""
    return np.asarray(self.rollout.student_tokens).sum(axis=1)

  @property
  def is_cut_off(self) -> np.ndarray:
    """True if the length limit ended the completion. Shape `[B]`."""
    return np.asarray(self.rollout.stop_reasons) == StopReason.LENGTH

  def turns_of(self, i: int) -> list[tuple[str, Verdict | None]]:
    """Returns the student's turns of an episode, with the verdicts on them."""
    last = (self.completions[i], self.verdicts[i])
    if self.earlier is None or self.earlier_verdicts is None:
      return [last]
    texts = [message["content"] for message in self.earlier[i][::2]]
    return [*zip(texts, self.earlier_verdicts[i], strict=True), last]

  @property
  def turn_numbers(self) -> np.ndarray:
    """Turn of each of the student's tokens, from 0. Shape `[B, T]`."""
    own = np.asarray(self.rollout.student_tokens)
    # At least the marker of the assistant's turn stands between two turns.
    begins = np.diff(own, axis=1, prepend=0) == 1
    return np.maximum(begins.cumsum(axis=1) - 1, 0).astype(np.int32)

  @property
  def episode_values(self) -> dict[str, np.ndarray]:
    """Numbers of each episode for the log; empty if nobody replies to turns.

    The student's turns; the tokens between them, with what the chat template
    puts around messages. Of a conversation with the environment also the reward
    of the first turn, 0 if that was not judged; of one with a tool its outputs,
    and its calls that failed. Shape `[B]` each.
    """
    if self.earlier is None:
      return {}
    if self.earlier_verdicts is not None:
      firsts = [self.turns_of(i)[0][1] for i in range(len(self.completions))]
      values = {
        "turns": [1 + len(found) for found in self.earlier_verdicts],
        "tokens": self.rollout.completion_mask.sum(axis=1) - self.lengths,
        "first_reward": [0.0 if v is None else v.reward for v in firsts],
      }
      return {f"conversation/{k}": np.asarray(x) for k, x in values.items()}
    # Messages alternate between student and tool.
    outputs = [
      [m["content"] for m in earlier[1::2]] for earlier in self.earlier
    ]
    counts = {
      "turns": [1 + len(texts) for texts in outputs],
      "calls": [len(texts) for texts in outputs],
      "failed": [texts.count(FAILED) for texts in outputs],
      "tokens": self.rollout.completion_mask.sum(axis=1) - self.lengths,
    }
    return {f"tools/{name}": np.asarray(x) for name, x in counts.items()}


def replace_groups(
  experience: Experience,
  groups: Sequence[int],
  later: Experience,
  *,
  num_stand_ins: int,
) -> Experience:
  """Returns an experience in which some groups are those of a later one.

  Args:
    experience: All groups.
    groups: Numbers of the groups to replace, n of them.
    later: Its first n groups take their places.
    num_stand_ins: Rows of all processes that were sampled besides these, each
      of one token.
  """
  group_size = experience.group_size
  # For each group and each row of the result its place in the two, one after
  # the other.
  places = np.arange(len(experience.problems))
  places[list(groups)] = len(places) + np.arange(len(groups))
  rows = (places[:, None] * group_size + np.arange(group_size)).reshape(-1)

  def choose(which: np.ndarray, one: Any, other: Any) -> Any:
    if one is None or other is None:
      return None
    if isinstance(one, np.ndarray):
      return np.concatenate([one, other])[which]
    both = [*one, *other]
    return [both[i] for i in which]

  fields = dataclasses.fields(experience.rollout)
  rollout = {
    field.name: choose(
      places if field.name.startswith("prompt_") else rows,
      getattr(experience.rollout, field.name),
      getattr(later.rollout, field.name),
    )
    for field in fields
  }
  usage = experience.usage
  if usage is not None and later.usage is not None:
    usage = usage.add(later.usage, num_stand_ins=num_stand_ins)
  return dataclasses.replace(
    experience,
    problems=choose(places, experience.problems, later.problems),
    rollout=Rollout(**rollout),
    completions=choose(rows, experience.completions, later.completions),
    verdicts=choose(rows, experience.verdicts, later.verdicts),
    earlier=choose(rows, experience.earlier, later.earlier),
    earlier_verdicts=choose(
      rows, experience.earlier_verdicts, later.earlier_verdicts
    ),
    usage=usage,
    judging_seconds=experience.judging_seconds + later.judging_seconds,
  )


# Shown in place of the output of a tool that has failed.
FAILED = "(the tool has failed)"
