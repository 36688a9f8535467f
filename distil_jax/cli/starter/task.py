"""An environment of one's own: change `problem` and `judge` for your task."""

import dataclasses
import re

from distil_jax.types import Problem, Status, Verdict


@dataclasses.dataclass(frozen=True)
class Ledger:
  """Asks for the balance after some changes, worked off one a line.

  Attributes:
    hints: say in the feedback what the wrong line should be. Set in the config
      beside `kind`.
  """

  hints: bool = True

  def problem(self, row, index=0):
    """Reads a row of the data; raises ValueError if it cannot be used."""
    start, changes = row.get("start"), row.get("changes")
    if not isinstance(start, int) or not isinstance(changes, list):
      raise ValueError('a row is {"start": 47, "changes": [8, -3]}')
    lines, balance = [], start
    for change in changes:
      sign = "-" if change < 0 else "+"
      lines.append(f"{balance} {sign} {abs(change)} = {balance + change}")
      balance += change
    terms = "".join(f" {'-' if c < 0 else '+'} {abs(c)}" for c in changes)
    return Problem(
      index=index,
      # What the student reads.
      messages=({"role": "user", "content": f"Compute {start}{terms}."},),
      answer=str(balance),
      # For `judge`.
      details={"lines": [*lines, f"<answer>{balance}</answer>"]},
    )

  def judge(self, problem, completion):
    """Returns reward, feedback and status of whatever the model wrote."""
    found = re.search(r"<answer>(.*?)</answer>", completion)
    if found and found[1].strip() == problem.answer:
      return Verdict(1.0, "", Status.CORRECT)
    status = Status.WRONG if found else Status.UNPARSABLE
    # The teacher reads this, so it says where and why. The student never does.
    return Verdict(0.0, self._first_fault(problem, completion), status)

  def _first_fault(self, problem, completion):
    written = [line.strip() for line in completion.splitlines()]
    for number, wanted in enumerate(problem.details["lines"], start=1):
      hint = f": it should be {wanted}" if self.hints else ""
      if number > len(written):
        return f"Step {number} is missing{hint}."
      line = written[number - 1]
      if line != wanted:
        hint = hint.replace(":", ",")
        return f"Step {number} is wrong: you wrote {line[:60]}{hint}."
    return "There is text after the answer."
