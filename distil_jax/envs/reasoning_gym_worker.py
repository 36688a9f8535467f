"""Makes and scores tasks of reasoning_gym in a `process_pool.Worker`.

python -m distil_jax.envs.reasoning_gym_worker
"""

import contextlib
import copy
import dataclasses
import difflib
import functools
import hashlib
import importlib
import importlib.util
import json
import logging
import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

from distil_jax.envs import process_pool, restricted_eval

INSTALL = "pip install 'distil_jax[reasoning-gym]'"
# Problems in one data set, the package's own default; further problems come
# from data sets with other seeds.
_SIZE = 500
# On average every second candidate belongs to the requested split.
_MAX_ATTEMPTS = 64
_MAX_CHOICES = 12  # Names that an error message lists.
_MEMORY_BYTES = 4 * 2**30
_CPU_SECONDS = 240


def is_installed() -> bool:
  """Returns True if reasoning_gym is installed."""
  return importlib.util.find_spec("reasoning_gym") is not None


def answer(question: dict[str, Any]) -> dict[str, Any]:
  """Checks a task's settings, makes a problem, or scores an answer.

  Args:
    question: `task` and its `settings`, and depending on `do`:

      check  nothing else
      make   `seed`, `index` and `split`
      score  `answer`, and as `entry` either `number` and `digest` of a problem
        that was made, or `question`, `answer` and `metadata` of a row

  Returns:
    For `make`: `question`, `answer` (None if there is no single one), `number`
    and `digest`. For `score`: `score`. Or `error`, with `refused` if the
    settings are wrong and with `is_broken` if the scorer is.
  """
  task, settings = question["task"], question["settings"]
  try:
    _config(task, settings)
  except Exception as error:
    return {"error": str(error) or repr(error), "refused": True}
  try:
    if question["do"] == "make":
      names = ("seed", "index", "split")
      return _made(task, settings, *(question[name] for name in names))
    if question["do"] == "score":
      return _scored(task, settings, question["entry"], question["answer"])
    return _checked(task, settings)
  except (Exception, RecursionError, MemoryError) as error:
    return {"error": f"{type(error).__name__}: {error}"}


def _config(task: str, settings: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the settings of a task as its constructor takes them.

  Raises:
    ValueError: There is no such task or setting, or the task refuses a value.
  """
  from reasoning_gym import composite, factory

  if task not in factory.DATASETS:
    raise ValueError(
      f"unknown task {task!r}{_nearest(task, list(factory.DATASETS))}"
    )
  schema = factory.DATASETS[task][1]
  known = [field.name for field in dataclasses.fields(schema)]
  for name in settings:
    if name in ("seed", "size"):
      raise ValueError(
        f"task {task}: {name} is not a setting here; environment.seed and "
        "data.num_train say what is made"
      )
    if name not in known:
      raise ValueError(
        f"task {task} has no setting {name!r}{_nearest(name, known)}"
      )
  made = dict(settings)
  if task == "composite":
    parts = [_part(x) for x in made.get("datasets", ())]
    made["datasets"] = [composite.DatasetSpec(**x) for x in parts]
  config = schema(**made)
  if hasattr(config, "validate"):
    try:
      config.validate()
    except (AssertionError, ValueError, TypeError) as error:
      raise ValueError(f"task {task}: {error}") from None
  return made


def _part(settings: Mapping[str, Any]) -> dict[str, Any]:
  """Reads one task of a composite: `name`, optionally `weight`, `config`."""
  part = {"weight": 1.0, "config": {}, **settings}
  if set(part) != {"name", "weight", "config"}:
    raise ValueError(
      f"task composite: {dict(settings)} must have a name, and beside it a "
      "weight and a config at the most"
    )
  return {**part, "config": _config(part["name"], part["config"])}


def _nearest(name: str, known: Sequence[str]) -> str:
  if near := difflib.get_close_matches(name, known, n=1):
    return f"; did you mean {near[0]!r}?"
  listed = [x for x in known if x not in ("seed", "size")]
  more = ", …" if len(listed) > _MAX_CHOICES else ""
  return f"; known: {', '.join(listed[:_MAX_CHOICES])}{more}"


@functools.lru_cache(maxsize=64)
def _data_set(task: str, settings: str, seed: int) -> Any:
  from reasoning_gym import factory

  config = _config(task, json.loads(settings))
  return factory.create_dataset(task, **config, seed=seed, size=_SIZE)


@functools.lru_cache(maxsize=4096)
def _entry(task: str, settings: str, seed: int, place: int) -> dict[str, Any]:
  # Some tasks draw from the global generator.
  random.seed(seed + place)
  return _data_set(task, settings, seed)[place]


def _checked(task: str, settings: dict[str, Any]) -> dict[str, Any]:
  """Refuses a scorer that calls every answer right; the package has one."""
  scorer = _data_set(task, json.dumps(settings), 0)
  with contextlib.suppress(Exception), restricted_eval.confined():
    if all(scorer.score_answer("#", scorer[i]) == 1 for i in range(2)):
      return {"error": "its scorer calls every answer right"}
  return {}


def _made(
  task: str, settings: dict[str, Any], seed: int, index: int, split: str
) -> dict[str, Any]:
  """Returns the first candidate whose question belongs to the split.

  A hash of the question decides, so that no question is in both splits.
  """
  block, place = divmod(index, _SIZE)
  for attempt in range(_MAX_ATTEMPTS):
    # A string, because the hash of a tuple differs from process to process.
    stream = f"reasoning_gym/{seed}/{split}/{block}/{attempt}"
    number = random.Random(stream).randrange(2**31)
    entry = _entry(task, json.dumps(settings), number, place)
    digest = _digest(entry["question"])
    # Half of all digits are even.
    if (digest[-1] in "02468ace") == (split == "train"):
      known = entry["answer"]
      return {
        "question": entry["question"],
        "answer": None if known is None else str(known),
        "number": [number, place],
        "digest": digest,
      }
  raise ValueError(
    f"no problem for {split} among {_MAX_ATTEMPTS}: the task has too few"
  )


def _scored(
  task: str, settings: dict[str, Any], entry: dict[str, Any], text: str
) -> dict[str, Any]:
  as_text = json.dumps(settings)
  if "number" in entry:
    seed, place = entry["number"]
    digest = entry["digest"]
    entry = _entry(task, as_text, seed, place)
    if _digest(entry["question"]) != digest:
      return _broken("the task made another problem the second time")
  else:
    seed = 0
  # A scorer may change the problem that it is given, and this one is cached.
  scorer, own = _data_set(task, as_text, seed), copy.deepcopy(entry)
  with restricted_eval.confined():
    score = scorer.score_answer(text, own)
  if not isinstance(score, int | float) or math.isnan(score):
    return _broken(f"a score of {score!r}")
  if not 0 <= score <= 1:
    return _broken(f"a score of {score:g}, which is not in [0, 1]")
  return {"score": float(score)}


def _broken(text: str) -> dict[str, Any]:
  return {"error": text, "is_broken": True}


def _digest(text: str) -> str:
  # Questions may hold half a surrogate pair.
  data = text.encode("utf-8", "surrogatepass")
  return hashlib.blake2b(data, digest_size=8).hexdigest()


if __name__ == "__main__":
  logging.disable()
  importlib.import_module("reasoning_gym")
  restricted_eval.install()
  process_pool.serve(answer, memory_bytes=_MEMORY_BYTES, seconds=_CPU_SECONDS)
