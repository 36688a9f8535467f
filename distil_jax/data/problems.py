"""Reads or generates the problems of a run, checks and batches them."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, Literal, TypeVar

import grain
import jax

from distil_jax.config.base import ConfigError
from distil_jax.config.schema import Config
from distil_jax.data import datasets, demonstrations, teacher_prompts
from distil_jax.data import tokenizer as tokenizers
from distil_jax.data.data_files import DataError
from distil_jax.envs.base import Environment, Generator
from distil_jax.types import Demonstration, Message, Problem

T = TypeVar("T")

# Problems of `data.*=generated` if the config gives no number.
NUM_GENERATED = {"train": 4096, "evaluation": 256}
# Of generated demonstrations so many are checked before a run.
_NUM_CHECKED = 256


class Generated(Sequence[T], Generic[T]):
  """A sequence whose items are made when they are indexed."""

  def __init__(self, make: Callable[[int], T], size: int):
    self._make = make
    self._size = size

  def __len__(self) -> int:
    return self._size

  def __getitem__(self, index):
    if isinstance(index, slice):
      return [self._make(i) for i in range(*index.indices(self._size))]
    if not -self._size <= index < self._size:
      raise IndexError(index)
    return self._make(index % self._size)


@dataclasses.dataclass(frozen=True)
class Problems:
  """Holds the problems of a run, read or generated.

  Attributes:
    train: the problems to train on.
    evaluation: held-out problems.
    num_skipped: number of malformed rows that were left out.
  """

  train: Sequence[Problem]
  evaluation: Sequence[Problem]
  num_skipped: int


@dataclasses.dataclass(frozen=True)
class Data:
  """Holds what a run reads, after the checks that need the tokenizer.

  Attributes:
    train: problems, or demonstrations for a supervised run.
    evaluation: held-out problems.
    num_skipped: number of malformed rows that were left out.
    num_dropped: number of problems whose prompt was too long, and of
      demonstrations that were.
  """

  train: Sequence[Problem] | Sequence[Demonstration]
  evaluation: Sequence[Problem]
  num_skipped: int
  num_dropped: int


def load_problems(config: Config, environment: Environment) -> Problems:
  """Reads or generates the problems of both splits.

  Raises:
    DataError: see `datasets.load_problems`.
    ConfigError: the environment makes no problems, but is to generate them.
  """
  train, skipped = _load_split(config, environment, "train")
  held_out, also_skipped = _load_split(config, environment, "evaluation")
  return Problems(
    train=train, evaluation=held_out, num_skipped=skipped + also_skipped
  )


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
  train, num_dropped = problems.train, 0
  if not config.objective.uses_rollouts:
    train = _demonstrations(config, environment, train)
    limits = (config.data, config.rollout)
    if not isinstance(train, Generated):
      train = [
        dataclasses.replace(x, messages=_escaped(tokenizer, x.messages))
        for x in train
      ]
      train, num_dropped = demonstrations.drop_long(train, tokenizer, *limits)
    else:
      # There may be more than can be made now; the first show whether the
      # limits are right.
      demonstrations.drop_long(train[:_NUM_CHECKED], tokenizer, *limits)
  else:
    train, num_dropped = _drop_long_prompts(config, train, tokenizer, "train")
  held_out, dropped = _drop_long_prompts(
    config, problems.evaluation, tokenizer, "evaluation"
  )
  return Data(
    train=train,
    evaluation=held_out,
    num_skipped=problems.num_skipped,
    num_dropped=num_dropped + dropped,
  )


def build_batches(
  config: Config, data: Data, start: int = 0
) -> grain.DatasetIterator:
  """Returns this process's training batches, from a step on.

  Args:
    config: the run's settings.
    data: the run's data.
    start: training steps that are done.

  Raises:
    ConfigError: the batch is not a multiple of the number of processes.
    DataError: the data does not fill one batch.
  """
  count = jax.process_count()
  if config.rollout.num_problems % count:
    raise ConfigError(
      f"rollout.num_problems={config.rollout.num_problems} is not a multiple "
      f"of the {count} processes; choose a multiple"
    )
  return datasets.make_batches(
    data.train,
    batch_size=config.rollout.num_problems // count,
    seed=config.data.seed,
    num_epochs=config.data.num_epochs,
    start=start,
    process_index=jax.process_index(),
    process_count=count,
  )


def tokenizer_texts(
  config: Config, environment: Environment, problems: Sequence[Problem]
) -> Iterator[str]:
  """Yields the texts that a new tokenizer is trained on."""
  if not config.objective.uses_rollouts:
    for d in _demonstrations(config, environment, problems):
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
  environment: Environment,
  split: Literal["train", "evaluation"],
) -> tuple[Sequence[Problem], int]:
  """Returns the problems of a split and the number of skipped rows."""
  source = getattr(config.data, split)
  limit = getattr(config.data, f"num_{split}")
  if source == "generated":
    # Problems are made when they are needed: there may be more than fit in
    # memory.
    make = functools.partial(_generator(environment).generate, split=split)
    return Generated(make, limit or NUM_GENERATED[split]), 0
  try:
    return datasets.load_problems(
      source,
      environment.problem,
      fields=config.data.fields,
      malformed=config.data.malformed_rows,
      limit=limit,
      required=getattr(environment, "required_fields", ()),
    )
  except DataError as error:
    raise DataError(f"data.{split}: {error}") from error


def _demonstrations(
  config: Config, environment: Environment, problems: Sequence[Problem]
) -> Sequence[Demonstration]:
  """Returns the problems with the solutions that a supervised run reads."""
  if config.data.train == "generated":
    make = functools.partial(
      _generator(environment).demonstration,
      teacher_prompt=teacher_prompts.teacher_prompt,
    )
    return Generated(make, len(problems))
  made = []
  for problem in problems:
    if not problem.solution:
      raise ConfigError(
        f"objective.kind={config.objective.kind} learns from solutions, but "
        f"row {problem.index + 1} of {datasets.named(config.data.train)} has "
        "none; name its "
        "field with data.fields.solution"
      )
    made.append(
      Demonstration(
        index=problem.index,
        messages=problem.messages,
        solution=problem.solution,
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


def _escaped(
  tokenizer: tokenizers.Tokenizer, messages: Sequence[Message]
) -> tuple[Message, ...]:
  """Returns messages whose texts spell no special token."""
  escape = tokenizer.escape_special_tokens
  return tuple({**x, "content": escape(x["content"])} for x in messages)


def _drop_long_prompts(
  config: Config,
  problems: Sequence[Problem],
  tokenizer: tokenizers.Tokenizer,
  split: str,
) -> tuple[Sequence[Problem], int]:
  """Returns the problems whose prompt fits and the number of the others."""
  limit = config.rollout.max_prompt_length
  kept, num_dropped, checked_roles = [], 0, set()
  for problem in problems:
    # A template treats the same roles alike, so each order of them is checked
    # once.
    roles = tuple(message["role"] for message in problem.messages)
    if roles not in checked_roles:
      tokenizer.check_template(roles)
      checked_roles.add(roles)
    # Text of a data row ends no turn, as text of a model does not.
    messages = _escaped(tokenizer, problem.messages)
    if messages != problem.messages:
      problem = dataclasses.replace(problem, messages=messages)
    length = len(tokenizer.encode_messages(problem.messages))
    if length <= limit:
      kept.append(problem)
    elif config.data.long_prompts == "drop":
      num_dropped += 1
    else:
      raise ConfigError(
        f"data.{split}: the prompt of row {problem.index + 1} has {length} "
        f"tokens, more than rollout.max_prompt_length={limit}; raise it, or "
        "set data.long_prompts=drop"
      )
  if not kept:
    raise ConfigError(
      f"data.{split}: none of the {len(problems)} prompts fits "
      f"rollout.max_prompt_length={limit}"
    )
  return kept, num_dropped
