"""Begins a run from a PEFT adapter, and writes the run's own as one."""

import os
import pathlib
from typing import Any

import jax

from distil_jax.config.base import ConfigError
from distil_jax.config.schema import Config
from distil_jax.models import (
  decoder,
  hf_adapter,
  hf_directory,
  hf_hub,
  lora,
)
from distil_jax.models import decoder_config as models_config
from distil_jax.training.setup.model_directory import (
  base_digest,
  model_directory,
)


def load_adapter(
  config: Config,
  network: models_config.DecoderConfig,
  shapes: decoder.Params,
  shardings: Any,
) -> decoder.Params:
  """Reads the adapter that the run begins from.

  Args:
    config: the run's settings, with `model.lora.adapter`.
    network: the network with its adapters.
    shapes: of the adapters.
    shardings: of the adapters, in the same tree.

  Raises:
    ConfigError: the adapter has another rank, alpha or other matrices than
      `model.lora`, or belongs to another model.
    WeightsError: it is of a kind that is not read, or does not fit.
  """
  section = config.model.lora
  assert section is not None
  assert section.adapter is not None
  if not pathlib.Path(section.adapter).is_dir():
    raise ConfigError(
      f"there is no folder model.lora.adapter={section.adapter}; correct the "
      "path, or download an adapter of the Hub with `hf download OWNER/NAME "
      "--local-dir FOLDER`"
    )
  found, base = hf_adapter.read(section.adapter, network)
  _check_same_settings(config, found, network.lora)
  _check_same_base(config, section.adapter, base)
  template = jax.tree.map(
    lambda x, sharding: jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=sharding
    ),
    shapes,
    shardings,
  )
  return hf_adapter.load(section.adapter, template, network)


def save_adapter(
  config: Config,
  network: models_config.DecoderConfig,
  params: decoder.Params,
  directory: str | os.PathLike[str],
  *,
  dtype: str | None = None,
) -> None:
  """Writes the run's adapter as a folder that PEFT can load.

  With several processes all must call this.

  Args:
    config: the run's settings.
    network: the network with its adapters.
    params: parameters of the network, with adapters.
    directory: made if it does not exist.
    dtype: type of the tensors; None means that of the adapters.

  Raises:
    ConfigError: the run has no adapters.
  """
  if config.model.lora is None:
    raise ConfigError(
      "model.lora=null: the run trains all weights and has no adapter; leave "
      "out --adapter to export them"
    )
  name = config.model.directory
  if not _is_of_hub(name):
    name = str(model_directory(config).resolve())
  base = hf_adapter.Base(name, config.model.revision, base_digest(config))
  _, adapter = lora.split(params)
  hf_adapter.save(directory, adapter, network, base=base, dtype=dtype)


def _is_of_hub(name: str) -> bool:
  return hf_hub.is_name(name) and not pathlib.Path(name).is_dir()


def _are_others_of_hub(one: str, other: str) -> bool:
  """Returns True if both names are of the Hub, and of two models."""
  if not (_is_of_hub(one) and _is_of_hub(other)):
    return False
  return one.casefold() != other.casefold()


def _check_same_settings(
  config: Config,
  found: models_config.LoRA,
  wanted: models_config.LoRA | None,
) -> None:
  """Refuses an adapter that is not what `model.lora` describes."""
  section = config.model.lora
  assert section is not None
  assert wanted is not None
  if (found.rank, found.alpha, set(found.targets)) == (
    wanted.rank,
    wanted.alpha,
    set(wanted.targets),
  ):
    return
  names = {ours: theirs for theirs, ours in lora.TARGETS.items()}
  own, other = (
    f"rank={x.rank}, alpha={x.alpha:g}, targets="
    f"[{', '.join(names[target] for target in x.targets)}]"
    for x in (wanted, found)
  )
  raise ConfigError(
    f"model.lora has {own}, but model.lora.adapter={section.adapter} is an "
    f"adapter with {other}; set these in model.lora, or begin from another one"
  )


def _check_same_base(
  config: Config, adapter: str, base: hf_adapter.Base
) -> None:
  """Refuses the adapter of another model, as far as its files tell."""
  message = (
    f"the adapter in model.lora.adapter={adapter} is one of {base.name}, not "
    f"of model.directory={config.model.directory}; set model.directory to its "
    "base, or begin from another adapter"
  )
  digest = base.digest
  if digest is None and base.name:
    folder = pathlib.Path(base.name)
    # PEFT notes no more than a name: of the Hub, or of a folder that may be
    # elsewhere by now.
    if (folder / hf_directory.CONFIG).is_file():
      digest = hf_directory.digest(folder)
    elif _are_others_of_hub(base.name, config.model.directory):
      raise ConfigError(message)
  if digest is not None and digest != base_digest(config):
    raise ConfigError(f"{message} (config or weights differ)")
