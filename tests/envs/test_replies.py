"""Environments that speak between turns: code, calculator, a guessing game."""

import pytest

from distil_jax import envs
from distil_jax.config.environments import CodeConfig
from distil_jax.envs import base, contract
from distil_jax.envs import sandbox as sandboxes
from distil_jax.envs.code import Code
from distil_jax.envs.program_tests.prompts import fenced
from distil_jax.types import Status

AGAIN = "\n\nWrite the whole program again, so that it passes all tests."
HIDDEN = {
  "prompt": "Twice the number.",
  "tests": [{"input": "1", "output": "2"}],
  "hidden_tests": [{"input": "31", "output": "62"}],
}


@pytest.fixture(scope="module")
def sandbox():
  with sandboxes.make() as made:
    yield made


@pytest.fixture(scope="module")
def code(sandbox):
  # The teacher may see hidden tests; the student never does.
  settings = {"max_attempts": 2, "reveal_hidden_tests": True}
  return Code(CodeConfig(seconds=2.0, **settings), sandbox)


@pytest.fixture(scope="module")
def problem(code):
  return code.problem(HIDDEN)


@pytest.fixture(scope="module")
def game():
  return envs.make_environment("guess_number", largest=16, max_guesses=4)


class TestCode:
  @pytest.mark.parametrize(
    ("program", "shown", "told"),
    [
      (
        "print(3)",
        "Wrong Answer\nInput: 1\nOutput: 3\nExpected: 2\n\n"
        "Wrong Answer\nA hidden test fails.",
        "Expected: 62",
      ),
      ("print(2)", "Wrong Answer\nA hidden test fails.", "Expected: 62"),
      (
        "n = int(input())\nif n > 9: raise ValueError(n)\nprint(2 * n)",
        "Runtime Error\nValueError\n  line 2: if n > 9: raise ValueError(n)\n"
        "A hidden test ends so.",
        "ValueError: 31",
      ),
    ],
  )
  def test_a_second_attempt_sees_the_trace_of_what_is_public(
    self, code, problem, program, shown, told
  ):
    reply = code.reply(problem, [fenced(program)], [])
    assert reply.message == shown + AGAIN
    assert "62" not in reply.message
    assert "31" not in reply.message
    assert reply.verdict == code.judge(problem, fenced(program))
    assert told in reply.verdict.feedback

  def test_a_format_can_be_mended(self, code, problem):
    reply = code.reply(problem, ["print(2)"], [])
    assert reply.message.startswith("The format is wrong: no code block")
    assert reply.message.endswith(AGAIN)

  def test_success_ends_it(self, code, problem):
    right = fenced("print(2 * int(input()))")
    first = code.reply(problem, [fenced("print(3)")], [])
    reply = code.reply(problem, [fenced("print(3)"), right], [first])
    assert reply.message is None
    assert reply.verdict.status == Status.CORRECT

  def test_turns(self, code, sandbox):
    assert base.max_turns(code) == 2
    assert base.max_turns(Code(CodeConfig(), sandbox)) == 1


def test_the_calculator_shows_its_trace():
  made = envs.make_environment("calculator", max_attempts=2)
  problem = made.problem({"prompt": "Compute 3 + 8 + 3.", "answer": "14"})
  wrong = "3 + 8 = 12\n12 + 3 = 15\n<answer>15</answer>"
  reply = made.reply(problem, [wrong], [])
  assert reply.verdict == made.judge(problem, wrong)
  assert reply.message == reply.verdict.feedback != ""
  right = "3 + 8 = 11\n11 + 3 = 14\n<answer>14</answer>"
  reply = made.reply(problem, [wrong, right], [reply])
  assert reply.message is None
  assert reply.verdict.reward == 1.0
  assert base.max_turns(made) == 2


