"""Multi-turn rollouts: turns of the student, and what others say in between.

A partner replies to the student's turns: a tool, or the environment. All rows
sample their first turn together, as they would without a partner. Rows that it
has answered then sample their next turn, each from its own prompt
and all that was said since, and so on until no row is left. The prompt of a
later turn is read anew. This is cheap beside sampling, but its keys and values
take memory for each row, where in the first turn they are shared by a group.

A row's tokens depend on its key, its prompt and the replies alone, not on the
other rows.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import jax
import numpy as np

from distil_jax.data import padding, shared_prefixes
from distil_jax.data.tokenizer import Tokenizer
from distil_jax.distributed import collectives
from distil_jax.generation.usage import OnFinished, Report, Usage
from distil_jax.training.rollouts.between_turns import Partner
from distil_jax.types import (
  Message,
  Problem,
  Reply,
  Rollout,
  StopReason,
  Verdict,
)

# Called with a row whose episode is over, the text of its last turn, and the
# verdict on it, if it has one.
OnEpisodeEnd = Callable[[int, str, Verdict | None], None]


@dataclasses.dataclass(frozen=True)
class Turns:
  """Holds the turns to sample next: one completion for each of n prompts.

  Attributes:
    rows: Rows whose turn it is; if they are fewer than n, the last prompts are
      stand-ins.
    numbers: Number of each row's turn, 0 for the first.
    prompt_ids, prompt_mask: Left-padded. Shape `[n, S + T]`.
    max_lengths: Most tokens of each turn. Shape `[n]`.
  """

  rows: Sequence[int]
  numbers: Sequence[int]
  prompt_ids: np.ndarray
  prompt_mask: np.ndarray
  max_lengths: np.ndarray


SampleFirstFn = Callable[..., tuple[Rollout, Usage]]
SampleLaterFn = Callable[..., tuple[Rollout, Usage]]


class Episodes:
  """Holds the rows of one rollout on the host: B of them, G a problem."""

  def __init__(
    self,
    partner: Partner,
    tokenizer: Tokenizer,
    problems: Sequence[Problem],
    prompt_ids: np.ndarray,
    prompt_mask: np.ndarray,
    *,
    group_size: int,
    max_completion_length: int,
    on_episode_end: OnEpisodeEnd,
  ):
    """Starts with empty episodes.

    Args:
      partner: Replies to the student's turns.
      tokenizer: Turns token ids into text.
      problems: P problems.
      prompt_ids, prompt_mask: Prompts of the first turns. Shape `[P, S]`.
      group_size: G.
      max_completion_length: T, the most tokens of a whole episode.
      on_episode_end: Called for each row as soon as its episode is over.
    """
    self.num_rows = len(problems) * group_size
    self._partner, self._tokenizer = partner, tokenizer
    self._problems, self._group_size = problems, group_size
    self.prompt_ids, self.prompt_mask = prompt_ids, prompt_mask
    self._on_episode_end = on_episode_end
    shape = (self.num_rows, max_completion_length)
    self._ids = np.full(shape, tokenizer.pad_id, np.int32)
    self._student_mask = np.zeros(shape, np.int32)
    self._log_probs, self._behavior_log_probs = np.zeros(
      (2, *shape), np.float32
    )
    self._lengths = np.zeros(self.num_rows, np.int32)
    self._stop_reasons = np.zeros(self.num_rows, np.int32)
    self._turns: list[list[str]] = [[] for _ in range(self.num_rows)]
    self._replies: list[list[Reply]] = [[] for _ in range(self.num_rows)]
    # Rows of this kind have their last turn, whatever the reply says.
    self._is_last = np.zeros(self.num_rows, bool)
    # Rows that wait for a reply.
    self.calls: dict[int, Future[Reply]] = {}

  def on_finished(self, rows: Sequence[int]) -> OnFinished:
    """Returns a callback that asks the partner as soon as a turn has finished.

    Args:
      rows: Rows whose turns are sampled.
    """

    def on_finished(index: int, ids: np.ndarray) -> None:
      if index < len(rows):  # stand-ins come after the rows
        self._end_turn(rows[index], ids)
      # Judging of these can begin while other rows are still sampled.
      self._end_unanswered()

    return on_finished

  def add_turns(self, rows: Sequence[int], sampled: Rollout) -> None:
    """Appends the turns that have been sampled.

    Args:
      rows: Rows whose turns they are.
      sampled: Turns of the rows, followed by those of the stand-ins.
    """
    counts = np.asarray(sampled.completion_mask).sum(axis=1)
    for i, row in enumerate(rows):
      span = self._extend(row, sampled.completion_ids[i, : counts[i]])
      self._student_mask[row, span] = 1
      for kept, turn in (
        (self._log_probs, sampled.log_probs),
        (self._behavior_log_probs, sampled.behavior_log_probs),
      ):
        kept[row, span] = turn[i, : counts[i]]
      self._stop_reasons[row] = sampled.stop_reasons[i]

  def add_replies(self) -> list[int]:
    """Waits for the replies and appends their messages.

    Returns:
      The rows that have a next turn.
    """
    continuing = []
    # In the order of rows: replies come in any order, which must not decide
    # which rows are sampled together.
    for row in sorted(self.calls):
      reply = self.calls[row].result()
      if not self._is_over(row, reply) and self._add_message(row, reply):
        continuing.append(row)
      else:
        self._end_episode(row, reply)
    self.calls.clear()
    return continuing

  def turns(self, rows: Sequence[int], size: int) -> Turns:
    """Returns the next turns of some rows, filled up with stand-ins.

    A stand-in has one token to read and samples one.

    Args:
      rows: Rows whose turn it is.
      size: Number of turns, stand-ins included.
    """
    width = self.prompt_ids.shape[1] + self._ids.shape[1]
    pad_id = self._tokenizer.pad_id
    prompts = [self._tokens_so_far(row) for row in rows]
    # No prompt may be empty.
    prompts += [[pad_id]] * (size - len(rows))
    max_lengths = np.ones(size, np.int32)
    max_lengths[: len(rows)] = self._ids.shape[1] - self._lengths[list(rows)]
    return Turns(
      rows,
      [len(self._turns[row]) for row in rows],
      *padding.pad_left(prompts, width, pad_id),
      max_lengths,
    )

  def rollout(self) -> Rollout:
    """Returns the episodes; tokens of messages are not the student's."""
    columns = np.arange(self._ids.shape[1])
    return Rollout(
      prompt_ids=self.prompt_ids,
      prompt_mask=self.prompt_mask,
      completion_ids=self._ids,
      completion_mask=(columns < self._lengths[:, None]).astype(np.int32),
      log_probs=self._log_probs,
      behavior_log_probs=self._behavior_log_probs,
      stop_reasons=self._stop_reasons,
      student_mask=self._student_mask,
    )

  def earlier_turns(self) -> list[list[Message]]:
    """Returns what was said before the last turn of each row.

    Messages alternate between the role `student` and that of the partner, which
    is `environment` if it judges turns, or `tool`.
    """
    partner = "environment" if self._partner.answers_last_turn else "tool"
    return [
      [
        {"role": role, "content": text}
        # The last turn has no message, so it is not among the earlier ones.
        for turn, reply in zip(turns, replies, strict=False)
        for role, text in (("student", turn), (partner, reply.message or ""))
      ]
      for turns, replies in zip(self._turns, self._replies, strict=True)
    ]

  def earlier_verdicts(self) -> list[list[Verdict | None]] | None:
    """Returns the verdicts on the turns before the last one of each row.

    None if the partner judges no turns.
    """
    if not self._partner.answers_last_turn:
      return None
    return [[reply.verdict for reply in replies] for replies in self._replies]

  def _end_turn(self, row: int, ids: np.ndarray) -> None:
    """Asks about a finished turn; a tool is not asked about the last one."""
    turns = self._turns[row]
    turns.append(self._tokenizer.decode(ids.tolist()))
    is_full = self._lengths[row] + len(ids) >= self._ids.shape[1]
    self._is_last[row] = is_full or len(turns) == self._partner.max_turns
    if self._is_last[row] and not self._partner.answers_last_turn:
      self._on_episode_end(row, turns[-1], None)
      return
    problem = self._problems[row // self._group_size]
    self.calls[row] = self._partner.ask(problem, turns, self._replies[row])

  def _end_unanswered(self) -> None:
    """Ends the episodes of those to whom nothing more is said."""
    for row, call in list(self.calls.items()):
      if call.done() and self._is_over(row, call.result()):
        self._end_episode(row, call.result())
        del self.calls[row]

  def _is_over(self, row: int, reply: Reply) -> bool:
    return bool(self._is_last[row]) or reply.message is None

  def _end_episode(self, row: int, reply: Reply) -> None:
    self._on_episode_end(row, self._turns[row][-1], reply.verdict)

  def _add_message(self, row: int, reply: Reply) -> bool:
    """Appends a message if it fits, with a token to spare.

    Returns:
      True if it does; otherwise the episode is over.
    """
    length = self._lengths[row]
    last_id = int(self._ids[row, length - 1])
    ids = self._partner.between_turns(reply.message or "", last_id=last_id)
    if length + len(ids) >= self._ids.shape[1]:
      # For want of room, whatever ended the turn before.
      self._stop_reasons[row] = StopReason.LENGTH
      return False
    self._replies[row].append(reply)
    self._extend(row, ids)
    return True

  def _extend(self, row: int, ids: Sequence[int] | np.ndarray) -> slice:
    """Appends tokens to a row; returns their columns."""
    start = int(self._lengths[row])
    span = slice(start, start + len(ids))
    self._ids[row, span] = ids
    self._lengths[row] = span.stop
    return span

  def _tokens_so_far(self, row: int) -> list[int]:
    """Returns a row's prompt and all that was said since."""
    problem = row // self._group_size
    prompt = self.prompt_ids[problem][self.prompt_mask[problem] == 1]
    return [*prompt.tolist(), *self._ids[row, : self._lengths[row]].tolist()]


def play(
  episodes: Episodes,
  sample_first: SampleFirstFn,
  sample_later: SampleLaterFn,
  *,
  multiple: int,
  at_once: int,
  report: Report,
) -> Usage:
  """Samples turn after turn until all episodes are over.

  Args:
    episodes: Empty episodes.
    sample_first: Samples the first turn of all rows; called with the keywords
      `report` and `on_finished`, see `engine.Engine`.
    sample_later: Samples `Turns`, its first argument; called with the same
      keywords.
    multiple: The number of this process's rows that are sampled at once is a
      multiple of this.
    at_once: Most rows of this process in a later turn, a multiple of
      `multiple`; the others wait.
    report: Called with the number of sampled tokens and of the episodes that
      were over when the latest turns began, of all processes.

  Returns:
    What all turns took together.
  """
  rows = list(range(episodes.num_rows))
  num_processes = jax.process_count()
  num_rows = num_processes * episodes.num_rows
  sampled, usage = sample_first(
    report=functools.partial(_report_turn, report, 0, 0, num_stand_ins=0),
    on_finished=episodes.on_finished(rows),
  )
  episodes.add_turns(rows, sampled)
  waiting = episodes.add_replies()
  # All processes leave the loop together, because `_size` is the same for all.
  while size := _size(len(waiting), at_once, multiple):
    rows, left = waiting[:size], waiting[size:]
    sums = {"rows": float(len(rows)), "left": float(len(left))}
    sums = {k: round(x) for k, x in collectives.global_sums(sums).items()}
    # Usage counts what is learned from, so tokens of stand-ins are taken out.
    num_stand_ins = num_processes * size - sums["rows"]
    sampled, more = sample_later(
      episodes.turns(rows, size),
      report=functools.partial(
        _report_turn,
        report,
        usage.num_tokens,
        num_rows - sum(sums.values()),
        num_stand_ins=num_stand_ins,
      ),
      on_finished=episodes.on_finished(rows),
    )
    episodes.add_turns(rows, sampled)
    usage = usage.add(more, num_stand_ins=num_stand_ins)
    waiting = left + episodes.add_replies()
  report(usage.num_tokens, num_rows)
  return usage


def _report_turn(
  report: Report,
  tokens_before: int,
  num_over: int,
  num_tokens: int,
  num_done: int,
  *,
  num_stand_ins: int,
) -> None:
  """Reports the progress of a turn as that of the episodes."""
  # A turn that is done is not an episode that is over.
  del num_done
  # Each stand-in samples one token, which does not count.
  report(tokens_before + max(num_tokens - num_stand_ins, 0), num_over)


def _size(num_rows: int, most: int, multiple: int) -> int:
  """Returns how many rows to sample at once, stand-ins included.

  The same for all processes, at most `most`, and 0 if none has a row. There are
  few such sizes, because each of them is a program.

  Args:
    num_rows: Rows of this process that wait for their turn.
    most: Most rows of a process.
    multiple: Divides the size.
  """
  longest = collectives.global_max(num_rows)
  if not longest:
    return 0
  fitting = [x for x in shared_prefixes.prompt_widths(most) if x >= longest]
  return -(-min(fitting, default=most) // multiple) * multiple
