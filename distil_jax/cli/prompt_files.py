"""Reads prompts from words and files, and writes what a policy answers."""

import dataclasses
import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from distil_jax.data import data_files, datasets
from distil_jax.data.data_files import DataError
from distil_jax.envs import conversations as row_conversations
from distil_jax.envs.base import Environment
from distil_jax.envs.judge_pool import JudgePool
from distil_jax.generation.engine_config import EngineConfig
from distil_jax.generation.generate import sample_completions
from distil_jax.generation.policy import Policy
from distil_jax.generation.sampling_params import SamplingParams
from distil_jax.generation.usage import Report
from distil_jax.types import Message, Problem, StopReason, Verdict

Conversation = tuple[Message, ...]

STDIN = "-"
_LINES = ".txt"


@dataclasses.dataclass(frozen=True)
class Answer:
  """Holds one completion.

  Attributes:
    prompt: Number of the prompt, from 1.
    sample: Number of the sample of this prompt, from 1.
    messages: The prompt.
    completion: Text of the completion.
    stop_reason: Why the completion ended.
    num_tokens: Tokens of the completion, the end token included.
    log_prob: Log-probability of the completion under the policy's own softmax,
      before temperature and truncation, nats.
    verdict: Judgement of the completion; None if nobody can judge it.
  """

  prompt: int
  sample: int
  messages: Conversation
  completion: str
  stop_reason: StopReason
  num_tokens: int
  log_prob: float
  verdict: Verdict | None = None


@dataclasses.dataclass(frozen=True)
class Prompt:
  """Holds what is asked.

  Attributes:
    messages: The conversation.
    problem: What a completion is judged by; None if nothing is known of that.
  """

  messages: Conversation
  problem: Problem | None = None


def prompts(
  texts: Sequence[str],
  file: str | None = None,
  environment: Environment | None = None,
) -> list[Prompt]:
  """Returns `conversations`, and the problems of rows that have an answer.

  Args:
    texts: See `conversations`.
    file: See `conversations`.
    environment: Reads rows with `prompt` and `answer` as in training; None
      reads none.

  Raises:
    DataError: See `conversations`; or the environment refuses a row.
  """
  found = []
  for place, row in _all_rows(texts, file):
    messages = _conversation(row, place)
    if environment is None or not {"prompt", "answer"} <= set(row):
      found.append(Prompt(messages))
      continue
    try:
      problem = environment.problem(row)
    except ValueError as error:
      raise DataError(
        f"{place}: has an answer, but is no problem: {error}; leave the answer "
        "out to ask without judging"
      ) from error
    found.append(Prompt(tuple(problem.messages), problem))
  return found


def judged(
  found: Sequence[Answer], asked: Sequence[Prompt], judges: JudgePool
) -> list[Answer]:
  """Returns the answers, with a verdict if their prompt is a problem."""
  pairs = [(answer, asked[answer.prompt - 1].problem) for answer in found]
  waiting = [
    problem and judges.submit(problem, answer.completion)
    for answer, problem in pairs
  ]
  return [
    answer
    if verdict is None
    else dataclasses.replace(answer, verdict=verdict.result())
    for (answer, _), verdict in zip(pairs, waiting, strict=True)
  ]


def conversations(
  texts: Sequence[str], file: str | None = None
) -> list[Conversation]:
  """Returns the prompts: first the texts, then those of the file.

  Args:
    texts: Each one is a user's message.
    file: `.txt` has a prompt a line; a data file (see `datasets.read_rows`)
      has in each row `prompt`, a text or a conversation, and perhaps `system`;
      or `messages`; `-` is the
      standard input, with a prompt a line. Blank lines do not count.

  Raises:
    DataError: There is no prompt, a prompt is empty, or the file cannot be
      used.
  """
  return [_conversation(row, place) for place, row in _all_rows(texts, file)]


def check_prompts(
  policy: Policy,
  asked: Sequence[Conversation],
  max_completion_length: int,
) -> None:
  """Checks that each prompt is complete and leaves room for its completion.

  Raises:
    ValueError: A prompt is too long, or the chat template refuses it or leaves
      a message out.
  """
  positions = policy.config.max_positions
  # A template treats the same roles alike, so each order of them is checked
  # once.
  for roles in {tuple(m["role"] for m in messages) for messages in asked}:
    policy.tokenizer.check_template(roles)
  for number, messages in enumerate(asked, start=1):
    length = len(policy.tokenizer.encode_messages(messages))
    if length + max_completion_length > positions:
      room = positions - length
      cure = (
        f"ask for at most --max-tokens {room}" if room > 0 else "shorten it"
      )
      raise ValueError(
        f"prompt {number} has {length} tokens, and with completions of "
        f"{max_completion_length} that is more than the {positions} positions "
        f"of the model; {cure}"
      )