class TestGuessNumber:
  def test_a_game_by_hand(self, game):
    problem = game.problem({"smallest": 37, "largest": 52, "number": 41})
    turns, replies = [], []
    for said, shown, feedback in (
      ("I take 44.", "Too high.", "one from 37 to 52: guess 44."),
      ("60", "Too high.", "one from 37 to 43: guess 40."),
      ("?", "That is no number. Write one number.", "37 to 43: guess 40."),
      ("40", "Too low.", "one from 37 to 43: guess 40."),
      ("41", None, ""),
    ):
      turns.append(said)
      reply = game.reply(problem, turns, replies)
      replies.append(reply)
      assert reply.message == shown
      assert reply.verdict.feedback.endswith(feedback)
      assert bool(feedback) == bool(reply.verdict.feedback)
      assert reply.verdict.reward == (shown is None)
    statuses = [reply.verdict.status for reply in replies]
    assert statuses[2] == Status.UNPARSABLE
    assert statuses[4] == Status.CORRECT

  def test_a_player_who_heeds_the_feedback_wins(self, game):
    for index in range(40):
      problem = game.generate(index, "evaluation")
      low, high = problem.details["smallest"], problem.details["largest"]
      turns, replies = [], []
      while len(turns) < 5:
        turns.append(str((low + high) // 2))
        replies.append(game.reply(problem, turns, replies))
        if replies[-1].message is None:
          break
        if replies[-1].message == "Too low.":
          low = int(turns[-1]) + 1
        else:
          high = int(turns[-1]) - 1
      assert replies[-1].verdict.reward == 1.0

  def test_splits_share_no_range(self, game):
    texts = [
      {game.generate(i, split).messages[0]["content"] for i in range(400)}
      for split in ("train", "evaluation")
    ]
    assert texts[0].isdisjoint(texts[1])
    assert len(texts[1]) == 16

  @pytest.mark.parametrize(
    ("row", "said"),
    [
      ({"smallest": 1, "largest": 2}, "number must be a whole number"),
      ({"smallest": 1, "largest": 2, "number": True}, "got True"),
      ({"smallest": 5, "largest": 9, "number": 4}, "must be from smallest=5"),
    ],
  )
  def test_bad_rows_are_refused(self, game, row, said):
    with pytest.raises(ValueError, match=said):
      game.problem(row)


@pytest.mark.parametrize("number", [0, -1, None, "2", 2.5, True])
def test_a_number_of_turns_that_is_none_is_refused(number):
  class Speaking:
    max_turns = number
    problem = judge = reply = staticmethod(print)

  with pytest.raises(ValueError, match="Speaking has a method reply and max_"):
    base.max_turns(Speaking())


class Misspelt:
  """Has turns, and a method that nobody calls."""

  max_turns = 2
  problem = judge = replies = staticmethod(print)


class Speaking(Misspelt):
  reply = staticmethod(print)


def test_turns_without_a_reply_are_refused():
  with pytest.raises(ValueError, match=r"Misspelt: .*no method reply"):
    envs.make_environment(f"{__name__}:Misspelt")
  with pytest.raises(ValueError, match=r"of: Speaking speaks between turns"):
    envs.make_environment(
      "self_evaluation", of={"kind": f"{__name__}:Speaking"}
    )


class Wrong:
  """Speaks, and breaks a promise."""

  max_turns = 2

  def __init__(self, reply):
    self._game = envs.make_environment("guess_number")
    self.problem, self.judge = self._game.problem, self._game.judge
    self._reply = reply

  def reply(self, problem, turns, replies):
    return self._reply(self._game.reply(problem, turns, replies))


@pytest.mark.parametrize(
  ("reply", "said"),
  [
    (lambda good: good.message, r"reply\(.* returns 'That is no number"),
    (lambda good: type(good)(message=3), "has a message 3"),
    (lambda good: 1 / 0, "raises ZeroDivisionError"),
  ],
)
def test_the_contract_covers_replies(reply, said):
  row = {"smallest": 1, "largest": 8, "number": 3}
  with pytest.raises(contract.ContractError, match=said):
    contract.check(Wrong(reply), [row])
