"""Asks a teacher about the samples of a batch, many at once."""

import concurrent.futures
import dataclasses
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from distil_jax.distributed import collectives
from distil_jax.training.remote_teacher.http_client import (
  HttpClient,
  RefusedError,
  ServerError,
)
from distil_jax.training.remote_teacher.protocols import (
  AnswerError,
  Asking,
  List,
)
from distil_jax.types import BatchStats, TrainBatch

_PATH = "/completions"
_MAX_SEED = 2**31


class TeacherServerError(RuntimeError):
  """The error of a teacher that will not answer any more."""


@dataclasses.dataclass(frozen=True)
class Question:
  """A sample whose teacher is asked.

  Attributes:
    row: its row in this process's batch.
    prompt: the teacher's.
    completion: the student's tokens, and what tools wrote between them.
    places: those of the completion's tokens at which the teacher is asked.
    num_states: number of places at which it could be asked.
    seeds: one for each place.
  """

  row: int
  prompt: tuple[int, ...]
  completion: tuple[int, ...]
  places: np.ndarray
  num_states: int
  seeds: np.ndarray


class RemoteTeacher:
  """Fills the teacher's lists into batches.

  What it asks and draws depends on the seed, the step and the sample alone, so
  that a resumed run asks the same.
  """

  def __init__(
    self,
    client: HttpClient,
    asking: Asking,
    *,
    seed: int,
    max_states: int | None = None,
    max_concurrency: int = 8,
    max_lost_steps: int = 3,
    process: int = 0,
    warn: Callable[[str], None] = print,
  ):
    """Takes the parts.

    Args:
      client: sends the requests.
      asking: writes and reads them.
      seed: of the run.
      max_states: tokens of a sample, or of a turn whose teacher has a prompt
        of its own, at which the teacher is asked; None means all.
      max_concurrency: requests under way at once.
      max_lost_steps: steps in a row without an answer that end the run.
      process: number of this process, each of which asks for its own samples.
      warn: told why samples were not answered.
    """
    self.client = client
    self.asking = asking
    self._seed = seed
    self._max_states = max_states
    self._max_concurrency = max_concurrency
    self._max_lost_steps = max_lost_steps
    self._process = process
    self._warn = warn
    self._num_lost_steps = 0

  def __call__(
    self, step: int, batch: TrainBatch, stats: BatchStats
  ) -> tuple[TrainBatch, BatchStats]:
    """Returns the batch with the teacher's lists.

    A sample that the teacher did not answer loses its signal.

    Args:
      step: the training steps done before.
      batch: of this process, on the host.
      stats: has the teacher's prompts.

    Raises:
      TeacherServerError: the server has not answered for several steps, or
        refuses everybody.
    """
    # Rows count through all processes, so that another number of processes
    # asks the same.
    first_row = self._process * len(batch.completion_ids)
    questions = [
      self._question(step, batch, stats, int(row), first_row, turn)
      for row in np.flatnonzero(np.asarray(batch.sample_mask))
      for turn in range(_num_turns(batch))
    ]
    questions = [q for q in questions if len(q.places)]
    before = self.client.num_requests, self.client.num_retries
    answers, problem, refusal = self._answers(questions)
    # A sample of which the teacher of one turn is not known has no signal.
    lost = {
      question.row
      for question, answer in zip(questions, answers, strict=True)
      if answer is None
    }
    if lost:
      self._warn(
        f"step {step + 1}: the teacher's server did not answer {len(lost)} of "
        f"{len({question.row for question in questions})} samples: {problem}"
      )
    self._check_answered(answers, problem, refusal)
    lists, own, weights = self._arrays(batch, questions, answers)
    sample_mask = np.array(batch.sample_mask)
    sample_mask[list(lost)] = 0
    counts = {
      "unanswered": len(lost),
      "requests": self.client.num_requests - before[0],
      "retries": self.client.num_retries - before[1],
    }
    batch = dataclasses.replace(
      batch,
      sample_mask=sample_mask,
      teacher_candidate_ids=lists[0],
      teacher_candidate_log_probs=lists[1],
      teacher_log_probs=own,
      teacher_weights=weights,
    )
    return batch, dataclasses.replace(stats, server_counts=counts)

  def _question(
    self,
    step: int,
    batch: TrainBatch,
    stats: BatchStats,
    row: int,
    first_row: int,
    turn: int = 0,
  ) -> Question:
    prompt = np.asarray(stats.teacher_prompt_ids[row])
    is_prompt = np.asarray(stats.teacher_prompt_mask[row]) == 1
    if turn:
      prompt = np.asarray(batch.later_prompt_ids[row, turn - 1])
      is_prompt = np.asarray(batch.later_prompt_mask[row, turn - 1]) == 1
    is_token = np.asarray(batch.completion_mask[row]) == 1
    is_asked = np.asarray(batch.student_tokens[row]) == 1
    if batch.taught_mask is not None:
      is_asked &= np.asarray(batch.taught_mask[row]) == 1
    if batch.turn_numbers is not None:
      is_asked &= np.asarray(batch.turn_numbers[row]) == turn
    places = np.flatnonzero(is_asked)
    num_states = len(places)
    # The first turn draws what a sample without further turns would.
    numbers = [self._seed, step, first_row + row, *([turn] if turn else [])]
    rng = np.random.default_rng(numbers)
    if self._max_states is not None and num_states > self._max_states:
      places = np.sort(rng.choice(places, self._max_states, replace=False))
    return Question(
      row=row,
      prompt=tuple(prompt[is_prompt].tolist()),
      completion=tuple(
        np.asarray(batch.completion_ids[row])[is_token].tolist()
      ),
      places=places,
      num_states=num_states,
      seeds=rng.integers(_MAX_SEED, size=len(places)),
    )

  def _answers(
    self, questions: Sequence[Question]
  ) -> tuple[list[list[List] | None], str | None, str | None]:
    """Returns the lists of each question, None without.

    And a problem of one, and why the server answers nobody any more.
    """
    refusal = None
    found: list[list[List] | None] = [None] * len(questions)
    problems: list[str] = []
    stop = threading.Event()
    if self.client.is_open and questions:
      # One sample finds out whether the server is back.
      self.client.try_again()
    pool = concurrent.futures.ThreadPoolExecutor(self._max_concurrency)
    try:
      futures = {
        pool.submit(self._ask, *request, stop): (number, place)
        for number, question in enumerate(questions)
        for place, request in enumerate(self._requests(question))
      }
      parts: dict[int, dict[int, Any]] = {n: {} for n in range(len(questions))}
      for future in concurrent.futures.as_completed(futures):
        number, place = futures[future]
        try:
          parts[number][place] = future.result()
        except RefusedError as error:
          if error.is_access:
            refusal = str(error)
            stop.set()
          problems.append(str(error))
        except (ServerError, AnswerError) as error:
          problems.append(str(error))
    except BaseException:
      # After an interrupt nobody waits for what is under way.
      self.client.close()
      raise
    finally:
      stop.set()
      pool.shutdown(wait=False, cancel_futures=True)
    for number, question in enumerate(questions):
      lists = [parts[number][place] for place in sorted(parts[number])]
      if len(lists) == self._num_requests(question):
        found[number] = self._lists(question, lists)
    return found, problems[0] if problems else None, refusal

  @property
  def _asks_whole(self) -> bool:
    return self.asking.protocol != "next_token"

  def _num_requests(self, question: Question) -> int:
    return 1 if self._asks_whole else len(question.places)

  def _requests(
    self, question: Question
  ) -> Iterator[tuple[Sequence[int], int | None]]:
    """Yields the tokens of each request, and its seed; None asks for all."""
    whole = (*question.prompt, *question.completion)
    if self._asks_whole:
      yield whole, None
      return
    for place, seed in zip(question.places, question.seeds, strict=True):
      yield whole[: len(question.prompt) + place], int(seed)

  def _ask(
    self, ids: Sequence[int], seed: int | None, stop: threading.Event
  ) -> list[List]:
    if stop.is_set():
      raise ServerError("nobody waits for the answer")
    asking = self.asking
    if seed is None:
      answer = self.client.post(_PATH, asking.of_sequence(ids))
      return asking.read_sequence(answer, ids)
    answer = self.client.post(_PATH, asking.of_state(ids, seed))
    return [asking.read_state(answer)]

  def _lists(
    self, question: Question, answers: Sequence[list[List]]
  ) -> list[List]:
    """Returns the list at each place of a question."""
    if not self._asks_whole:
      return [lists[0] for lists in answers]
    # The list in row i is about the token at place i + 1 of the sequence.
    first = len(question.prompt) - 1
    return [answers[0][first + place] for place in question.places]

  def _arrays(
    self,
    batch: TrainBatch,
    questions: Sequence[Question],
    answers: Sequence[list[List] | None],
  ) -> tuple[
    tuple[np.ndarray, np.ndarray], np.ndarray | None, np.ndarray | None
  ]:
    """Returns the lists, what the student's own tokens have, and weights."""
    shape = (*batch.completion_ids.shape, self.asking.size)
    ids = np.zeros(shape, np.int32)
    log_probs = np.zeros(shape, np.float32)
    # One request for a whole sample tells of its own tokens too.
    own = np.zeros(shape[:-1], np.float32) if self._asks_whole else None
    weights = None
    if self._max_states is not None:
      weights = np.zeros(batch.completion_ids.shape, np.float32)
    for question, answer in zip(questions, answers, strict=True):
      for place, (tokens, values, own_value) in zip(
        question.places, answer or (), strict=bool(answer)
      ):
        # A shorter list has absent tokens at its end.
        log_probs[question.row, place] = -np.inf
        ids[question.row, place, : len(tokens)] = tokens
        log_probs[question.row, place, : len(tokens)] = values
        if own is not None:
          own[question.row, place] = own_value
      if weights is not None and answer is not None:
        # Each place is as likely to be drawn, so this is 1 / its probability.
        share = question.num_states / len(question.places)
        weights[question.row, question.places] = share
    return (ids, log_probs), own, weights

  def _check_answered(
    self,
    answers: Sequence[list[List] | None],
    problem: str | None,
    refusal: str | None,
  ) -> None:
    """Ends the run if the server has gone for good, in all processes.

    All processes must call this, and all raise together: to save the run's
    state takes every one of them.
    """
    sums = collectives.global_sums(
      {
        "refused": float(refusal is not None),
        "asked": float(len(answers)),
        "answered": float(sum(answer is not None for answer in answers)),
      }
    )
    elsewhere = "another process says why"
    if sums["refused"]:
      raise TeacherServerError(
        f"{refusal or elsewhere}; restore access or model, and start the run "
        "again"
      )
    if sums["answered"] or not sums["asked"]:
      self._num_lost_steps = 0
      return
    self._num_lost_steps += 1
    if self._num_lost_steps >= self._max_lost_steps:
      raise TeacherServerError(
        f"no sample of the last {self._num_lost_steps} steps was answered "
        f"(teacher.server.max_lost_steps={self._max_lost_steps}); "
        f"{problem or elsewhere}"
      )


def _num_turns(batch: TrainBatch) -> int:
  """Returns the number of the teacher's prompts for each sample."""
  later = batch.later_prompt_ids
  return 1 if later is None else 1 + later.shape[1]
