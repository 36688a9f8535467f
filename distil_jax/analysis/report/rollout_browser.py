"""Chooses the rollouts of a report, and packs them for the page's script."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from distil_jax.analysis.report.groups import Group
from distil_jax.analysis.report.markup import visible
from distil_jax.analysis.report.run_record import read_rollouts

MAX_ROLLOUTS = 200
_MAX_LETTERS = 12_000  # of one text
_MAX_TOKENS = 2_000  # of one completion
_MAX_ALL_TOKENS = 60_000  # of all completions
# Values by token, and the digits that a colour or a reader needs.
_VALUES = (
  "cost",
  "future_cost",
  "score_weight",
  "log_prob",
  "teacher_log_prob",
)


def rollouts(groups: Sequence[Group]) -> list[dict[str, Any]]:
  """Returns rollouts of the runs for the page, failures first.

  There are at most `MAX_ROLLOUTS`: of each run its share, evenly over its
  steps. Long texts are cut in their middle, and say so.
  """
  runs = [run for group in groups for run in group.runs]
  share = max(1, MAX_ROLLOUTS // len(runs))
  found = []
  for run in runs:
    for record in choose(read_rollouts(run), share):
      found.append(_packed(record) | {"run": run.name})
  found.sort(key=lambda record: (record["reward"], -record["step"]))
  found = found[:MAX_ROLLOUTS]
  room = _MAX_ALL_TOKENS
  for record in found:
    tokens = record.get("tokens")
    if tokens is not None:
      room -= len(tokens["text"])
      if room < 0:
        del record["tokens"]
  return found


def choose(
  records: Sequence[Mapping[str, Any]], count: int
) -> list[Mapping[str, Any]]:
  """Returns at most `count` records, evenly over steps, failures first."""
  if len(records) <= count:
    return list(records)
  by_step: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
  for record in sorted(records, key=lambda record: record["reward"]):
    key = (record["kind"], record["step"])
    by_step.setdefault(key, []).append(record)
  found: list[Mapping[str, Any]] = []
  # The worst of each step, then the second worst, as long as there is room.
  # Latest steps come first, because they say how the policy is now.
  queues = [by_step[key] for key in sorted(by_step, reverse=True)]
  while len(found) < count:
    for queue in queues:
      if queue and len(found) < count:
        found.append(queue.pop(0))
  return found


def _packed(record: Mapping[str, Any]) -> dict[str, Any]:
  found = {
    "kind": record["kind"],
    "step": record["step"],
    "problem": record["problem"],
    "source": record.get("source", ""),
    "messages": _messages(record["messages"]),
    "answer": _cut(str(record.get("answer") or "")),
    "earlier": _messages(record.get("earlier") or ()),
    "completion": _cut(record["completion"]),
    "num_tokens": record["num_tokens"],
    "stop_reason": record["stop_reason"],
    "reward": record["reward"],
    "status": record["status"],
    "feedback": _cut(record["feedback"]),
  }
  if record.get("teacher_prompt") is not None:
    found["teacher_prompt"] = _cut(record["teacher_prompt"])
  if record.get("tokens"):
    found["tokens"] = _tokens(record["tokens"])
  return found


def _messages(messages: Iterable[Mapping[str, str]]) -> list[dict[str, str]]:
  return [
    {"role": visible(m["role"]), "content": _cut(m["content"])}
    for m in messages
  ]


def _tokens(tokens: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
  found: dict[str, Any] = {
    "text": [visible(text) for text in tokens["text"][:_MAX_TOKENS]]
  }
  for name in _VALUES:
    if name in tokens:
      values = tokens[name][:_MAX_TOKENS]
      found[name] = [x if x is None else float(f"{x:.3g}") for x in values]
  for name in ("choices", "teacher_choices"):
    if name in tokens:
      found[name] = [
        [[visible(text), round(prob, 4)] for text, prob in choices or ()]
        for choices in tokens[name][:_MAX_TOKENS]
      ]
  return found


def _cut(text: str) -> str:
  text = visible(text)
  left_out = len(text) - _MAX_LETTERS
  if left_out <= 0:
    return text
  half = _MAX_LETTERS // 2
  return f"{text[:half]}\n… {left_out:,} characters left out …\n{text[-half:]}"
