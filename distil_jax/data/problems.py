"""Reads or generates the problems of a run, checks and batches them."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar

from distil_jax.config.base import ConfigError
from distil_jax.config.schema import Config
from distil_jax.data import (
  datasets,
  demonstrations,
  examples,
  teacher_prompts,
  teacher_routing,
)
from distil_jax.data import tokenizer as tokenizers
from distil_jax.data.data_files import DataError
from distil_jax.data.generated import Generated
from distil_jax.envs.base import Environment, Generator
from distil_jax.envs.mixture import environment_of
from distil_jax.types import Demonstration, Problem

T = TypeVar("T", Problem, Demonstration)

# Problems of `data.*=generated` if the config gives no number.
NUM_GENERATED = {"train": 4096, "evaluation": 256}
# Of generated demonstrations so many are checked before a run.
_NUM_CHECKED = 256


@dataclasses.dataclass(frozen=True)
class Problems:
  """Holds the problems of a run, read or generated.

  Each data set has its problems by its name, which is empty without a mixture.

  Attributes:
    train: the problems to train on, of each set that is trained on.
    evaluation: held-out problems, of each set that is evaluated.
    num_skipped: number of malformed rows that were left out.
  """

  train: Mapping[str, Sequence[Problem]]
  evaluation: Mapping[str, Sequence[Problem]]
  num_skipped: int


@dataclasses.dataclass(frozen=True)
class Data:
  """Holds what a run reads, after the checks that need the tokenizer.

  Attributes:
    train: problems, or demonstrations for a supervised run, by data set.
    evaluation: held-out problems, by data set.
    num_skipped: number of malformed rows that were left out.
    num_dropped: number of problems whose prompt was too long, and of
      demonstrations that were.
  """

  train: Mapping[str, Sequence[Problem] | Sequence[Demonstration]]
  evaluation: Mapping[str, Sequence[Problem]]
  num_skipped: int
  num_dropped: int

  @property
  def held_out(self) -> list[Problem]:
    """All held-out problems; those of several data sets alternate."""
    alternating = itertools.zip_longest(*self.evaluation.values())
    return [x for some in alternating for x in some if x is not None]


def load_problems(config: Config, environment: Environment) -> Problems:
  """Reads or generates the problems of both splits.

  Raises:
    DataError: see `datasets.load_problems`.
    ConfigError: the environment makes no problems, but is to generate them.
  """
  train, held_out, num_skipped = {}, {}, 0
  for name, section in config.data_sets.items():
    load = functools.partial(
      _load_split, config, name, environment_of(environment, name)
    )
    if section.is_trained_on:
      train[name], skipped = load("train")
      num_skipped += skipped
    if section.evaluation is not None:
      held_out[name], skipped = load("evaluation")
      num_skipped += skipped
  return Problems(train=train, evaluation=held_out, num_skipped=num_skipped)


def build_data(
  config: Config,
  environment: Environment,
  problems: Problems,
  tokenizer: tokenizers.Tokenizer,
) -> Data:
  """Checks the problems against the tokenizer and the config's limits.

  Raises:
    ConfigError: a prompt, or the solution of a demonstration, is too long and
      the config does not say to drop it; or a supervised run's problems have no
      solutions.
  """
  drop = functools.partial(_drop_long_prompts, config, tokenizer=tokenizer)
  train, held_out, num_dropped = {}, {}, 0
  for name, found in problems.train.items():
    if config.objective.uses_rollouts:
      train[name], dropped = drop(name, found, split="train")
      num_dropped += dropped
      continue
    made = _escaped_items(
      tokenizer, _demonstrations(config, name, environment, found)
    )
    check = functools.partial(
      demonstrations.drop_long,
      tokenizer=tokenizer,
      section=config.data_sets[name],
      rollout=config.rollout,
      where=path_of(name),
    )
    if isinstance(made, Generated):
      # There may be more than can be made now; the first show whether the
      # limits are right.
      check([x for _, x in zip(range(_NUM_CHECKED), made, strict=False)])
      train[name] = made
      continue
    train[name], dropped = check(made)
    num_dropped += dropped
  for name, found in problems.evaluation.items():
    held_out[name], dropped = drop(name, found, split="evaluation")
    num_dropped += dropped
  return Data(
    train=train,
    evaluation=held_out,
    num_skipped=problems.num_skipped,
    num_dropped=num_dropped,
  )


def tokenizer_texts(
  config: Config,
  environment: Environment,
  problems: Mapping[str, Sequence[Problem]],
) -> Iterator[str]:
  """Yields the texts that a new tokenizer is trained on.

  Those of several data sets alternate, because only the first ones are used.
  """
  texts = [
    _texts(config, name, environment, found) for name, found in problems.items()
  ]
  for some in itertools.zip_longest(*texts):
    yield from (text for text in some if text is not None)


def _texts(
  config: Config,
  name: str,
  environment: Environment,
  problems: Sequence[Problem],
) -> Iterator[str]:
  """Yields the texts of one data set."""
  if not config.objective.uses_rollouts:
    for d in _demonstrations(config, name, environment, problems):
      yield from (message["content"] for message in d.messages)
      yield d.prefix + d.solution
    return
  for problem in problems:
    # With an answer in it, the headings of the teacher's prompt are among the
    # texts that the tokenizer learns from.
    blocks = teacher_prompts.teacher_prompt(problem, solution=problem.answer)
    yield from (message["content"] for message in blocks)
    if problem.solution:
      yield problem.solution


def _load_split(
  config: Config,
  name: str,
  environment: Environment,
  split: Literal["train", "evaluation"],
) -> tuple[Sequence[Problem], int]:
  """Returns the problems of a split and the number of skipped rows."""
  section = config.data_sets[name]
  source = getattr(section.data, split)
  limit = getattr(section.data, f"num_{split}")
  routing = None
  # Nobody teaches held-out problems.
  if split == "train" and config.objective.needs_teacher:
    routing = teacher_routing.build_routing(config.teacher, section.teacher)
  if source == "generated":
    # Problems are made when they are needed: there may be more than fit in
    # memory.
    generate = _generator(environment).generate
    make = _in_set(config, name, functools.partial(generate, split=split))
    if routing is not None:
      make = functools.partial(_routed, make, routing)
    return Generated(make, limit or NUM_GENERATED[split]), 0
  make = _in_set(config, name, environment.problem)
  try:
    return datasets.load_problems(
      source,
      make,
      fields=section.data.fields,
      malformed=section.data.malformed_rows,
      limit=limit,
      required=getattr(environment, "required_fields", ()),
      routing=routing,
    )
  except DataError as error:
    raise DataError(f"{path_of(name)}data.{split}: {error}") from error


def path_of(name: str) -> str:
  """Returns the path of a data set's sections, with a point at its end."""
  return f"mixture.{name}." if name else ""


