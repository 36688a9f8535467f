"""A tool at the student's side: asked in threads, shown in the chat's own form.

The student's tokens are never tokenised again; what the tool says is, and what
the chat template puts around it.
"""

import traceback
from collections.abc import Sequence
from concurrent.futures import Future

from distil_jax.data.tokenizer import Tokenizer
from distil_jax.envs import deadline_pool, warn_once
from distil_jax.envs.tools import Tool
from distil_jax.types import Problem

# Shown in place of what a tool could not say.
FAILED = "(the tool has failed)"
_CUT = "\n(cut)"


class ToolPool:
  """What the student may use between its turns, and how much of it.

  A tool that raises or that hangs costs its output, and nothing else.
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
    tell: warn_once.Tell = warn_once.to_stderr,
  ):
    """No thread is started yet.

    Args:
      tool: called by several threads at once.
      tokenizer: its chat template puts the output between two turns.
      max_turns: of the student, in one episode.
      max_output_tokens: of one output; what is longer is cut, with a sign.
      num_workers: threads at the most; None: one for each core.
      seconds: for one answer, from when the tool begins.
      tell: is told, once each, of a tool that raises and of one that hangs.

    Raises:
      TokenizerError: the chat template has no place for a tool's output.
      ValueError: an output may not even be as long as the sign of a cut.
    """
    self.max_turns = max_turns
    self._tool = tool
    self._tokenizer = tokenizer
    self._before, self._after = tokenizer.around_tools()
    self._max_output_tokens = max_output_tokens
    shortest = len(tokenizer.encode(_CUT))
    if max_output_tokens <= shortest:
      raise ValueError(
        f"max_output_tokens={max_output_tokens} must be more than the "
        f"{shortest} tokens that say that an output is cut"
      )
    self._threads = deadline_pool.DeadlinePool[str | None](
      num_workers=num_workers, seconds=seconds
    )
    self._seconds = seconds
    self._complain = warn_once.WarnOnce(tell)

  def ask(
    self, problem: Problem, turns: Sequence[str], outputs: Sequence[str]
  ) -> Future[str | None]:
    """Asks the tool, see `envs.tools.Tool`; `FAILED` where it has failed."""
    turns, outputs = tuple(turns), tuple(outputs)
    return self._threads.submit(
      lambda: self._answer(problem, turns, outputs),
      lambda: self._given_up(problem),
    )

  def shown(self, output: str, *, last_id: int) -> list[int]:
    """The tokens from one turn of the student to its next.

    A turn that did not end by an end token, but by a stop string, is ended
    here: that token is the template's and not the student's.

    Args:
      output: of the tool.
      last_id: the last token of the turn before.
    """
    before = self._before
    eos_ids = self._tokenizer.eos_ids
    if last_id in eos_ids and before and before[0] in eos_ids:
      before = before[1:]
    return [*before, *self._cut(output), *self._after]

  def _cut(self, output: str) -> list[int]:
    encode, limit = self._tokenizer.encode, self._max_output_tokens
    # What cannot be shown takes no time; half a character cannot be encoded.
    start = output[: limit * self._tokenizer.longest_token + 1]
    ids = encode(start.encode("utf-8", "replace").decode("utf-8"))
    if len(ids) <= limit and len(start) == len(output):
      return ids
    kept = limit - len(encode(_CUT))
    while True:
      # The cut may go through a character, whose rest is no text.
      text = self._tokenizer.decode(ids[:kept]).rstrip("\ufffd")
      shorter = encode(text + _CUT)
      if len(shorter) <= limit:
        return shorter
      kept -= 1

  def _answer(
    self, problem: Problem, turns: Sequence[str], outputs: Sequence[str]
  ) -> str | None:
    try:
      output = self._tool(problem, turns, outputs)
      if output is not None and not isinstance(output, str):
        raise TypeError(f"the tool returned {type(output).__name__}, no text")
    except BaseException as error:  # sys.exit too: here it would end in silence
      text = "".join(traceback.format_exception(error))
      self._complain(
        "raised",
        f"problem {problem.index}: the tool raised instead of answering; the "
        f"student is shown {FAILED!r}, then and whenever this happens:\n{text}",
      )
      return FAILED
    return output

  def _given_up(self, problem: Problem) -> str:
    self._complain(
      "hangs",
      f"problem {problem.index}: the tool has not answered within "
      f"{self._seconds:g} s; the thread in which it hangs stays until the end, "
      f"and the student is shown {FAILED!r}, then and whenever this happens. "
      "The tool needs a deadline of its own",
    )
    return FAILED
