"""Episodes: turns of the student, and what a tool says between them.

All rows sample their first turn together, as they would without a tool. Those
that the tool has answered then sample their next one, each from its own prompt
and all that was said since, and so on until nobody is left. What a turn is
sampled from is read anew: reading is cheap beside sampling. But its keys and
values take memory for each row, where they were shared in the first turn.

A row's tokens depend on its key, its prompt and the tool's words alone, not on
who else goes on.
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
from distil_jax.generation import engine, finished_rows
from distil_jax.training.rollouts.tool_pool import ToolPool
from distil_jax.types import Message, Problem, Rollout, StopReason

# A row whose episode is over, and the text of its last turn.
Over = Callable[[int, str], None]


@dataclasses.dataclass(frozen=True)
class Turns:
  """What is sampled next: one completion for each of n prompts.

  Attributes:
    rows: whose turn it is; where they are fewer than n the last ones are
      stand-ins.
    numbers: of each row's turn, 0 for the first.
    prompt_ids, prompt_mask: left-padded. Shape `[n, S + T]`.
    max_lengths: tokens that each may have. Shape `[n]`.
  """

  rows: Sequence[int]
  numbers: Sequence[int]
  prompt_ids: np.ndarray
  prompt_mask: np.ndarray
  max_lengths: np.ndarray


FirstFn = Callable[..., tuple[Rollout, engine.Usage]]
LaterFn = Callable[..., tuple[Rollout, engine.Usage]]


class Episodes:
  """The rows of one rollout, on the host: B of them, G for each problem."""

  def __init__(
    self,
    tooling: ToolPool,
    tokenizer: Tokenizer,
    problems: Sequence[Problem],
    prompt_ids: np.ndarray,
    prompt_mask: np.ndarray,
    *,
    group_size: int,
    max_completion_length: int,
    over: Over,
  ):
    """Nobody has said anything yet.

    Args:
      tooling: the tool.
      tokenizer: ids to text.
      problems: P of them.
      prompt_ids, prompt_mask: of the first turns. Shape `[P, S]`.
      group_size: G.
      max_completion_length: T, of all that is said in an episode.
      over: told of each row as soon as its episode is over.
    """
    self.num_rows = len(problems) * group_size
    self._tooling, self._tokenizer = tooling, tokenizer
    self._problems, self._group_size = problems, group_size
    self.prompt_ids, self.prompt_mask = prompt_ids, prompt_mask
    self._over = over
    shape = (self.num_rows, max_completion_length)
    self._ids = np.full(shape, tokenizer.pad_id, np.int32)
    self._own = np.zeros(shape, np.int32)
    self._log_probs, self._behavior_log_probs = np.zeros(
      (2, *shape), np.float32
    )
    self._lengths = np.zeros(self.num_rows, np.int32)
    self._stop_reasons = np.zeros(self.num_rows, np.int32)
    self._turns: list[list[str]] = [[] for _ in range(self.num_rows)]
    self._outputs: list[list[str]] = [[] for _ in range(self.num_rows)]
    self.calls: dict[int, Future[str | None]] = {}

  def listener(self, rows: Sequence[int]) -> finished_rows.OnFinished:
    """Told of the rows of a turn as they end; has the tool asked meanwhile."""

    def ended(place: int, ids: np.ndarray) -> None:
      if place < len(rows):
        self._end_turn(rows[place], ids)
      self._look()

    return ended

  def take(self, rows: Sequence[int], sampled: Rollout) -> None:
    """Writes down the turns that have been sampled.

    Args:
      rows: whose turn it was.
      sampled: theirs first; what comes after them is nobody's.
    """
    counts = np.asarray(sampled.completion_mask).sum(axis=1)
    for place, row in enumerate(rows):
      span = self._extend(row, sampled.completion_ids[place, : counts[place]])
      self._own[row, span] = 1
      for kept, found in (
        (self._log_probs, sampled.log_probs),
        (self._behavior_log_probs, sampled.behavior_log_probs),
      ):
        kept[row, span] = found[place, : counts[place]]
      self._stop_reasons[row] = sampled.stop_reasons[place]

  def answered(self) -> list[int]:
    """Waits for the tool, shows what it says, and tells whose turn it is."""
    going_on = []
    for row in sorted(self.calls):
      output = self.calls[row].result()
      if output is not None and self._show(row, output):
        going_on.append(row)
      else:
        self._over(row, self._turns[row][-1])
    self.calls.clear()
    return going_on

  def turns(self, rows: Sequence[int], size: int) -> Turns:
    """The next turns of some rows, with stand-ins up to a size.

    Stand-ins have one token to read and one to say.
    """
    width = self.prompt_ids.shape[1] + self._ids.shape[1]
    pad_id = self._tokenizer.pad_id
    heads = [self._said_to(row) for row in rows]
    heads += [[pad_id]] * (size - len(rows))
    max_lengths = np.ones(size, np.int32)
    max_lengths[: len(rows)] = self._ids.shape[1] - self._lengths[list(rows)]
    return Turns(
      rows,
      [len(self._turns[row]) for row in rows],
      *padding.pad_left(heads, width, pad_id),
      max_lengths,
    )

  def rollout(self) -> Rollout:
    """All of it; a tool's words are tokens that the student did not choose."""
    columns = np.arange(self._ids.shape[1])
    return Rollout(
      prompt_ids=self.prompt_ids,
      prompt_mask=self.prompt_mask,
      completion_ids=self._ids,
      completion_mask=(columns < self._lengths[:, None]).astype(np.int32),
      log_probs=self._log_probs,
      behavior_log_probs=self._behavior_log_probs,
      stop_reasons=self._stop_reasons,
      student_mask=self._own,
    )

  def earlier_turns(self) -> list[list[Message]]:
    """What was said before the turns that are judged, by whom; of each row."""
    return [
      [
        {"role": role, "content": text}
        for pair in zip(turns, outputs, strict=False)
        for role, text in zip(("student", "tool"), pair, strict=True)
      ]
      for turns, outputs in zip(self._turns, self._outputs, strict=True)
    ]

  def _end_turn(self, row: int, ids: np.ndarray) -> None:
    turns = self._turns[row]
    turns.append(self._tokenizer.decode(ids.tolist()))
    is_full = self._lengths[row] + len(ids) >= self._ids.shape[1]
    if is_full or len(turns) == self._tooling.max_turns:
      self._over(row, turns[-1])
      return
    problem = self._problems[row // self._group_size]
    self.calls[row] = self._tooling.ask(problem, turns, self._outputs[row])

  def _look(self) -> None:
    """Ends the episodes of those to whom the tool has nothing to say."""
    for row, call in list(self.calls.items()):
      if call.done() and call.result() is None:
        del self.calls[row]
        self._over(row, self._turns[row][-1])

  def _show(self, row: int, output: str) -> bool:
    """Whether the output, and a token after it, fit into what is left."""
    length = self._lengths[row]
    last_id = int(self._ids[row, length - 1])
    ids = self._tooling.shown(output, last_id=last_id)
    if length + len(ids) >= self._ids.shape[1]:
      self._stop_reasons[row] = StopReason.LENGTH
      return False
    self._outputs[row].append(output)
    self._extend(row, ids)
    return True

  def _extend(self, row: int, ids: Sequence[int] | np.ndarray) -> slice:
    start = int(self._lengths[row])
    span = slice(start, start + len(ids))
    self._ids[row, span] = ids
    self._lengths[row] = span.stop
    return span

  def _said_to(self, row: int) -> list[int]:
    problem = row // self._group_size
    prompt = self.prompt_ids[problem][self.prompt_mask[problem] == 1]
    return [*prompt.tolist(), *self._ids[row, : self._lengths[row]].tolist()]


def play(
  episodes: Episodes,
  first: FirstFn,
  later: LaterFn,
  *,
  multiple: int,
  at_once: int,
  report: engine.Report,
) -> engine.Usage:
  """Samples turn after turn until all episodes are over.

  Args:
    episodes: as they begin.
    first: samples the first turn of all rows; called with the keywords
      `report` and `ended`, see `engine.Engine`.
    later: the same for `Turns`, which it is given.
    multiple: of this process's rows that can be sampled at once.
    at_once: of this process's rows that read all that was said to them; the
      others wait. A multiple of the former.
    report: told how many tokens are sampled, and how many episodes were over
      when the latest turns began; of all processes.

  Returns:
    what all turns took together.
  """
  rows = list(range(episodes.num_rows))
  num_processes = jax.process_count()
  num_rows = num_processes * episodes.num_rows
  sampled, usage = first(
    report=functools.partial(_report, report, 0, 0, num_stand_ins=0),
    ended=episodes.listener(rows),
  )
  episodes.take(rows, sampled)
  waiting = episodes.answered()
  while size := _size(len(waiting), at_once, multiple):
    rows, left = waiting[:size], waiting[size:]
    sums = {"rows": float(len(rows)), "left": float(len(left))}
    sums = {k: round(x) for k, x in collectives.global_sums(sums).items()}
    num_stand_ins = num_processes * size - sums["rows"]
    sampled, more = later(
      episodes.turns(rows, size),
      report=functools.partial(
        _report,
        report,
        usage.num_tokens,
        num_rows - sum(sums.values()),
        num_stand_ins=num_stand_ins,
      ),
      ended=episodes.listener(rows),
    )
    episodes.take(rows, sampled)
    usage = _together(usage, more, num_stand_ins)
    waiting = left + episodes.answered()
  report(usage.num_tokens, num_rows)
  return usage


def _report(
  report: engine.Report,
  tokens_before: int,
  num_over: int,
  num_tokens: int,
  num_done: int,
  *,
  num_stand_ins: int,
) -> None:
  """Of a turn, what the episodes have come to; stand-ins say one token each."""
  del num_done  # with a turn, not with the episode
  report(tokens_before + max(num_tokens - num_stand_ins, 0), num_over)


def _size(num_rows: int, most: int, multiple: int) -> int:
  """How many are sampled in place of so many: few sizes, so few programs.

  The same for all processes, at most `most`; 0 where none of them has a row.
  """
  longest = collectives.global_max(num_rows)
  if not longest:
    return 0
  fitting = [x for x in shared_prefixes.widths(most) if x >= longest]
  return -(-min(fitting, default=most) // multiple) * multiple


def _together(
  before: engine.Usage, more: engine.Usage, num_stand_ins: int
) -> engine.Usage:
  return engine.Usage(
    num_tokens=before.num_tokens + more.num_tokens - num_stand_ins,
    num_steps=before.num_steps + more.num_steps,
    num_slot_steps=before.num_slot_steps + more.num_slot_steps,
    cache_bytes=max(before.cache_bytes, more.cache_bytes),
    num_programs=more.num_programs,
  )
