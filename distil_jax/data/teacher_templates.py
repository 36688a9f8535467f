"""Forms of the teacher's prompt: named ones, and templates of one's own.

A form takes the problem and what the teacher is told, and returns the messages
of its prompt. The assistant's turn that follows is the student's completion,
on which the teacher is scored.
"""

import dataclasses
import itertools
import pathlib
from collections.abc import Callable, Sequence

import jinja2
import jinja2.meta
import jinja2.nodes
from jinja2 import exceptions, sandbox

from distil_jax.types import Message, Problem

_SOLUTION = "\n\nCorrect solution:\n\n{}"
_FEEDBACK = (
  "\n\nThe following is feedback from your unsuccessful earlier attempt:\n\n{}"
)
_INSTRUCTION = "\n\nCorrectly solve the original question."
_VERDICT = "That is not right.\n\n{}"
_VARIABLES = frozenset(["problem", "solution", "feedback", "attempt"])
_VARIABLES_TEXT = "the variables are problem, solution, feedback and attempt"
# Steps of all loops in one prompt, and the name of what counts them.
_MAX_STEPS = 100_000
_STEP = "step_of_loop"
_AGAIN = "\n\nHere is the question again.\n\n{}"


@dataclasses.dataclass(frozen=True)
class Told:
  """Holds what the teacher is told; an empty text is left out.

  Attributes:
    solution: a successful attempt or a reference.
    feedback: what was wrong with the attempt.
    attempt: the student's completion, which few forms show: the teacher is
      scored on it, and one that reads it can only repeat it.
  """

  solution: str = ""
  feedback: str = ""
  attempt: str = ""

  @property
  def is_empty(self) -> bool:
    """Returns True if there is neither a solution nor feedback."""
    return not (self.solution.strip() or self.feedback.strip())


Template = Callable[[Problem, Told], list[Message]]


def block(problem: Problem, told: Told) -> list[Message]:
  """Returns the question with solution and feedback as blocks after it."""
  blocks = _blocks(told.solution, told.feedback)
  return _with_question(problem, lambda text: text + blocks + _INSTRUCTION)


def turn(problem: Problem, told: Told) -> list[Message]:
  """Returns question, solution as an earlier answer, and the question again.

  Feedback stands after the last question, without any instruction.
  """
  feedback = _blocks("", told.feedback)
  messages = _with_question(problem, lambda text: text + feedback)
  if not told.solution.strip():
    return messages
  last = _last_user(problem)
  shown = [
    problem.messages[last],
    {"role": "assistant", "content": told.solution},
  ]
  return [*messages[:last], *shown, *messages[last:]]


def system(problem: Problem, told: Told) -> list[Message]:
  """Returns the question as it is, and the blocks in the system's message."""
  blocks = _blocks(told.solution, told.feedback).strip()
  messages = list(problem.messages)
  if messages and messages[0]["role"] == "system":
    content = f"{messages[0]['content']}\n\n{blocks}"
    return [{**messages[0], "content": content}, *messages[1:]]
  return [{"role": "system", "content": blocks}, *messages]


def critique(problem: Problem, told: Told) -> list[Message]:
  """Returns the conversation that the feedback belongs to.

  The student's attempt is an earlier answer, the user criticises it, shows the
  solution if there is one, and asks the question again.
  """
  last = _last_user(problem)
  messages = list(problem.messages)
  reply = _VERDICT.format(told.feedback) if told.feedback.strip() else ""
  reply += _blocks(told.solution, "")
  reply += _AGAIN.format(messages[last]["content"])
  criticism = [{"role": "user", "content": reply.strip()}]
  if told.attempt.strip():
    answered = {"role": "assistant", "content": told.attempt}
    criticism = [messages[last], answered, *criticism]
  return [*messages[:last], *criticism, *messages[last + 1 :]]


class _Environment(sandbox.ImmutableSandboxedEnvironment):
  """Jinja's sandbox, which forbids much, but lets loops run for hours."""

  intercepted_binops = frozenset(["**"])

  def call_binop(self, context, operator, left, right):
    """Refuses powers, which may have as many digits as there is memory."""
    del context, left, right
    raise exceptions.SecurityError(f"{operator} is not possible here")

  def _generate(self, source, *arguments, **more):
    """Compiles a template whose loops and macros count their steps."""
    for node in source.find_all((jinja2.nodes.For, jinja2.nodes.Macro)):
      step = jinja2.nodes.Name(_STEP, "load", lineno=node.lineno)
      call = jinja2.nodes.Call(step, [], [], None, None, lineno=node.lineno)
      node.body.insert(0, jinja2.nodes.ExprStmt(call, lineno=node.lineno))
    return super()._generate(source, *arguments, **more)


