"""Finds what can be known of a run before its first step."""

from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

from distil_jax.analysis.teacher_check import one_sample
from distil_jax.analysis.teacher_check.records import Finding
from distil_jax.config.base import ConfigError
from distil_jax.config.schema import Config
from distil_jax.data import problems as data_problems
from distil_jax.data import tokenizer as tokenizers
from distil_jax.envs.base import Environment
from distil_jax.envs.mixture import environment_of
from distil_jax.models import hf_directory
from distil_jax.training import batch_builder, checkpoints, run_checks
from distil_jax.training.setup import environments, meshes, model_directory
from distil_jax.training.setup import steps as setup_steps
from distil_jax.types import Problem

# Prompts of a split whose tokens are counted.
_NUM_COUNTED = 1000
_NUM_BARS = 8
_BAR_WIDTH = 24
_ERRORS = (ValueError, RuntimeError, OSError)


class RunCheck:
  """Checks one part of a run after the other: `list(RunCheck(config).all())`.

  A part that fails does not hide what the others would find, if these do not
  need it.
  """

  def __init__(self, config: Config):
    """Takes the run's settings; looks at nothing yet."""
    self._config = config
    self._environment: Environment | None = None
    self._problems: data_problems.Problems | None = None
    self._tokenizer: tokenizers.Tokenizer | None = None

  def all(self) -> Iterator[Finding]:
    """Yields a finding of each part, as soon as it is known."""
    parts: dict[str, Callable[[], Finding | None]] = {
      "devices": self._devices,
      "folder": self._folder,
      "environment": self._find_environment,
      "data": self._data,
      "model": self._model,
      "prompts": self._prompts,
      "solutions": self._solutions,
      "student's prompt": self._student_prompt,
      "teacher's prompt": self._teacher_prompt,
      "settings": self._settings,
    }
    for name, find in parts.items():
      try:
        found = find()
      except _ERRORS as error:
        found = Finding(name, str(error).splitlines(), False)
      if found is not None:
        yield found

  def _devices(self) -> Finding:
    mesh = meshes.build_mesh(self._config)
    axes = ", ".join(f"{name} {size}" for name, size in mesh.shape.items())
    kind = jax.devices()[0].device_kind
    return Finding("devices", [f"{jax.device_count()} x {kind}; mesh {axes}"])

  def _folder(self) -> Finding:
    directory = self._config.run_directory
    run_checks.check_directory("train.run_directory", directory, "checkpoints")
    found = [str(directory)]
    saved = directory / "checkpoints"
    if saved.is_dir():
      with checkpoints.Checkpoints(saved) as kept:
        latest = kept.latest_step
      if latest is not None:
        found.append(f"it has a checkpoint: the run goes on from step {latest}")
    return Finding("folder", found)

  def _find_environment(self) -> Finding:
    self._environment = environments.build_environment(self._config)
    names = [
      type(environment_of(self._environment, name)).__name__
      for name in self._config.data_sets
    ]
    return Finding("environment", [", ".join(names)])

  def _data(self) -> Finding | None:
    if self._environment is None:
      return None
    self._problems = data_problems.load_problems(
      self._config, self._environment
    )
    lines = []
    for split, sets in (
      ("train", self._problems.train),
      ("evaluation", self._problems.evaluation),
    ):
      for name, found in sets.items():
        section = self._config.data_sets[name].data
        source = getattr(section, split)
        where = f"{data_problems.path_of(name)}data.{split}"
        lines.append(f"{where}: {len(found):,} problems of {source}")
    if self._problems.num_skipped:
      lines.append(f"{self._problems.num_skipped} malformed rows skipped")
    needed, trained = self._config.rollout.num_problems, self._problems.train
    count = sum(map(len, trained.values()))
    if count < needed:
      raise ConfigError(
        f"{count} training problems do not fill one step of rollout."
        f"num_problems={needed}; lower it, or add rows"
      )
    steps = self._config.train.num_steps
    lines.append(f"{steps} steps read them {steps * needed / count:.2f} times")
    return Finding("data", lines)

  def _model(self) -> Finding:
    config = self._config
    directory = model_directory.model_directory(config)
    if config.model.create and not (directory / hf_directory.CONFIG).is_file():
      return Finding(
        "model",
        [f"{directory} is not there yet: model.create makes it"],
      )
    self._tokenizer = tokenizers.Tokenizer.load(
      directory, template_kwargs=config.model.chat_template_kwargs
    )
    ends = ", ".join(self._tokenizer.end_texts)
    return Finding(
      "model",
      [
        f"{config.model.directory}, {self._tokenizer.vocab_size:,} tokens",
        f"a completion ends with {ends}",
      ],
    )

  def _prompts(self) -> Finding | None:
    if self._tokenizer is None or self._problems is None:
      return None
    lines, is_ok = [], True
    for split, sets in (
      ("train", self._problems.train),
      ("evaluation", self._problems.evaluation),
    ):
      for name, problems in sets.items():
        section = self._config.data_sets[name]
        where = data_problems.path_of(name)
        setting, limit = section.length_limit(
          "prompt", self._config.rollout, where
        )
        lengths = self._lengths(problems)
        too_long = int((lengths > limit).sum())
        lines.append(
          f"{where}data.{split}, tokens of {len(lengths):,} prompts; "
          f"{setting}={limit}"
        )
        lines += histogram(lengths, limit)
        if too_long and section.data.long_prompts == "drop":
          lines.append(f"{too_long} are longer and are dropped")
        elif too_long:
          is_ok = False
          lines.append(
            f"{too_long} are longer; raise {setting} to {lengths.max()}, or "
            f"set {where}data.long_prompts=drop"
          )
    return Finding("prompts", lines, is_ok)

  def _solutions(self) -> Finding | None:
    if self._config.objective.uses_rollouts:
      return None
    if not (self._environment and self._problems and self._tokenizer):
      return None
    data = data_problems.build_data(
      self._config, self._environment, self._problems, self._tokenizer
    )
    count = sum(map(len, data.train.values()))
    return Finding("solutions", [f"{count:,} fit the limits of lengths"])

  def _lengths(self, problems: Sequence[Problem]) -> np.ndarray:
    assert self._tokenizer is not None
    counted = problems[:_NUM_COUNTED]
    for roles in {tuple(m["role"] for m in p.messages) for p in counted}:
      self._tokenizer.check_template(roles)
    encode = self._tokenizer.encode_messages
    return np.asarray([len(encode(problem.messages)) for problem in counted])

  def _first_problem(self) -> Problem | None:
    if self._problems is None:
      return None
    return next((x[0] for x in self._problems.train.values() if len(x)), None)

  def _student_prompt(self) -> Finding | None:
    problem = self._first_problem()
    if problem is None or self._tokenizer is None:
      return None
    ids = self._tokenizer.encode_messages(problem.messages)
    text = self._tokenizer.decode(ids, skip_special=False)
    return Finding("student's prompt", _quoted(text))

  def _teacher_prompt(self) -> Finding | None:
    problem, tokenizer = self._first_problem(), self._tokenizer
    if problem is None or tokenizer is None or self._environment is None:
      return None
    if not self._config.objective.needs_teacher:
      return None
    settings = setup_steps.build_teacher_settings(self._config)
    assert settings is not None
    # No model has written anything yet: the environment judges an empty answer.
    verdict = self._environment.judge(problem, "")
    experience = one_sample.experience_of(
      tokenizer,
      problem,
      [tokenizer.end_id],
      verdict,
      max_prompt_length=len(tokenizer.encode_messages(problem.messages)),
      max_completion_length=1,
    )
    _, stats = batch_builder.from_experience(experience, tokenizer, settings)
    text = stats.teacher_prompts[0]
    said = f"of an empty answer the environment says: {verdict.feedback or '-'}"
    if text is None:
      return Finding(
        "teacher's prompt",
        [
          said,
          "none for such an answer; samples with feedback or a solution "
          "(teacher.solution) have one",
        ],
        None,
      )
    count = int(np.asarray(stats.teacher_prompt_mask).sum())
    limit = self._config.teacher.max_prompt_length
    lines = [said, f"{count} tokens; teacher.max_prompt_length={limit}"]
    if stats.num_truncated:
      lines.append("it was cut; raise teacher.max_prompt_length")
    is_ok = None if stats.num_truncated else True
    return Finding("teacher's prompt", [*lines, *_quoted(text)], is_ok)

  def _settings(self) -> Finding | None:
    found = run_checks.warnings(self._config)
    return Finding("settings", found, None) if found else None


def histogram(lengths: np.ndarray, limit: int) -> list[str]:
  """Returns lines that show how many lengths lie where, and the limit.

  Args:
    lengths: tokens.
    limit: the largest that is allowed.
  """
  low, high = int(lengths.min()), int(lengths.max())
  width = max(1, -(-(high - low + 1) // _NUM_BARS))
  edges = np.arange(low, high + width + 1, width)
  counts, _ = np.histogram(lengths, edges)
  lines = []
  for start, count in zip(edges, counts, strict=False):
    end = min(start + width - 1, high)
    bar = "#" * int(np.ceil(_BAR_WIDTH * count / counts.max()))
    over = "  over the limit" if start > limit else ""
    lines.append(f"{start:>6}-{end:<6} {bar:<{_BAR_WIDTH}} {count}{over}")
  return lines


def _quoted(text: str) -> list[str]:
  # A row's text must not send commands to the terminal.
  clean = "".join(x if x.isprintable() or x in "\n\t" else "�" for x in text)
  return [f"| {line}" for line in clean.rstrip("\n").splitlines()]
