"""Builds the teacher's prompts.

The student's prompt is the problem. The teacher's prompt is the problem, a
solution or feedback, and the instruction to solve it. The teacher is then
scored on the student's own tokens, so the failed attempt itself is not in the
prompt but follows it.
"""

import dataclasses
from collections.abc import Callable, Sequence

from distil_jax.envs import completion_text as envs_text
from distil_jax.types import Message, Problem

_SOLUTION = "\n\nCorrect solution:\n\n{}"
_FEEDBACK = (
  "\n\nThe following is feedback from your unsuccessful earlier attempt:\n\n{}"
)
_INSTRUCTION = "\n\nCorrectly solve the original question."


@dataclasses.dataclass(frozen=True)
class TeacherPrompt:
  """Holds a teacher prompt that fits its limit.

  Attributes:
    ids: the prompt, including the marker of the assistant's turn.
    was_truncated: true if solution or feedback had to be cut.
    has_solution, has_feedback: true if any of it is in the prompt.
  """

  ids: list[int]
  was_truncated: bool
  has_solution: bool
  has_feedback: bool


def teacher_prompt(
  problem: Problem,
  *,
  solution: str | None = None,
  feedback: str | None = None,
) -> list[Message]:
  """Returns the student's messages with hints added to the last question.

  The hints are blocks of solution and feedback. An empty block is left out;
  without any the messages are the student's.

  Args:
    problem: the question.
    solution: a successful attempt or a reference; its thoughts are removed.
    feedback: what was wrong with the attempt.

  Raises:
    ValueError: a block is given, but the problem has no user message.
  """
  solution = envs_text.without_thought(solution or "")
  messages = list(problem.messages)
  blocks = ""
  if solution.strip():
    blocks += _SOLUTION.format(solution)
  if feedback and feedback.strip():
    blocks += _FEEDBACK.format(feedback)
  if not blocks:
    return messages
  last = _last_user(messages, problem.index)
  content = messages[last]["content"] + blocks + _INSTRUCTION
  messages[last] = {**messages[last], "content": content}
  return messages


def choose_solution(
  rewards: Sequence[float],
  completions: Sequence[str],
  index: int,
  *,
  threshold: float,
) -> str | None:
  """Returns the first other success of a group, for the teacher of a sample.

  A success that has only thoughts shows nothing and is passed over.

  Args:
    rewards: the reward of each sample of the group. Length G.
    completions: the text of each sample of the group. Length G.
    index: the sample that is to be taught.
    threshold: the lowest reward of a success.

  Returns:
    The completion unchanged; None if no other sample succeeded.
  """
  if len(rewards) != len(completions):
    raise ValueError(f"{len(rewards)} rewards, {len(completions)} completions")
  if not 0 <= index < len(rewards):
    raise ValueError(f"index={index} in a group of {len(rewards)} samples")
  for other, completion in enumerate(completions):
    is_success = other != index and rewards[other] >= threshold
    if is_success and envs_text.without_thought(completion).strip():
      return completion
  return None


def fit_teacher_prompt(
  problem: Problem,
  *,
  solution: str | None,
  feedback: str | None,
  encode: Callable[[list[Message]], list[int]],
  encode_text: Callable[[str], list[int]],
  decode: Callable[[Sequence[int]], str],
  limit: int,
) -> TeacherPrompt | None:
  """Returns the teacher's prompt as ids, its blocks cut if it is too long.

  The feedback is cut first, then the solution, each from its end and between
  tokens; an empty block goes with its heading. The problem, the closing
  instruction and the marker of the assistant's turn always stay.

  Args:
    problem: the question.
    solution: see `teacher_prompt`.
    feedback: see `teacher_prompt`.
    encode: messages -> ids of the whole prompt.
    encode_text: text -> ids.
    decode: ids -> text.
    limit: the largest number of tokens in the prompt.

  Returns:
    The prompt; None if the problem does not fit, or no part of the solution
    and the feedback fits beside it: such a teacher would teach nothing.
  """
  solution = envs_text.without_thought(solution or "")
  feedback = feedback or ""
  ids = encode(teacher_prompt(problem, solution=solution, feedback=feedback))
  if len(ids) <= limit:
    has = bool(solution.strip()), bool(feedback.strip())
    return TeacherPrompt(ids, False, *has)

  def longest(
    text: str, build: Callable[[str], list[Message]]
  ) -> list[int] | None:
    """Returns the prompt with the longest beginning of the text that fits."""
    tokens = encode_text(text)
    best, low, high = None, 0, min(len(tokens), limit) + 1
    while low + 1 < high:  # bisection: `low` tokens fit, `high` do not
      middle = (low + high) // 2
      # A cut inside a character leaves bytes that decode to U+FFFD.
      kept = decode(tokens[:middle]).rstrip("\ufffd")
      ids = encode(build(kept))
      if len(ids) > limit:
        high = middle
      else:
        low = middle
        best = ids if kept.strip() else None
    return best

  has_feedback = False
  without_feedback = encode(teacher_prompt(problem, solution=solution))
  # Feedback is cut first, because a solution shows more of what is right.
  if len(without_feedback) > limit:
    best = longest(
      solution, lambda kept: teacher_prompt(problem, solution=kept)
    )
  else:
    best = longest(
      feedback,
      lambda kept: teacher_prompt(problem, solution=solution, feedback=kept),
    )
    has_feedback = best is not None
    if best is None and solution.strip():
      best = without_feedback
  if best is None:
    return None
  return TeacherPrompt(best, True, bool(solution.strip()), has_feedback)


def _last_user(messages: Sequence[Message], index: int) -> int:
  """Returns the position of the last user message of a problem."""
  for position in reversed(range(len(messages))):
    if messages[position]["role"] == "user":
      return position
  raise ValueError(
    f"problem {index} has no user message to put solution or feedback into"
  )