def _count_steps() -> Callable[[], None]:
  """Returns a function that raises when it is called too often."""
  steps = itertools.count(1)

  def step() -> None:
    if next(steps) > _MAX_STEPS:
      raise jinja2.TemplateRuntimeError(
        f"its loops take more than {_MAX_STEPS} steps"
      )

  return step


FORMS: dict[str, Template] = {
  "block": block,
  "turn": turn,
  "system": system,
  "critique": critique,
}


def load(name: str) -> Template:
  """Returns a form by its name, or by the path of a Jinja template.

  The template writes the last question anew, from the variables `problem` (its
  text), `solution`, `feedback` and `attempt`, of which the last three may be
  empty. It runs in a sandbox, as chat templates do.

  Raises:
    ValueError: there is no such file; or the template is malformed, uses
      another variable, or leaves out the problem, or both solution and
      feedback.
  """
  if name in FORMS:
    return FORMS[name]
  path = pathlib.Path(name)
  try:
    source = path.read_text(encoding="utf-8")
  except (OSError, UnicodeDecodeError) as error:
    raise ValueError(
      f"{path} cannot be read: {error}; name a file, or one of "
      f"{', '.join(FORMS)}"
    ) from error
  environment = _Environment(
    undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
  )
  try:
    template = environment.from_string(source)
    used = jinja2.meta.find_undeclared_variables(environment.parse(source))
  # Jinja compiles to Python, whose own parser has limits of nesting.
  except (
    jinja2.TemplateError,
    RecursionError,
    MemoryError,
    SyntaxError,
  ) as error:
    raise ValueError(f"{path} is no Jinja template: {error!r}") from error
  # Otherwise a misspelt name in a branch would end a run that has begun.
  for name in sorted(used - _VARIABLES - environment.globals.keys()):
    raise ValueError(f"{path}: {name!r} is undefined; {_VARIABLES_TEXT}")

  def render(problem: Problem, told: Told) -> list[Message]:
    variables = dataclasses.asdict(told)
    try:
      return _with_question(
        problem,
        lambda text: template.render(
          problem=text, **variables, **{_STEP: _count_steps()}
        ),
      )
    except jinja2.TemplateError as error:
      raise ValueError(f"{path}: {error}; {_VARIABLES_TEXT}") from error
    # What a template computes can fail as any program can.
    except (
      ArithmeticError,
      TypeError,
      LookupError,
      RuntimeError,
      AttributeError,
      MemoryError,
    ) as error:
      raise ValueError(
        f"{path} cannot be rendered: {type(error).__name__}: {error}"
      ) from error

  _check_keeps(path, render)
  return render


def _check_keeps(path: pathlib.Path, render: Template) -> None:
  """Checks that a template shows the problem and what the teacher is told."""
  question = {"role": "user", "content": "text-of-problem"}
  problem = Problem(index=0, messages=(question,), answer="")
  told = Told("text-of-solution", "text-of-feedback", "text-of-attempt")
  alone = (told, Told(solution=told.solution), Told(feedback=told.feedback))
  texts = [render(problem, x)[-1]["content"] for x in alone]
  if not all(question["content"] in text for text in texts):
    raise ValueError(f"{path} leaves out the problem; write {{{{ problem }}}}")
  if not any(x in texts[0] for x in (told.solution, told.feedback)):
    raise ValueError(
      f"{path} leaves out both solution and feedback, so that the teacher "
      "would know no more than the student; write {{ solution }} or "
      "{{ feedback }}"
    )


def _blocks(solution: str, feedback: str) -> str:
  found = ""
  if solution.strip():
    found += _SOLUTION.format(solution)
  if feedback.strip():
    found += _FEEDBACK.format(feedback)
  return found


def _with_question(
  problem: Problem, write: Callable[[str], str]
) -> list[Message]:
  """Returns the problem's messages with the last question written anew."""
  messages, last = list(problem.messages), _last_user(problem)
  content = write(messages[last]["content"])
  messages[last] = {**messages[last], "content": content}
  return messages


def _last_user(problem: Problem) -> int:
  """Returns the position of the last user message of a problem."""
  messages: Sequence[Message] = problem.messages
  for position in reversed(range(len(messages))):
    if messages[position]["role"] == "user":
      return position
  raise ValueError(
    f"problem {problem.index} has no user message to put solution or feedback "
    "into"
  )
