"""Checks before a run starts: its folder, its processes, its settings."""

import hashlib
import pathlib
import platform
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import pydantic

from distil_jax.config.base import ConfigError
from distil_jax.config.data import HubDatasetConfig
from distil_jax.config.schema import Config
from distil_jax.data import data_files, datasets
from distil_jax.data import problems as data_problems
from distil_jax.distributed import collectives, process_group
from distil_jax.training import changed_settings
from distil_jax.training.logging import run_info
from distil_jax.training.setup.model_directory import (
  model_directory,
  teacher_directories,
)


def check_directory(
  setting: str, directory: pathlib.Path, inside: str = ""
) -> None:
  """Refuses a folder that cannot be made because a file is in the way.

  Args:
    setting: the key that names the folder.
    directory: the folder.
    inside: a folder in it that is needed too.

  Raises:
    ConfigError: one of the folders is a file.
  """
  innermost = directory / inside
  for path in (innermost, *innermost.parents):
    if path.exists() and not path.is_dir():
      raise ConfigError(
        f"{setting}={directory}: {path} is a file; choose another folder"
      )


def check_same_settings(
  saved: Mapping[str, Any],
  config: Config,
  step: int,
  content: tuple[Mapping[str, str], Mapping[str, str]] | None = None,
) -> dict[str, changed_settings.Change]:
  """Refuses to go on from a checkpoint with settings of another run.

  Args:
    saved: the settings in the checkpoint.
    config: the settings now.
    step: the checkpoint's step.
    content: what the paths led to and what they lead to now, from
      `content.digests`; None means that it is not known.

  Returns:
    The changes that `train.allow_changes` allows.

  Raises:
    ConfigError: lists every other difference.
  """
  found = changed_settings.changes(
    _flat(with_defaults(saved)),
    _flat(config.model_dump(mode="json")),
    num_steps_is_free=not config.optimizer.falls_until_last_step,
  )
  if content:
    found = changed_settings.by_content(found, *content)
  said = changed_settings.refusal(found, config.train.allow_changes)
  if said:
    raise ConfigError(
      f"{config.run_directory} has a checkpoint of step {step} made with other "
      f"settings; {said}"
    )
  return found


def with_defaults(saved: Mapping[str, Any]) -> Mapping[str, Any]:
  """Returns settings with what older code did where they name nothing."""
  tree = dict(saved)
  optimizer = dict(tree.get("optimizer", {}))
  is_short = tree.get("model", {}).get("param_dtype") == "bfloat16"
  if is_short and "master_dtype" not in optimizer:
    # Runs from before this setting updated the rounded parameters.
    optimizer["master_dtype"] = None
  if optimizer.get("kind", "adamw") == "adamw":
    # Runs from before this setting decayed all parameters.
    optimizer.setdefault("decay", "all")
  tree["optimizer"] = optimizer
  try:
    return Config.model_validate(tree).model_dump(mode="json")
  except pydantic.ValidationError:
    return saved  # the differences name what is not known any more


def check_same_command(command: str, config: Config) -> None:
  """Refuses processes that would not compute the same.

  Args:
    command: the command and its arguments, without the settings.
    config: the run's settings.

  Raises:
    ProcessError: lists every difference.
  """
  if not process_group.is_joined():
    return
  process_group.compare(
    "command, settings or versions",
    {"command": command, **_flat(config.model_dump(mode="json"))} | _versions(),
    "start the same command, with the same files and packages, everywhere; "
    "start processes that are independent with --num-processes 1",
  )


def check_same_data(config: Config, problems: data_problems.Problems) -> None:
  """Refuses processes that read other files or found other problems in them.

  Raises:
    ProcessError: lists every difference.
  """
  if not process_group.is_joined():
    return
  found: dict[str, Any] = {
    "devices of a process": jax.local_device_count(),
    "kind of device": jax.local_devices()[0].device_kind,
    "malformed rows": problems.num_skipped,
  }
  for split, kind, used in (
    ("train", "training", problems.train),
    ("evaluation", "held-out", problems.evaluation),
  ):
    for name, of_set in used.items():
      found[f"{kind} problems{name and f' of {name}'}"] = len(of_set)
      source = getattr(config.data_sets[name].data, split)
      # The rows of a data set of the Hub are fixed by its settings, which are
      # compared before.
      if source != "generated" and not isinstance(source, HubDatasetConfig):
        path = f"{data_problems.path_of(name)}data.{split}"
        key = f"content of {path}={datasets.named(source)}"
        found[key] = _digest(data_files.find(source))
  found |= _of_folder(config.model.directory, model_directory(config))
  teachers = config.teacher.other_models
  for key, folder in teacher_directories(config).items():
    found |= _of_folder(teachers[key].directory, folder)
  process_group.compare(
    "data, model or devices", found, "give all processes the same"
  )


