"""Builds a teacher behind a server, and checks it before a run begins."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import jax

from distil_jax.config.base import ConfigError
from distil_jax.config.schema import Config
from distil_jax.config.teacher import TeacherServerConfig
from distil_jax.data.tokenizer import Tokenizer
from distil_jax.generation.policy import Policy
from distil_jax.training.logging import progress
from distil_jax.training.remote_teacher.asking import RemoteTeacher
from distil_jax.training.remote_teacher.http_client import (
  HttpClient,
  Patience,
  RefusedError,
  ServerError,
)
from distil_jax.training.remote_teacher.protocols import (
  AnswerError,
  Asking,
  Protocol,
  Vocabulary,
)
from distil_jax.training.setup.records import record_of

# A short conversation whose tokens every model of the vocabulary knows.
_QUESTION = ({"role": "user", "content": "What is 1 + 1?"},)
_ANSWER = "It is 2."


def build_remote_teacher(
  config: Config, policy: Policy, **others: Any
) -> RemoteTeacher | None:
  """Builds the teacher if it is behind a server; sends nothing.

  Args:
    config: the run's settings.
    policy: the student.
    **others: for the client.

  Returns:
    None without such a teacher.

  Raises:
    ConfigError: the environment has no key, or lists are too long.
  """
  section = config.teacher.server
  if section is None or not config.objective.needs_teacher:
    return None
  access = config.teacher.access
  assert access != "probabilities", access
  num_tokens = policy.tokenizer.vocab_size
  if access == "top_k" and config.teacher.top_k > num_tokens:
    raise ConfigError(
      f"teacher.top_k={config.teacher.top_k} is more than the {num_tokens} "
      "tokens of the student; lower it"
    )
  usual: Protocol = "next_token" if access == "samples" else "prompt_logprobs"
  asking = Asking(
    protocol=section.protocol or usual,
    kind=access,
    size=config.teacher.list_size,
    model=section.model,
    vocabulary=Vocabulary(policy.tokenizer, num_tokens),
    sends_text=section.sends == "text",
    extra=section.extra,
  )
  client = HttpClient(
    section.url,
    record_of(Patience, section),
    api_key=_api_key(section),
    max_concurrency=section.max_concurrency,
    **others,
  )
  return RemoteTeacher(
    client,
    asking,
    seed=config.train.seed,
    max_states=section.max_states,
    max_concurrency=section.max_concurrency,
    max_lost_steps=section.max_lost_steps,
    process=jax.process_index(),
    warn=progress.warn,
  )


def check_server(config: Config, teacher: Any) -> None:
  """Refuses a server that will not answer a run's questions.

  It asks for the models, and for the lists of a short conversation.

  Args:
    config: the run's settings.
    teacher: from `build_remote_teacher`; None checks nothing.

  Raises:
    ConfigError: says what to change.
  """
  section = config.teacher.server
  if section is None or teacher is None:
    return
  where = f"teacher.server.url={section.url}"
  try:
    _check_model(config, section, teacher.client.get("/models"))
    _check_answers(teacher)
  except RefusedError as error:
    raise ConfigError(f"{where}: {error}; {_cure(error, section)}") from error
  except ServerError as error:
    raise ConfigError(
      f"{where}: {error}; start the server, or correct the address"
    ) from error
  except AnswerError as error:
    raise ConfigError(f"{where}: {error}") from error


def _api_key(section: TeacherServerConfig) -> str | None:
  """Returns the key that the environment holds.

  Raises:
    ConfigError: it holds none under that name.
  """
  if section.api_key_variable is None:
    return None
  key = os.environ.get(section.api_key_variable)
  if not key:
    raise ConfigError(
      f"teacher.server.api_key_variable={section.api_key_variable}: there is "
      "no such environment variable, or it is empty; set it, or the setting "
      "to null if the server asks for no key"
    )
  return key


def _cure(error: RefusedError, section: TeacherServerConfig) -> str:
  if error.status in (401, 403):
    if section.api_key_variable is None:
      return (
        "the server wants a key: put it into an environment variable, and the "
        "variable's name into teacher.server.api_key_variable"
      )
    return (
      f"the key in {section.api_key_variable} is wrong, expired or not allowed "
      "to do this; set another"
    )
  if error.status == 404:
    return "the address mostly ends in /v1; correct teacher.server.url or model"
  return (
    "the server refuses what the settings ask for: lower teacher.top_k (vLLM: "
    "or raise --max-logprobs), or change teacher.server.protocol, sends or "
    "extra"
  )


def _check_model(
  config: Config, section: TeacherServerConfig, found: Any
) -> None:
  """Refuses a server that does not have the model, or has it too short."""
  listed = found.get("data") if isinstance(found, Mapping) else None
  models = {
    str(model.get("id")): model
    for model in listed or ()
    if isinstance(model, Mapping)
  }
  if section.model not in models:
    raise ConfigError(
      f"teacher.server.model={section.model} is not at {section.url}, which "
      f"has {', '.join(models) or 'none'}; choose one of these"
    )
  model = models[section.model]
  # As vLLM says it, and as llama.cpp's server does.
  longest = model.get("max_model_len")
  if isinstance(meta := model.get("meta"), Mapping):
    longest = meta.get("n_ctx", longest)
  prompt = config.teacher.max_prompt_length
  completion = config.rollout.max_completion_length
  # A server may insist on a token more.
  if isinstance(longest, int) and prompt + completion + 1 > longest:
    raise ConfigError(
      f"teacher.max_prompt_length={prompt} and rollout.max_completion_length="
      f"{completion} are longer than the {longest} tokens of teacher.server."
      f"model={section.model}, less one; lower one of them"
    )


def _check_answers(teacher: RemoteTeacher) -> None:
  """Asks a short question in the run's way; checks ids and texts."""
  asking, client = teacher.asking, teacher.client
  tokenizer: Tokenizer = asking.vocabulary.tokenizer
  ids = tokenizer.encode_messages(_QUESTION) + tokenizer.encode(_ANSWER)
  if asking.protocol == "next_token":
    answer = client.post("/completions", asking.of_state(ids, 0))
    asking.read_state(answer)
    asking.check_texts(answer)
    return
  # Without a token to sample, scoring is cheaper; not every server allows it.
  for scored_tokens in (0, 1):
    asking = dataclasses.replace(asking, scored_tokens=scored_tokens)
    try:
      answer = client.post("/completions", asking.of_sequence(ids))
    except RefusedError as error:
      if scored_tokens or error.is_access:
        raise
      continue
    asking.read_sequence(answer, ids)
    asking.check_texts(answer)
    break
  teacher.asking = asking
