"""Lets tasks of reasoning_gym make problems and score answers."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

from distil_jax.config.environments import ReasoningGymConfig
from distil_jax.envs import completion_text as envs_text
from distil_jax.envs import process_pool, reasoning_gym_worker, rows
from distil_jax.types import Demonstration, Message, Problem, Status, Verdict

_OPEN, _CLOSE = "<answer>", "</answer>"
_MAX_LENGTH = 10_000
# Time limit for making one problem, including rejected candidates of the other
# split.
_MAKE_SECONDS = 120.0


@dataclasses.dataclass(frozen=True)
class ReasoningGym:
  """Makes problems of one task, and judges by that task's own scorer.

  Attributes:
    config: The task, its settings and seed, and how much the feedback says.
  """

  config: ReasoningGymConfig
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
    settings = self.config.settings
    try:
      json.dumps(settings)
    except (TypeError, ValueError) as error:
      raise ValueError(f"settings={settings} are no JSON: {error}") from None
    # A task that cannot be used is refused before anything is trained.
    self._ask(_MAKE_SECONDS, do="check")

  def problem(self, row: Mapping[str, Any], index: int = 0) -> Problem:
    """Reads a row of a data file, which reasoning_gym may have written.

    Args:
      row: `prompt` and `answer`, optionally `system`, and `metadata`, which
        the scorers of many tasks read.
      index: Identity of the row within its data set.

    Raises:
      ValueError: A field is missing or malformed.
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
    messages[-1] = self._user_message(question)
    return _problem(index, messages, answer, entry)

  def generate(
    self, index: int, split: Literal["train", "evaluation"]
  ) -> Problem:
    """Makes a problem; no question is in both splits.

    A hash of the question's text decides to which split it belongs, half of
    them to each.

    Raises:
      ValueError: There is no such split, or the task makes no problem for it:
        it fails, exceeds its time limit, or has too few questions.
    """
    if split not in ("train", "evaluation"):
      raise ValueError(f"split={split!r} must be 'train' or 'evaluation'")
    made = self._ask(
      _MAKE_SECONDS, do="make", seed=self.config.seed, index=index, split=split
    )
    # The worker makes the problem again from its number. The digest shows if
    # another version of the task makes another one.
    entry = {"number": made["number"], "digest": made["digest"]}
    return _problem(
      index, [self._user_message(made["question"])], made["answer"], entry
    )

  def demonstration(
    self, index: int, teacher_prompt: Callable[..., Sequence[Message]]
  ) -> Demonstration:
    """Returns the answer in its tags: the tasks have no worked solutions.

    Raises:
      ValueError: The task has no answer to show because many are right.
    """
    problem = self.generate(index, "train")
    if problem.solution is None:
      raise ValueError(
        f"task {self.config.task} makes problems without an answer to show; "
        "it can be learned from rewards and feedback alone"
      )
    return Demonstration(
      index=index,
      messages=tuple(teacher_prompt(problem)),
      solution=problem.solution,
    )

  def judge(self, problem: Problem, completion: str) -> Verdict:
    """Lets the task score the content of the last `<answer>…</answer>`.

    Space around it is ignored. The scorer runs in a process that is killed at
    the deadline, and may give part of the reward.

    Returns:
      A verdict that is CORRECT only with a score of 1, ERROR if the scorer
      raises, and CRASHED if it gives no score or the task makes another problem
      than the one that was asked; `details` has the answer, or None, as
      `parsed`.
    """
    found = envs_text.last_answer(completion)
    text = (found or "").strip()
    details = {"parsed": None if found is None else text[:_MAX_LENGTH]}
    reward = 0.0
    if not text or len(text) > _MAX_LENGTH:
      status, feedback = Status.UNPARSABLE, _format_feedback(found)
    else:
      reward, status, feedback = self._scored(problem, text)
    if status is Status.CORRECT:
      return Verdict(1.0, "", status, details)
    if self.config.reveal_answer and problem.answer and feedback:
      feedback += f" The correct answer is {problem.answer}."
    return Verdict(
      reward, feedback if self.config.feedback else "", status, details
    )

  def _scored(self, problem: Problem, text: str) -> tuple[float, Status, str]:
    shown = envs_text.shortened(text)
    question = {"do": "score", "entry": problem.details, "answer": text}
    answer: dict[str, Any]
    try:
      answer = self._workers.ask(self._about(question), self.config.seconds)
    except process_pool.WorkerTimeoutError:
      return (
        0.0,
        Status.TIMEOUT,
        f"{shown} could not be scored within {self.config.seconds:g} s; write "
        "the answer as simply as it can be.",
      )
    except process_pool.WorkerCrashError:
      answer = {"error": "crash"}
    # A scorer that is broken says nothing about the answer.
    if answer.get("is_broken"):
      return 0.0, Status.CRASHED, ""
    if "error" in answer:
      return (
        0.0,
        Status.ERROR,
        f"{shown} could not be read as an answer; write it in the form that "
        "was asked for.",
      )
    score = answer["score"]
    if score == 1:
      return 1.0, Status.CORRECT, ""
    part = f"; its score is {score:.3g} of 1" if score > 0 else ""
    return score, Status.WRONG, f"{shown} is not the correct answer{part}."

  def _user_message(self, question: str) -> Message:
    if self.config.instruction:
      question = f"{question}\n\n{self.config.instruction}"
    return {"role": "user", "content": question}

  def _about(self, question: Mapping[str, Any]) -> dict[str, Any]:
    task, settings = self.config.task, self.config.settings
    return {"task": task, "settings": settings, **question}

  def _ask(self, seconds: float, **question: Any) -> dict[str, Any]:
    """Returns the worker's answer; raises ValueError if it is an error."""
    try:
      answer = self._workers.ask(self._about(question), seconds)
    except process_pool.WorkerTimeoutError:
      answer = {"error": f"it gave no answer within {seconds:g} s"}
    except process_pool.WorkerCrashError as error:
      answer = {"error": str(error)}
    if answer.get("refused"):
      raise ValueError(f"environment reasoning_gym: {answer['error']}")
    if "error" in answer:
      task = self.config.task
      raise ValueError(
        f"environment reasoning_gym: task {task}: {answer['error']}"
      )
    return answer


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