def _of_folder(name: str, folder: pathlib.Path) -> dict[str, Any]:
  """Returns what tells whether processes read the same model."""
  if folder.parent.name == "snapshots":
    # Of the Hub: `main` may have moved on between the downloads of two hosts.
    # One commit has the same files, but a host may have fetched more of them.
    return {f"commit of {name}": folder.name}
  # Sizes, not contents: reading all weights of a large model takes minutes.
  return {
    f"size of {name}/{path.name}": path.stat().st_size
    for path in sorted(folder.glob("*"))
    if path.is_file()
  }


def check_shared_directory(config: Config) -> None:
  """Refuses processes whose run folders are not the same folder.

  Raises:
    ProcessError: a process does not find what process 0 has written.
  """
  if not process_group.is_joined():
    return
  directory = config.run_directory
  marker = directory / ".meeting"
  if jax.process_index() == 0:
    directory.mkdir(parents=True, exist_ok=True)
    # A new text each time, so that one that was left behind is not taken for
    # it.
    marker.write_text(uuid.uuid4().hex)
  collectives.wait_for_all("the run folder is there")
  seen = marker.read_text() if marker.exists() else None
  try:
    process_group.compare(
      "the content of their run folder",
      {str(marker): seen},
      f"all of them write to train.run_directory={directory}, which must be "
      "one folder, on a file system that all hosts share",
    )
  # Behind the barrier of `compare`, so all have read it.
  finally:
    if jax.process_index() == 0:
      marker.unlink(missing_ok=True)


def _versions() -> dict[str, Any]:
  """Returns versions that must agree, of the source too."""
  package = pathlib.Path(__file__).resolve().parents[1]
  return {
    "Python": platform.python_version(),
    **run_info.package_versions(),
    # A version says nothing about a copy that somebody has edited.
    "source of distil_jax": _digest(sorted(package.rglob("*.py"))),
  }


def _digest(paths: Iterable[str | pathlib.Path]) -> str:
  """Returns a hash of the content of files, short enough for a message."""
  digest = hashlib.blake2b(digest_size=8)
  for path in paths:
    with open(path, "rb") as file:
      while part := file.read(2**20):
        digest.update(part)
  return digest.hexdigest()


def warnings(config: Config) -> list[str]:
  """Returns warnings of settings that are allowed but seldom right."""
  found = []
  is_short = config.model.param_dtype == "bfloat16"
  if is_short and not config.optimizer.keeps_small_updates:
    found.append(
      "model.param_dtype=bfloat16 with optimizer.master_dtype=null rounds away "
      "an update below 1/256 of its weight; optimizer.master_dtype=float32 "
      "keeps it, and optimizer.stochastic_rounding=true does on average"
    )
  environment = config.environment
  if environment.kind == "self_evaluation" and environment.of is None:
    found.append(
      "environment.of=null: the policy rewards itself and can learn to "
      "persuade itself; evaluate it with another environment from time to time"
    )
  r = config.rollout
  truncation = (r.top_k, r.top_p, r.min_p)
  is_changed = r.temperature != 1 or any(x is not None for x in truncation)
  if is_changed and config.objective.has_score_function:
    found.append(
      f"rollout.temperature={r.temperature}, top_k={r.top_k}, top_p={r.top_p}, "
      f"min_p={r.min_p}: credit and rewards weigh log-probabilities of the "
      "whole softmax at temperature 1, so the gradient is not that of the "
      "distribution that was sampled, and probability can move to tokens that "
      "are never sampled; temperature=1 without top_k, top_p and min_p is exact"
    )
  return found


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """Returns nested settings by their dotted paths."""
  flat = {}
  for key, value in tree.items():
    # An empty section is a value itself, or it would not be compared.
    if isinstance(value, Mapping) and value:
      flat |= _flat(value, f"{prefix}{key}.")
    else:
      flat[prefix + key] = value
  return flat
