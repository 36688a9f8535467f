"""A pool of threads that ask a tool, and the form in which the student sees it.

The student's tokens are never tokenised again. Only the tool's outputs are,
with what the chat template puts around them.
"""

import traceback
from collections.abc import Sequence
from concurrent.futures import Future

from distil_jax.data.tokenizer import Tokenizer
from distil_jax.envs import deadline_pool, warn_once
from distil_jax.envs.base import Tool
from distil_jax.training.rollouts.experience import FAILED
from distil_jax.types import Problem

_CUT = "\n(cut)"


class ToolPool:
  """Asks a tool in threads, and limits how much the student may use it.

  A tool that raises or hangs costs its output, and nothing else.
  """

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
    self._tokenizer = tokenizer
    self._before, self._after = tokenizer.tokens_around_tool_output()
    self._max_output_tokens = max_output_tokens
    shortest = len(tokenizer.encode(_CUT))
    if max_output_tokens <= shortest:
      raise ValueError(
        f"max_output_tokens={max_output_tokens} must be more than the "
        f"{shortest} tokens that mark an output as cut"
      )
    self._threads = deadline_pool.DeadlinePool[str | None](
      num_workers=num_workers, seconds=seconds
    )
    self._seconds = seconds
    self._warn_once = warn_once.WarnOnce(warn)

  def ask(
    self, problem: Problem, turns: Sequence[str], outputs: Sequence[str]
  ) -> Future[str | None]:
    """Asks the tool in a thread.

    Args:
      problem: Problem of the episode.
      turns: Turns of the student so far.
      outputs: Outputs of the tool so far.

    Returns:
      The output, None if the tool has nothing to say (see `envs.tools.Tool`),
      or `FAILED` if it has failed.
    """
    # Copies, because the caller's lists grow while the thread reads them.
    turns, outputs = tuple(turns), tuple(outputs)
    return self._threads.submit(
      lambda: self._answer(problem, turns, outputs),
      lambda: self._give_up(problem),
    )

  def shown(self, output: str, *, last_id: int) -> list[int]:
    """Returns the tokens between one turn of the student and its next.

    If a turn ended by a stop string, the end token is added here: it is then
    the template's and not the student's.

    Args:
      output: Output of the tool.
      last_id: Last token of the turn before.
    """
    before = self._before
    eos_ids = self._tokenizer.eos_ids
    if last_id in eos_ids and before and before[0] in eos_ids:
      before = before[1:]
    return [*before, *self._cut(output), *self._after]

  def _cut(self, output: str) -> list[int]:
    """Returns the tokens of an output, cut to the limit."""
    encode, limit = self._tokenizer.encode, self._max_output_tokens
    # Text beyond the limit is not tokenised. The cut may leave half of a
    # surrogate pair, which `replace` removes because it cannot be encoded.
    start = output[: limit * self._tokenizer.longest_token + 1]
    ids = encode(start.encode("utf-8", "replace").decode("utf-8"))
    if len(ids) <= limit and len(start) == len(output):
      return ids
    # Text and mark may be tokenised in another way together than apart, so the
    # result is measured and shortened until it fits.
    kept = limit - len(encode(_CUT))
    while True:
      # A cut inside a character leaves bytes that decode to U+FFFD.
      text = self._tokenizer.decode(ids[:kept]).rstrip("\ufffd")
      shorter = encode(text + _CUT)
      if len(shorter) <= limit:
        return shorter
      kept -= 1

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
