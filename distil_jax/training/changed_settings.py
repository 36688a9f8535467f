"""Compares the settings of a run with those of the checkpoint it goes on from.

Some change at most the rounding of what is computed, and may differ. Others
change what is learned, and may differ on purpose. The rest decides what the
checkpoint holds, or which data comes next.
"""

import json
import pathlib
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

NAME = "changes.jsonl"

# Keys, or sections, that change at most the rounding.
_FREE = (
  "name",
  "train.num_steps",
  "train.run_directory",
  "train.allow_changes",
  "train.max_skipped_updates",
  "model.attention",
  "model.remat",
  "objective.chunk_size",
  "optimizer.micro_batch_size",
  "optimizer.tokens_per_micro_batch",
  "teacher.share_prefix",
  "teacher.model.attention",
  "teacher.server.url",
  "teacher.server.api_key_variable",
  "teacher.server.timeout",
  "teacher.server.max_retries",
  "teacher.server.max_concurrency",
  "teacher.server.max_failures",
  "teacher.server.max_lost_steps",
  "rollout.num_slots",
  "rollout.cache_dtype",
  "rollout.mesh",
  "tools.num_workers",
  "tools.call_seconds",
  "judging",
  "sandbox",
  "evaluation",
  "checkpoint",
  "logging",
  "compilation",
  "profile",
  "mesh",
)
# How a data set of a mixture is evaluated is as free as `evaluation`.
_OF_EVALUATION = re.compile(r"mixture\.[^.]*\.evaluation(\.|$)")
# Those that may change on purpose: the checkpoint fits whatever they are.
_ON_PURPOSE = (
  "train.num_steps",
  "optimizer.learning_rate",
  "optimizer.warmup_steps",
  "optimizer.schedule",
  "optimizer.decay_steps",
  "optimizer.final_learning_rate",
  "optimizer.weight_decay",
  "optimizer.decay",
  "optimizer.max_gradient_norm",
  "data.num_epochs",
  "data.train",
  "data.evaluation",
  "rollout.max_prompt_length",
  "rollout.max_completion_length",
  "rollout.temperature",
  "rollout.top_k",
  "rollout.top_p",
  "rollout.min_p",
  "rollout.stop",
  "teacher.max_prompt_length",
  "teacher.ema_rate",
  "teacher.solution",
  "teacher.feedback",
  "teacher.success_threshold",
  "teacher.learn_from",
  "teacher.first_tokens",
  "teacher.skip",
  "objective.max_teacher_entropy",
)

Change = tuple[Any, Any]


def changes(
  old: Mapping[str, Any],
  new: Mapping[str, Any],
  *,
  num_steps_is_free: bool,
) -> dict[str, Change]:
  """Returns what differs by more than rounding, the old and the new value.

  Args:
    old: settings of the checkpoint by their dotted paths.
    new: settings now.
    num_steps_is_free: false if the schedule depends on the number of steps.
  """
  free: set[str] = set(_FREE)
  if not num_steps_is_free:
    free.remove("train.num_steps")
  return {
    key: (old.get(key), new.get(key))
    for key in {**old, **new}
    if old.get(key) != new.get(key)
    and not _is_in(key, free)
    and not _OF_EVALUATION.match(key)
  }


def by_content(
  found: Mapping[str, Change],
  before: Mapping[str, str],
  now: Mapping[str, str],
) -> dict[str, Change]:
  """Returns changed settings by what their paths lead to.

  Another path to the same is no change, and the same path to other data is one.

  Args:
    found: settings that differ, by their keys.
    before: from `content.digests`, of the checkpoint.
    now: from `content.digests`.
  """
  kept = {
    key: change
    for key, change in found.items()
    if key not in before or before[key] != now.get(key)
  }
  # Weights may be stored anew in other files; rows have their order.
  edited = {
    key: (f"content {digest}", f"content {now[key]}")
    for key, digest in before.items()
    if ".directory" not in key and key not in found and key in now
    if digest != now[key]
  }
  return kept | edited


def refusal(found: Mapping[str, Change], allowed: Sequence[str]) -> str | None:
  """Returns what to do about changes that are not allowed; None if all are.

  Args:
    found: from `changes`.
    allowed: `train.allow_changes`.
  """
  refused = {
    key: change
    for key, change in found.items()
    if not _is_in(key, allowed) or not _may_change(key, change)
  }
  if not refused:
    return None
  lines = [
    f"  {key}: {before!r} in the checkpoint, {now!r} now"
    for key, (before, now) in refused.items()
  ]
  possible = [key for key, x in refused.items() if _may_change(key, x)]
  cure = "restore them, or set another train.run_directory"
  if possible:
    cure += f"; to change them on purpose give --allow {' '.join(possible)}"
    if len(possible) < len(refused):
      cure += ", which the others cannot be"
  return f"{cure}:\n" + "\n".join(lines)


def note(
  directory: pathlib.Path, step: int, found: Mapping[str, Change]
) -> None:
  """Adds changes to the run's folder, once each.

  Args:
    directory: the run's folder.
    step: the checkpoint's step; the changes apply after it.
    found: from `changes`.
  """
  path = directory / NAME
  before = path.read_text(encoding="utf-8") if path.exists() else ""
  lines = [
    json.dumps({"step": step, "key": key, "before": old, "now": new}) + "\n"
    for key, (old, new) in found.items()
  ]
  # A run that was killed before its next checkpoint comes here again.
  added = [line for line in lines if line not in before]
  if added:
    with path.open("a", encoding="utf-8") as file:
      file.writelines(added)


def _may_change(key: str, change: Change) -> bool:
  if key == "optimizer.max_gradient_norm":
    # With a clip the optimizer has one state more than without.
    return None not in change
  return _is_in(key, _ON_PURPOSE)


def _is_in(key: str, names: Collection[str]) -> bool:
  return any(key == name or key.startswith(f"{name}.") for name in names)
