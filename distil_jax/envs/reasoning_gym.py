"""Tasks of reasoning_gym, which make their problems and score answers."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

from distil_jax.envs import completion_text as envs_text
from distil_jax.envs import process_pool, reasoning_gym_worker, rows
from distil_jax.types import Demonstration, Message, Problem, Status, Verdict

_OPEN, _CLOSE = "<answer>", "</answer>"
_MAX_LENGTH = 10_000
# To make one problem, candidates of the other split included.
_MAKE_SECONDS = 120.0


@dataclasses.dataclass(frozen=True)
class ReasoningGym:
  """Makes problems of one task, and judges by that task's own scorer.

  Attributes:
    task: its name in reasoning_gym; `composite` mixes several.
    settings: of the task, by name; JSON.
    seed: of everything that is made.
    feedback: whether a verdict says what was wrong.
    reveal_answer: whether that feedback names the expected answer.
    instruction: stands after each question; empty adds nothing.
    seconds: to score one answer.
  """

  task: str
  settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  seed: int = 0
  feedback: bool = True
  reveal_answer: bool = False
  instruction: str = (
    "Put the final answer, and nothing else, between <answer> and </answer>."
  )
  seconds: float = 5.0
  required_fields: ClassVar = ("prompt", "answer")
  _workers: process_pool.ProcessPool = dataclasses.field(
    default_factory=lambda: process_pool.ProcessPool(
      reasoning_gym_worker.__name__
    ),
    init=False,
    repr=False,
    compare=False,
  )

  def __post_init__(self) -> None:
    if not reasoning_gym_worker.is_installed():
      raise ValueError(
        "environment reasoning_gym needs the package of that name, which is "
        f"not installed: {reasoning_gym_worker.INSTALL}"
      )
    if not self.seconds > 0:
      raise ValueError(f"seconds={self.seconds} must be above 0")
    try:
      json.dumps(dict(self.settings))
    except (TypeError, ValueError) as error:
      raise ValueError(f"settings={self.settings} are no JSON: {error}") from (
        None
      )
    self._told(_MAKE_SECONDS, do="check")

  def problem(self, row: Mapping[str, Any], index: int = 0) -> Problem:
    """Reads a row of a data file, such as the package itself may write.

    Args:
      row: `prompt` and `answer`, optionally `system`, and `metadata`, which
        the scorers of many tasks read.
      index: identity of the row within its data set.

    Raises:
      ValueError: a field is missing or malformed.
    """
    messages = list(rows.messages(row))
    answer, metadata = rows.text(row, "answer"), row.get("metadata", {})
    if not answer:
      raise ValueError("the row has no answer")
    if not isinstance(metadata, Mapping):
      raise ValueError(
        f"metadata must be a mapping, got {type(metadata).__name__}"
      )
    question = messages[-1]["content"]
    entry = {"question": question, "answer": answer, "metadata": metadata}
    messages[-1] = self._asked(question)
    return _problem(index, messages, answer, entry)

  def generate(
    self, index: int, split: Literal["train", "evaluation"]
  ) -> Problem:
    """Makes a problem; the splits have no question in common.

    Which of the two a question belongs to is in its text, half of them to each.

    Raises:
      ValueError: there is no such split, or the task makes no problem for it:
        it fails, takes too long, or has too few.
    """
    if split not in ("train", "evaluation"):
      raise ValueError(f"split={split!r} must be 'train' or 'evaluation'")
    made = self._told(
      _MAKE_SECONDS, do="make", seed=self.seed, index=index, split=split
    )
    entry = {"number": made["number"], "digest": made["digest"]}
    return _problem(
      index, [self._asked(made["question"])], made["answer"], entry
    )

  def demonstration(
    self, index: int, teacher_prompt: Callable[..., Sequence[Message]]
  ) -> Demonstration:
    """The answer in its tags: the tasks have no worked solutions.

    Raises:
      ValueError: the task has no answer to show, where many are right.
    """
    problem = self.generate(index, "train")
    if problem.solution is None:
      raise ValueError(
        f"task {self.task} makes problems without an answer to show; it can "
        "be learned from rewards and feedback alone"
      )
    return Demonstration(
      index=index,
      messages=tuple(teacher_prompt(problem)),
      solution=problem.solution,
    )

  def judge(self, problem: Problem, completion: str) -> Verdict:
    """Has the task score what stands in the last `<answer>…</answer>`.

    Space around it does not count. The scorer runs in a process that is killed
    at the deadline, and may give part of the reward.

    Returns:
      A verdict that is CORRECT with a score of 1 alone, ERROR where the scorer
      raises, and CRASHED where it gives no score or the task has made another
      problem than the one that was asked; `details` has the answer, or None,
      as `parsed`.
    """
    found = envs_text.last_tagged(completion, "answer")
    text = (found or "").strip()
    details = {"parsed": None if found is None else text[:_MAX_LENGTH]}
    reward = 0.0
    if not text or len(text) > _MAX_LENGTH:
      status, feedback = Status.UNPARSABLE, _format_feedback(found)
    else:
      reward, status, feedback = self._scored(problem, text)
    if status is Status.CORRECT:
      return Verdict(1.0, "", status, details)
    if self.reveal_answer and problem.answer and feedback:
      feedback += f" The correct answer is {problem.answer}."
    return Verdict(reward, feedback if self.feedback else "", status, details)

  def _scored(self, problem: Problem, text: str) -> tuple[float, Status, str]:
    shown = envs_text.shortened(text)
    question = {"do": "score", "entry": problem.details, "answer": text}
    said: dict[str, Any]
    try:
      said = self._workers.ask(self._about(question), self.seconds)
    except process_pool.WorkerTimeoutError:
      return (
        0.0,
        Status.TIMEOUT,
        f"{shown} could not be scored within {self.seconds:g} s; write the "
        "answer as simply as it can be.",
      )
    except process_pool.WorkerCrashError:
      said = {"error": "crash"}
    if said.get("is_broken"):
      return 0.0, Status.CRASHED, ""
    if "error" in said:
      return (
        0.0,
        Status.ERROR,
        f"{shown} could not be read as an answer; write it in the form that "
        "was asked for.",
      )
    score = said["score"]
    if score == 1:
      return 1.0, Status.CORRECT, ""
    part = f"; its score is {score:.3g} of 1" if score > 0 else ""
    return score, Status.WRONG, f"{shown} is not the correct answer{part}."

  def _asked(self, question: str) -> Message:
    if self.instruction:
      question = f"{question}\n\n{self.instruction}"
    return {"role": "user", "content": question}

  def _about(self, question: Mapping[str, Any]) -> dict[str, Any]:
    return {"task": self.task, "settings": dict(self.settings), **question}

  def _told(self, seconds: float, **question: Any) -> dict[str, Any]:
    """What the task says; raises ValueError where it says nothing."""
    try:
      said = self._workers.ask(self._about(question), seconds)
    except process_pool.WorkerTimeoutError:
      said = {"error": f"nothing came of it within {seconds:g} s"}
    except process_pool.WorkerCrashError as error:
      said = {"error": str(error)}
    if said.get("refused"):
      raise ValueError(f"environment reasoning_gym: {said['error']}")
    if "error" in said:
      raise ValueError(
        f"environment reasoning_gym: task {self.task}: {said['error']}"
      )
    return said


def _problem(
  index: int,
  messages: Sequence[Message],
  answer: str | None,
  entry: Mapping[str, Any],
) -> Problem:
  return Problem(
    index=index,
    messages=tuple(messages),
    answer=answer or "",
    solution=f"{_OPEN}{answer}{_CLOSE}" if answer else None,
    details=entry,
  )


def _format_feedback(found: str | None) -> str:
  if found is None:
    fault = f"no answer was found between {_OPEN} and {_CLOSE}"
  elif not found.strip():
    fault = f"nothing stands between {_OPEN} and {_CLOSE}"
  else:
    fault = f"the answer has {len(found.strip())} characters"
  return (
    f"The format is wrong: {fault}. Write the final answer, and nothing else, "
    f"between {_OPEN} and {_CLOSE}."
  )
