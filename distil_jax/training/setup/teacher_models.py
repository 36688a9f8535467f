"""Builds a teacher that is another model than the student."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from distil_jax.config.base import ConfigError
from distil_jax.config.schema import Config
from distil_jax.config.teacher import TeacherModelConfig
from distil_jax.data import tokenizer_match
from distil_jax.data.tokenizer import Tokenizer
from distil_jax.generation.policy import Policy, load_policy
from distil_jax.models import decoder, hf_config, hf_directory
from distil_jax.models.decoder_config import DecoderConfig
from distil_jax.models.kernels import sequence_attention
from distil_jax.objectives.teachers import OtherNetwork
from distil_jax.training.logging import progress
from distil_jax.training.setup.model_directory import teacher_directories


@dataclasses.dataclass(frozen=True)
class TeacherModel:
  """Holds what a run knows of its teacher before it reads the weights.

  Attributes:
    key: Path of its section in the config.
    section: Names the model.
    path: Folder of the model.
    digest: Hash of config and weights when the run began.
    config: Sizes of the network, with as many logits as the student's.
    tokenizer: Writes the teacher's prompts.
  """

  key: str
  section: TeacherModelConfig
  path: pathlib.Path
  digest: str
  config: DecoderConfig
  tokenizer: Tokenizer

  @property
  def network(self) -> OtherNetwork:
    """Returns the network in the form that the training step takes."""
    return OtherNetwork(decoder.make(self.config)[0])

  def load_params(self, mesh: jax.sharding.Mesh) -> decoder.Params:
    """Reads the weights onto the mesh.

    Raises:
      ConfigError: The weights cannot be read, or the mesh does not cut them.
    """
    is_shown = jax.process_index() == 0
    text = "loading the teacher's weights"
    try:
      with progress.loading(text, is_shown=is_shown) as report:
        loaded = load_policy(
          self.path,
          self.section.param_dtype,
          compute_dtype=self.section.compute_dtype,
          attention=self.section.attention,
          mesh=mesh,
          report=report,
        )
    except ValueError as error:
      raise _config_error(self.key, self.section, error) from error
    return _with_vocabulary(loaded.params, self.config.vocab_size, mesh)

  def notes(self) -> dict[str, Any]:
    """Returns what a checkpoint keeps, to know the teacher again."""
    return {
      "directory": self.section.directory,
      "digest": self.digest,
    }


@dataclasses.dataclass(frozen=True)
class TeacherModels:
  """Holds several teachers, of which each problem has one.

  Attributes:
    models: By name; None is the student's own network.
  """

  models: Mapping[str, TeacherModel | None]

  @property
  def network(self) -> tuple[OtherNetwork | None, ...]:
    """Returns the networks in the form that the training step takes."""
    return tuple(one and one.network for one in self.models.values())

  @property
  def tokenizers(self) -> dict[str, Tokenizer]:
    """The tokenizers that write prompts of teachers with their own."""
    return {name: one.tokenizer for name, one in self.models.items() if one}

  def load_params(
    self, mesh: jax.sharding.Mesh
  ) -> tuple[decoder.Params | None, ...]:
    """Reads the weights onto the mesh; None for the student's own network.

    Raises:
      ConfigError: See `TeacherModel.load_params`.
    """
    return tuple(one and one.load_params(mesh) for one in self.models.values())

  def notes(self) -> dict[str, Any]:
    """Returns what a checkpoint keeps, to know the teachers again."""
    return {name: one.notes() for name, one in self.models.items() if one}


# One teacher for all problems, or several.
Teachers = TeacherModel | TeacherModels


def build_teacher_model(
  config: Config, policy: Policy, mesh: jax.sharding.Mesh
) -> Teachers | None:
  """Builds the teachers that are other models; reads no weights.

  Args:
    config: The run's settings.
    policy: The student.
    mesh: The mesh for training.

  Returns:
    None if the student's own network is the teacher, or nobody is.

  Raises:
    ConfigError: A model cannot be used, has another tokenizer than the
      student, or fewer positions than its sequences have tokens.
    HubError: A model cannot be downloaded.
  """
  found = {
    key: _build_model(config, key, path, policy, mesh)
    for key, path in teacher_directories(config).items()
  }
  section = config.teacher
  if section.models and config.objective.needs_teacher:
    return TeacherModels(
      {name: found.get(f"teacher.models.{name}") for name in section.models}
    )
  return found.get("teacher.model")


def _build_model(
  config: Config,
  key: str,
  path: pathlib.Path,
  policy: Policy,
  mesh: jax.sharding.Mesh,
) -> TeacherModel:
  section = config.teacher.other_models[key]
  network = _network(config, key, path, policy.config.vocab_size)
  platform = mesh.devices.flat[0].platform
  try:
    sequence_attention.check_platform(section.attention, platform)
    tokenizer = Tokenizer.load(
      path, template_kwargs=config.model.chat_template_kwargs
    )
  except ValueError as error:
    raise _config_error(key, section, error) from error
  student = policy.tokenizer
  difference = tokenizer_match.difference(student, tokenizer)
  if difference:
    raise ConfigError(
      f"{key}.directory={section.directory} has another tokenizer than "
      f"model.directory={config.model.directory}: {difference}; a teacher "
      "scores the student's own tokens, so take a model with the same "
      f"vocabulary, or {key}=null"
    )
  _check_access(config, student.vocab_size)
  if tokenizer_match.is_template_shared(student, tokenizer):
    tokenizer = student
  elif jax.process_index() == 0:
    progress.warn(
      f"the chat template of {key}.directory="
      f"{section.directory} is not the student's: the teacher's prompt is "
      "written with the teacher's own"
    )
  return TeacherModel(
    key,
    section,
    path,
    hf_directory.digest(path),
    network,
    tokenizer,
  )


def teacher_networks(
  config: Config, vocab_size: int, *, only_config: bool = False
) -> dict[str, DecoderConfig]:
  """Returns the sizes of teachers that are other models.

  Args:
    config: The run's settings.
    vocab_size: V of the student. Their logits are cut or padded to it.
    only_config: Download `config.json` of models of the Hub alone.

  Returns:
    Sizes by the keys of `TeacherConfig.other_models`.

  Raises:
    ConfigError: A model cannot be used, or has fewer positions than its
      sequences have tokens.
    HubError: A model cannot be downloaded.
  """
  paths = teacher_directories(config, only_config=only_config)
  return {
    key: _network(config, key, path, vocab_size) for key, path in paths.items()
  }


def _network(
  config: Config, key: str, path: pathlib.Path, vocab_size: int
) -> DecoderConfig:
  section = config.teacher.other_models[key]
  try:
    network = hf_config.from_hugging_face(
      hf_directory.read_config(path),
      param_dtype=section.param_dtype,
      compute_dtype=section.compute_dtype,
      attention=section.attention,
      # Nothing is kept of a pass without gradient.
      remat="none",
    )
    sequence_attention.check(
      network.attention,
      head_size=network.head_size,
      dtype=network.compute_dtype,
    )
  except ValueError as error:
    raise _config_error(key, section, error) from error
  prompt = config.teacher.max_prompt_length
  completion = config.rollout.max_completion_length
  if prompt + completion > network.max_positions:
    raise ConfigError(
      f"teacher.max_prompt_length={prompt} and rollout.max_completion_length="
      f"{completion} are longer than the {network.max_positions} positions of "
      f"{key}.directory={section.directory} "
      "(max_position_embeddings); lower one of them"
    )
  return dataclasses.replace(network, vocab_size=vocab_size)


def check_resumed_teacher(
  config: Config,
  saved: Any,
  teacher: Teachers | None,
  step: int,
) -> None:
  """Refuses to go on from a checkpoint with another teacher.

  Args:
    config: The run's settings.
    saved: What the checkpoint says of its teacher, from its `notes`.
    teacher: The teacher now, or several.
    step: The checkpoint's step.

  Raises:
    ConfigError: The folder of a teacher holds another model than before.
  """
  if teacher is None or saved is None:
    return  # a setting has changed, which `check_same_settings` refuses
  if isinstance(teacher, TeacherModels):
    for name, one in teacher.models.items():
      check_resumed_teacher(config, saved.get(name), one, step)
    return
  now = teacher.notes()
  if saved["digest"] != now["digest"]:
    raise ConfigError(
      f"{config.run_directory} has a checkpoint of step {step} whose teacher "
      f"had digest {saved['digest']}, but {teacher.key}.directory="
      f"{teacher.section.directory} now has {now['digest']}: its config or "
      "weights have changed; restore them, or set another train.run_directory"
    )


def _config_error(
  key: str, section: TeacherModelConfig, error: Exception
) -> ConfigError:
  return ConfigError(f"{key}.directory={section.directory}: {error}")


def _check_access(config: Config, num_tokens: int) -> None:
  """Refuses lists of tokens that are longer than what both models know."""
  sizes = {"objective.top_k": getattr(config.objective, "top_k", None)}
  if config.teacher.access == "top_k":
    sizes["teacher.top_k"] = config.teacher.top_k
  for name, size in sizes.items():
    if size is not None and size > num_tokens:
      raise ConfigError(
        f"{name}={size} is more than the {num_tokens} tokens of student and "
        "teacher; lower it"
      )


def _with_vocabulary(
  params: decoder.Params, vocab_size: int, mesh: jax.sharding.Mesh
) -> decoder.Params:
  """Cuts or pads embedding and unembedding to a number of entries.

  Both models know the tokens, and what is cut or added is padding. With one
  number of logits, devices share the teacher's as they share the student's.
  """
  axes = {"embedding": 0, "unembedding": 1}
  changed = {
    name: params[name]
    for name, axis in axes.items()
    if name in params and params[name].shape[axis] != vocab_size
  }
  if not changed:
    return params

  def resized(name: str, x: jax.Array) -> jax.Array:
    axis = axes[name]
    kept = jax.lax.slice_in_dim(x, 0, min(x.shape[axis], vocab_size), axis=axis)
    padding = [(0, 0), (0, 0)]
    padding[axis] = (0, vocab_size - kept.shape[axis])
    return jnp.pad(kept, padding)

  def resize(changed):
    return {name: resized(name, x) for name, x in changed.items()}

  places = decoder.shardings(mesh, jax.eval_shape(resize, changed))
  return {**params, **jax.jit(resize, out_shardings=places)(changed)}