def _in_set(
  config: Config, name: str, make: Callable[..., Any]
) -> Callable[..., Any]:
  """Returns a function that makes the items of a data set.

  They carry the set's name, and its examples stand before their own messages.
  """
  try:
    turns = examples.load(config.data_sets[name].data)
  except DataError as error:
    raise DataError(f"{path_of(name)}data.examples: {error}") from error
  if not (name or turns):
    return make
  return lambda *args: examples.place(
    dataclasses.replace(make(*args), source=name), turns
  )


def _routed(
  make: Callable[[int], Problem],
  routing: teacher_routing.TeacherRouting,
  index: int,
) -> Problem:
  """Returns a problem that is made, with its teacher."""
  return routing.assign(make(index), None, f"generated problem {index}")


def _demonstrations(
  config: Config,
  name: str,
  environment: Environment,
  problems: Sequence[Problem],
) -> Sequence[Demonstration]:
  """Returns the problems with the solutions that a supervised run reads."""
  source = config.data_sets[name].data.train
  if source == "generated":
    make = functools.partial(
      _generator(environment_of(environment, name)).demonstration,
      teacher_prompt=teacher_prompts.teacher_prompt,
    )
    return Generated(_in_set(config, name, make), len(problems))
  made = []
  for problem in problems:
    if not problem.solution:
      raise ConfigError(
        f"objective.kind={config.objective.kind} learns from solutions, but "
        f"row {problem.index + 1} of {datasets.named(source)} has none; name "
        f"its field with {path_of(name)}data.fields.solution"
      )
    made.append(
      Demonstration(
        index=problem.index,
        messages=problem.messages,
        solution=problem.solution,
        source=name,
      )
    )
  return made


def _generator(environment: Environment) -> Generator:
  if not isinstance(environment, Generator):
    raise ConfigError(
      f"{type(environment).__name__} makes no problems; name a file in "
      "data.train and data.evaluation"
    )
  return environment


def _escaped_items(
  tokenizer: tokenizers.Tokenizer, items: Sequence[T]
) -> Sequence[T]:
  """Returns problems or demonstrations whose texts spell no special token.

  Text of a data row ends no turn, as text of a model does not.
  """
  escape = tokenizer.escape_special_tokens

  def escaped(item: T) -> T:
    messages = tuple(
      {**x, "content": escape(x["content"])} for x in item.messages
    )
    if messages == item.messages:
      return item
    return dataclasses.replace(item, messages=messages)

  if isinstance(items, Generated):
    return Generated(lambda index: escaped(items[index]), len(items))
  return [escaped(item) for item in items]


def _drop_long_prompts(
  config: Config,
  name: str,
  problems: Sequence[Problem],
  *,
  tokenizer: tokenizers.Tokenizer,
  split: str,
) -> tuple[Sequence[Problem], int]:
  """Returns the problems whose prompt fits and the number of the others."""
  section, where = config.data_sets[name], path_of(name)
  setting, limit = section.length_limit("prompt", config.rollout, where)
  kept, num_dropped, checked_roles = [], 0, set()
  for problem in _escaped_items(tokenizer, problems):
    # A template treats the same roles alike, so each order of them is checked
    # once.
    roles = tuple(message["role"] for message in problem.messages)
    if roles not in checked_roles:
      tokenizer.check_template(roles)
      checked_roles.add(roles)
    length = len(tokenizer.encode_messages(problem.messages))
    if length <= limit:
      kept.append(problem)
    elif section.data.long_prompts == "drop":
      num_dropped += 1
    else:
      raise ConfigError(
        f"{where}data.{split}: the prompt of row {problem.index + 1} has "
        f"{length} tokens, more than {setting}={limit}; raise it, or set "
        f"{where}data.long_prompts=drop"
      )
  if not kept:
    raise ConfigError(
      f"{where}data.{split}: none of the {len(problems)} prompts fits "
      f"{setting}={limit}"
    )
  return kept, num_dropped
