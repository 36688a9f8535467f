"""Checks what every environment promises, for use in tests.

contract.check(MyEnvironment(), rows)
"""

import copy
import json
import pickle
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from distil_jax.envs import completion_text as envs_text
from distil_jax.envs.base import (
  Conversational,
  Environment,
  SelfJudged,
  max_turns,
)
from distil_jax.types import Problem, Reply, Status, Verdict

# Hostile completions that a model may write; none of them may stop a run.
COMPLETIONS: Sequence[str] = (
  "",
  " \n\t",
  "A",
  "<answer></answer>",
  "<answer>" * 2000,
  "```python\n",
  "\\boxed{" * 1000,
  "{" * 5000,
  '{"a": ' * 5000,
  "9" * 100_000,
  "\x00\x1b[2J\ud800",  # A lone surrogate cannot be encoded.
  "\u202e\u2066rtl\u2069",
  "e\u0301" * 10_000,
  "None",
  "%s {0} {x} $(x) `x`",
  "</think>",
  "x" * 1_000_000,
)
# Longer feedback would push the problem itself out of the teacher's prompt.
MAX_FEEDBACK_LENGTH = 10_000


class ContractError(AssertionError):
  """Means that an environment breaks a promise; says which one."""


def check(
  environment: Environment,
  rows: Iterable[Mapping[str, Any]],
  completions: Sequence[str] = (),
) -> None:
  """Checks all that the rest of the package expects of an environment.

  Args:
    environment: Any environment.
    rows: Valid data rows, at least one.
    completions: Texts to judge besides `COMPLETIONS`, such as correct ones.

  Raises:
    ContractError: Names the promise, the row and the completion.
  """
  count = 0
  for index, row in enumerate(rows):
    count += 1
    for problem in _problems(environment, row, index):
      for completion in (*COMPLETIONS, *completions):
        _check_verdict(environment, problem, completion)
        if max_turns(environment) > 1:
          assert isinstance(environment, Conversational)
          _check_reply(environment, problem, completion)
  if not count:
    raise ContractError("there is no row to check with")


def _problems(
  environment: Environment, row: Mapping[str, Any], index: int
) -> Iterator[Problem]:
  before = copy.deepcopy(row)
  problem = environment.problem(row, index)
  where = f"problem({_shown(row)}, {index})"
  _require(row == before, where, "changes the row")
  _require(isinstance(problem, Problem), where, "returns no Problem")
  _require(problem.index == index, where, f"has index {problem.index}")
  _check_messages(problem.messages, where)
  again = environment.problem(row, index)
  _require(again == problem, where, "is another problem the second time")
  for name in row:
    rest = {key: value for key, value in row.items() if key != name}
    # A field of a data file can be absent, null, or of any type.
    for broken in (rest, {**rest, name: None}, {**rest, name: object()}):
      _check_refusal(environment, broken, index)
  yield problem
  # Judges may run in processes of their own, so problems must be picklable.
  yield pickle.loads(pickle.dumps(problem))


def _check_refusal(
  environment: Environment, row: Mapping[str, Any], index: int
) -> None:
  """Checks that a malformed row, if refused, is refused by a ValueError."""
  where = f"problem({_shown(row)}, {index})"
  try:
    environment.problem(row, index)
  except ValueError:
    return
  except Exception as error:
    raise ContractError(
      f"{where} raises {error!r}; what it cannot read is a ValueError"
    ) from error


def _check_messages(messages: Sequence[Mapping[str, str]], where: str) -> None:
  _require(bool(messages), where, "has no message")
  for message in messages:
    is_text = set(message) == {"role", "content"} and all(
      isinstance(text, str) for text in message.values()
    )
    _require(is_text, where, f"has a message {message!r}")
  _require(messages[-1]["role"] == "user", where, "ends with no user's message")


def _check_verdict(
  environment: Environment, problem: Problem, completion: str
) -> None:
  where = f"judge(problem {problem.index}, {_shown(completion)})"
  before = copy.deepcopy(problem)
  try:
    verdict = environment.judge(problem, completion)
  except Exception as error:
    raise ContractError(f"{where} raises {error!r}; say so in a verdict") from (
      error
    )
  _check_is_good(verdict, where)
  _require(problem == before, where, "changes the problem")
  # A run that is resumed judges again, and must come to the same verdict.
  again = environment.judge(problem, completion)
  _require(again == verdict, where, "has another verdict the second time")
  if isinstance(environment, SelfJudged):
    prompt = environment.critique_prompt(problem, completion, verdict)
    if prompt is not None:
      _check_messages(prompt, where.replace("judge", "critique_prompt", 1))
    # The critic is a model too and may write anything.
    found = environment.with_critique(verdict, completion)
    _check_is_good(found, where.replace("judge", "with_critique", 1))


def _check_reply(
  environment: Conversational, problem: Problem, completion: str
) -> None:
  """Checks the reply to a first turn, and to the same turn once more."""
  turns, replies = [completion], []
  for number in (1, 2):
    where = (
      f"reply(problem {problem.index}, turn {number} {_shown(completion)})"
    )
    before = copy.deepcopy(problem)
    try:
      reply = environment.reply(problem, turns, replies)
    except Exception as error:
      raise ContractError(
        f"{where} raises {error!r}; say so in a verdict"
      ) from (error)
    _require(isinstance(reply, Reply), where, f"returns {reply!r}")
    is_text = reply.message is None or isinstance(reply.message, str)
    _require(is_text, where, f"has a message {reply.message!r}")
    if reply.verdict is not None:
      _check_is_good(reply.verdict, where)
    _require(problem == before, where, "changes the problem")
    again = environment.reply(problem, turns, replies)
    _require(again == reply, where, "is another reply the second time")
    if reply.message is None:
      return
    turns, replies = [*turns, completion], [reply]


def _check_is_good(verdict: Verdict, where: str) -> None:
  _require(isinstance(verdict, Verdict), where, f"returns {verdict!r}")
  _require(
    0 <= verdict.reward <= 1,
    where,
    f"has a reward {verdict.reward}, not 0 to 1",
  )
  _require(
    isinstance(verdict.status, Status), where, f"has status {verdict.status!r}"
  )
  _require(isinstance(verdict.feedback, str), where, "has no text as feedback")
  length = len(verdict.feedback)
  _require(
    length <= MAX_FEEDBACK_LENGTH, where, f"has feedback of {length} characters"
  )
  try:
    json.dumps(dict(verdict.details))
  except (TypeError, ValueError) as error:
    raise ContractError(f"{where}: details are no JSON: {error}") from error


def _require(is_kept: bool, where: str, fault: str) -> None:
  if not is_kept:
    raise ContractError(f"{where} {fault}")


def _shown(value: Any) -> str:
  return envs_text.shortened(ascii(value), 60)