def answers(
  policy: Policy,
  asked: Sequence[Conversation],
  key: jax.Array,
  sampling: SamplingParams,
  *,
  group_size: int,
  engine_config: EngineConfig,
  report: Report,
) -> list[Answer]:
  """Samples completions of each conversation.

  Args:
    policy: Samples the completions.
    asked: From `conversations`.
    key: The same key gives the same answers.
    sampling: How tokens are chosen and where completions end.
    group_size: G, answers to each conversation.
    engine_config: Slots and type of the KV cache.
    report: Called with the number of tokens and of completions that are done.

  Raises:
    ValueError: See `generate.generate`.
  """
  rollout = sample_completions(
    policy,
    asked,
    key,
    sampling,
    group_size=group_size,
    engine_config=engine_config,
    report=report,
  )
  mask = np.asarray(rollout.completion_mask)
  # Sums of many terms need more digits than float32 has.
  log_probs = np.asarray(rollout.log_probs, np.float64)
  texts = policy.texts(rollout.completion_ids, rollout.completion_mask)
  reasons = np.asarray(rollout.stop_reasons)
  return [
    Answer(
      prompt=row // group_size + 1,
      sample=row % group_size + 1,
      messages=asked[row // group_size],
      completion=text,
      stop_reason=StopReason(int(reasons[row])),
      num_tokens=int(mask[row].sum()),
      log_prob=float(log_probs[row].sum(where=mask[row] == 1)),
    )
    for row, text in enumerate(texts)
  ]


def to_text(found: Sequence[Answer]) -> str:
  """Returns a lone completion, or each one below a line that names it."""
  if len(found) == 1:
    return found[0].completion + _judgement(found[0])
  return "\n\n".join(
    f"--- prompt {a.prompt}, sample {a.sample}: "
    f"{a.stop_reason.name.lower()}, {a.num_tokens} tokens\n{a.completion}"
    + _judgement(a)
    for a in found
  )


def _judgement(answer: Answer) -> str:
  verdict = answer.verdict
  if verdict is None:
    return ""
  said = f"\n{verdict.feedback}" if verdict.feedback else ""
  return f"\n--- {verdict.status}, reward {verdict.reward:g}{said}"


def to_json(found: Sequence[Answer]) -> str:
  """Returns the answers as JSON, one object a line."""
  return "\n".join(json.dumps(_record(a)) for a in found)


def _record(answer: Answer) -> dict[str, Any]:
  verdict = answer.verdict
  found = vars(answer) | {"stop_reason": answer.stop_reason.name.lower()}
  del found["verdict"]
  if verdict is None:
    return found
  return found | {
    "reward": float(verdict.reward),
    "status": str(verdict.status),
    "feedback": verdict.feedback,
  }


def _all_rows(
  texts: Sequence[str], file: str | None
) -> list[tuple[str, Mapping[str, Any]]]:
  """Returns each prompt's place, and its row."""
  found: list[tuple[str, Mapping[str, Any]]] = [
    (f"prompt {number}", {"prompt": text})
    for number, text in enumerate(texts, start=1)
  ]
  if file is not None:
    found += _rows(file)
  if not found:
    raise DataError(
      "there is no prompt: give one after the config, or a file of them with "
      "--file"
    )
  return found


def _rows(file: str) -> Sequence[tuple[str, Mapping[str, Any]]]:
  """Returns each prompt's place in a file, and its row."""
  path = pathlib.Path(file)
  if file == STDIN:
    return _lines("the standard input", sys.stdin.read())
  if path.suffix.lower() == _LINES:
    return _lines(file, _read(path))
  if data_files.kind_of(path):
    data = datasets.read_rows(file, fields={}, malformed="error", required=())
    return [(row.place, row.fields) for row in data.rows]
  raise DataError(
    f"{file}: files of prompts are {_LINES}, with one a line, or "
    f"{', '.join(data_files.KINDS)}; or {STDIN}, the standard input"
  )


def _read(path: pathlib.Path) -> str:
  try:
    # Some editors put a byte order mark in front of UTF-8.
    return path.read_text(encoding="utf-8-sig")
  except (OSError, UnicodeDecodeError) as error:
    raise DataError(f"{path} cannot be read: {error}") from error


def _lines(name: str, content: str) -> list[tuple[str, Mapping[str, Any]]]:
  if not content.strip():
    raise DataError(f"{name} holds no prompts")
  return [
    (f"{name}, line {number}", {"prompt": line.removesuffix("\r")})
    for number, line in enumerate(content.split("\n"), start=1)
    if line.strip()
  ]


def _conversation(row: Mapping[str, Any], place: str) -> Conversation:
  """Returns the messages of a row; refuses malformed and empty ones."""
  if ("prompt" in row) == ("messages" in row):
    raise DataError(
      f"{place}: needs either 'prompt' or 'messages', has {sorted(row)}"
    )
  messages = row.get("messages")
  if "prompt" in row:
    question = {"role": "user", "content": row["prompt"]}
    messages = [*row_conversations.earlier(row), question]
    if row.get("system"):
      messages.insert(0, {"role": "system", "content": row["system"]})
  if not isinstance(messages, Sequence) or not all(
    isinstance(message, Mapping)
    and isinstance(message.get("role"), str)
    and isinstance(message.get("content"), str)
    for message in messages
  ):
    raise DataError(
      f"{place}: 'prompt' must be a string, 'messages' a list of objects with "
      "the strings 'role' and 'content'"
    )
  if not any(message["content"].strip() for message in messages):
    raise DataError(f"{place} is empty")
  for message in messages:
    try:
      message["content"].encode("utf-8")
    except UnicodeEncodeError as error:
      raise DataError(f"{place} is no valid Unicode: {error}") from error
  return tuple(
    {name: m[name] for name in ("role", "content")} for m in messages
  )
