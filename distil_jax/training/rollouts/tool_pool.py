"""A pool of threads that ask a tool."""

import traceback
from collections.abc import Sequence
from concurrent.futures import Future

from distil_jax.data.tokenizer import Tokenizer
from distil_jax.envs import deadline_pool, warn_once
from distil_jax.envs.base import Tool
from distil_jax.training.rollouts.between_turns import BetweenTurns
from distil_jax.training.rollouts.experience import FAILED
from distil_jax.types import Problem, Reply


class ToolPool:
  """Asks a tool in threads, and limits how much the student may use it.

  A tool that raises or hangs costs its output, and nothing else.
  """

  # An episode that may not go on is over, whatever the tool would say.
  answers_last_turn = False

  def __init__(
    self,
    tool: Tool,
    tokenizer: Tokenizer,
    *,
    max_turns: int,
    max_output_tokens: int,
    num_workers: int | None = None,
    seconds: float = 60.0,
    warn: warn_once.Warn = warn_once.to_stderr,
  ):
    """Prepares the pool; no thread is started yet.

    Args:
      tool: Called by several threads at once.
      tokenizer: Its chat template puts the output between two turns.
      max_turns: Most turns of the student in one episode.
      max_output_tokens: Most tokens of one output; a longer one is cut and
        marked as such.
      num_workers: Most threads; None means one for each core.
      seconds: Time limit of one answer, from when the tool begins.
      warn: Called with a warning, once each, when the tool raises and when it
        exceeds the limit.

    Raises:
      TokenizerError: The chat template has no place for a tool's output.
      ValueError: An output may not even be as long as the mark of a cut.
    """
    self.max_turns = max_turns
    self._tool = tool
    self.between_turns = BetweenTurns(
      tokenizer,
      roles=("tool", "user"),
      max_length=max_output_tokens,
      setting="max_output_tokens",
    )
    self._threads = deadline_pool.DeadlinePool[Reply](
      num_workers=num_workers, seconds=seconds
    )
    self._seconds = seconds
    self._warn_once = warn_once.WarnOnce(warn)

  def ask(
    self, problem: Problem, turns: Sequence[str], replies: Sequence[Reply]
  ) -> Future[Reply]:
    """Asks the tool in a thread.

    Args:
      problem: Problem of the episode.
      turns: Turns of the student so far.
      replies: The tool's so far.

    Returns:
      A reply without a verdict, whose message is the output, None if the tool
      has nothing to say (see `envs.base.Tool`), or `FAILED` if it has failed.
    """
    # Copies, because the caller's lists grow while the thread reads them.
    turns = tuple(turns)
    outputs = tuple(reply.message or "" for reply in replies)
    return self._threads.submit(
      lambda: Reply(self._answer(problem, turns, outputs)),
      lambda: Reply(self._give_up(problem)),
    )

  def _answer(
    self, problem: Problem, turns: Sequence[str], outputs: Sequence[str]
  ) -> str | None:
    """Runs the tool; a tool that raises costs its output alone."""
    try:
      output = self._tool(problem, turns, outputs)
      if output is not None and not isinstance(output, str):
        raise TypeError(f"the tool returned {type(output).__name__}, no text")
    # SystemExit too: in a thread it would end the tool without a word.
    except BaseException as error:
      text = "".join(traceback.format_exception(error))
      self._warn_once(
        "raised",
        f"problem {problem.index}: the tool raised an error; the student is "
        f"shown {FAILED!r}, now and whenever this happens:\n{text}",
      )
      return FAILED
    return output

  def _give_up(self, problem: Problem) -> str:
    """Warns of a tool that exceeds its time limit."""
    self._warn_once(
      "hangs",
      f"problem {problem.index}: the tool has not answered within "
      f"{self._seconds:g} s; its thread stays busy until the end of the run, "
      f"and the student is shown {FAILED!r}, now and whenever this happens. "
      "Give the tool a time limit of its own",
    )
    return FAILED
