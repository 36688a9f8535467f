"""Asks an environment that speaks after each turn of the student."""

from collections.abc import Sequence
from concurrent.futures import Future

from distil_jax.data.tokenizer import Tokenizer
from distil_jax.envs.judge_pool import JudgePool
from distil_jax.training.rollouts.between_turns import BetweenTurns
from distil_jax.types import Problem, Reply


class ReplyPool:
  """Has the judges' threads reply, and limits how much is said."""

  # The reply to the last turn holds its verdict.
  answers_last_turn = True

  def __init__(
    self,
    judges: JudgePool,
    tokenizer: Tokenizer,
    *,
    max_turns: int,
    max_reply_length: int,
  ):
    """Reads the chat template.

    Args:
      judges: Of an environment that is `Conversational`.
      tokenizer: Its chat template makes the messages those of a user.
      max_turns: Most turns of the student in one episode.
      max_reply_length: Most tokens of a message; a longer one is cut and marked
        as such.

    Raises:
      TokenizerError: The chat template has no place for a message.
      ValueError: A message may not even be as long as the mark of a cut.
    """
    self.max_turns = max_turns
    self.between_turns = BetweenTurns(
      tokenizer,
      roles=("user",),
      max_length=max_reply_length,
      setting="max_reply_length",
    )
    self._judges = judges

  def ask(
    self, problem: Problem, turns: Sequence[str], replies: Sequence[Reply]
  ) -> Future[Reply]:
    """Asks the environment in a thread; see `JudgePool.reply`."""
    return self._judges.reply(problem, turns, replies)
