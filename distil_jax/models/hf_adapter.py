"""Reads and writes adapters as PEFT does.

A folder holds `adapter_config.json` and `adapter_model.safetensors`. There A is
`[rank, inputs]` and B `[outputs, rank]`, and each layer has tensors of its own;
here layers are stacked and heads apart, as in `hf_weights`.
"""

import dataclasses
import os
import pathlib
import shutil
import tempfile
from collections.abc import Mapping
from typing import Any

import jax
import safetensors
import safetensors.numpy
from flax import traverse_util

from distil_jax.models import hf_export, hf_files, hf_shards, lora
from distil_jax.models.decoder_config import DecoderConfig, LoRA
from distil_jax.models.families import FAMILIES
from distil_jax.models.hf_directory import WeightsError, existing, read_json
from distil_jax.models.hf_layout import Layout, Path

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
# The key of the file's metadata that says which weights the adapter is of.
_DIGEST = "base_digest"
_MERGE = (
  "merge it into its base with PEFT's merge_and_unload, and begin from the "
  "merged model"
)
# Settings of PEFT that change what an adapter computes, or which tensors it
# has, with the values that are read, and the cure for any other.
_READ_VALUES: Mapping[str, tuple[tuple[Any, ...], str]] = {
  "peft_type": (("LORA",), f"only LoRA is read; {_MERGE}"),
  "task_type": ((None, "CAUSAL_LM"), "only a language model is read"),
  "use_rslora": (
    (None, False),
    "set it to false and lora_alpha to lora_alpha times the square root of r, "
    "which computes the same",
  ),
  "use_dora": ((None, False), _MERGE),
  "modules_to_save": ((None, []), _MERGE),
  "bias": ((None, "none"), _MERGE),
  "fan_in_fan_out": (
    (None, False),
    "only linear layers are read; save it for a model that has them",
  ),
  "init_lora_weights": (
    (None, True, False, "gaussian", "orthogonal", "eva"),
    "the weights of its base were changed too; save it with PEFT's "
    "path_initial_model_for_weight_conversion",
  ),
}
# Settings that do not change what a trained adapter computes. Any other that is
# not empty may do so, and is refused.
_IGNORED = frozenset(
  (
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "layers_pattern",
    "loftq_config",
    "lora_alpha",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "r",
    "revision",
    "runtime_config",
    "target_modules",
  )
)


@dataclasses.dataclass(frozen=True)
class Base:
  """Describes the model that an adapter stands beside.

  Attributes:
    name: Its folder, or OWNER/NAME on the Hub; None means that it is not known.
    revision: Branch, tag or commit on the Hub; None means `main`.
    digest: From `hf_directory.digest`; None means that it is not known.
  """

  name: str | None
  revision: str | None = None
  digest: str | None = None


def save(
  directory: str | os.PathLike[str],
  adapter: Mapping[str, Any],
  config: DecoderConfig,
  *,
  base: Base,
  dtype: str | None = None,
) -> None:
  """Writes an adapter as a folder that PEFT can load.

  Everything is written under a temporary name first. With several processes all
  must call this.

  Args:
    directory: Created if it does not exist; an earlier adapter is replaced.
    adapter: As from `lora.split`, in any sharding.
    config: Of the network, with the adapters.
    base: The model that the adapter was trained beside.
    dtype: Type of the tensors in the file; None means that of the parameters.
  """
  assert config.lora is not None
  flat = traverse_util.flatten_dict(dict(adapter))
  layouts = _layouts(config, config.lora.targets)
  # Adapters are small, so all of one is held on the host.
  tensors = dict(hf_export.unstacked(flat, layouts, dtype))
  if jax.process_index() != 0:
    return
  directory = pathlib.Path(directory)
  directory.mkdir(parents=True, exist_ok=True)
  metadata = {"format": "pt"}
  if base.digest is not None:
    metadata[_DIGEST] = base.digest
  with tempfile.TemporaryDirectory(dir=directory, prefix=".writing-") as name:
    folder = pathlib.Path(name)
    hf_export.write_json(folder / CONFIG, _settings(config.lora, base))
    safetensors.numpy.save_file(tensors, folder / WEIGHTS, metadata=metadata)
    # safetensors makes files that only their owner can read.
    shutil.copymode(folder / CONFIG, folder / WEIGHTS)
    # A folder with a config is complete.
    (directory / CONFIG).unlink(missing_ok=True)
    for file in (WEIGHTS, CONFIG):
      (folder / file).replace(directory / file)


def read(
  directory: str | os.PathLike[str], config: DecoderConfig
) -> tuple[LoRA, Base]:
  """Returns what an adapter is, and of which model; reads no weights.

  Args:
    directory: A folder that PEFT wrote.
    config: Of the network, whose matrices the adapter must belong to.

  Raises:
    WeightsError: A file is missing or damaged, the adapter is of a kind that is
      not read, or it belongs to matrices that have no adapters here.
  """
  directory = existing(directory)
  path = directory / CONFIG
  if not path.is_file():
    raise WeightsError(f"{directory} has no {CONFIG}: it holds no PEFT adapter")
  settings = read_json(path)
  _check_kind(path, settings)
  rank, alpha = settings.get("r"), settings.get("lora_alpha")
  if not isinstance(rank, int) or not rank > 0:
    raise WeightsError(f"{path}: r={rank!r} must be a whole number above 0")
  if not isinstance(alpha, int | float) or not alpha > 0:
    raise WeightsError(f"{path}: lora_alpha={alpha!r} must be a number above 0")
  tensors, digest = _open(directory)
  targets = _targets(directory, tensors, config)
  base = Base(
    settings.get("base_model_name_or_path"), settings.get("revision"), digest
  )
  return LoRA(rank, float(alpha), targets), base


def load(
  directory: str | os.PathLike[str],
  template: Mapping[str, Any],
  config: DecoderConfig,
) -> dict[str, Any]:
  """Reads an adapter into the tree of the network's adapters.

  Args:
    directory: A folder for which `read` returned the adapters of `config`.
    template: `jax.ShapeDtypeStruct`s, as from `lora.split`. Values are cast to
      its dtypes and placed by its shardings, if it has any.
    config: Of the network, with the adapters.

  Raises:
    WeightsError: Tensors are missing or mis-shaped; all of them are listed.
  """
  assert config.lora is not None
  directory = existing(directory)
  tensors, _ = _open(directory)
  leaves = traverse_util.flatten_dict(dict(template))
  layouts = _layouts(config, config.lora.targets)
  _check_tensors(directory, tensors, leaves, layouts)
  params = hf_shards.read_all(
    tensors,
    {path: (layouts[path], leaf) for path, leaf in leaves.items()},
    report=lambda num_bytes_done, num_bytes_total: None,
    copy=hf_files.copy,
  )
  return traverse_util.unflatten_dict(params)


def _layouts(
  config: DecoderConfig, targets: tuple[str, ...]
) -> dict[Path, Layout]:
  """Returns name and layout of A and B of each matrix."""
  found = {}
  for target in targets:
    matrix = FAMILIES[config.family].tensors["layers", target]
    name = f"base_model.model.{matrix.name.removesuffix('.weight')}"
    a, b = lora.names(target)
    found["layers", a] = Layout(f"{name}.lora_A.weight", matrix.num_inputs)
    found["layers", b] = Layout(f"{name}.lora_B.weight", 1)
  return found


def _settings(adapters: LoRA, base: Base) -> dict[str, Any]:
  """Returns the contents of `adapter_config.json`."""
  names = {ours: theirs for theirs, ours in lora.TARGETS.items()}
  alpha = adapters.alpha
  return {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": base.name,
    "revision": base.revision,
    "inference_mode": True,
    "r": adapters.rank,
    # PEFT declares a whole number, though it computes with any.
    "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
    "lora_dropout": 0.0,
    "target_modules": [names[target] for target in adapters.targets],
    "bias": "none",
    "fan_in_fan_out": False,
    "init_lora_weights": True,
    "modules_to_save": None,
    "use_dora": False,
    "use_rslora": False,
  }


def _check_kind(path: pathlib.Path, settings: Mapping[str, Any]) -> None:
  """Refuses settings with which an adapter computes something else."""
  for key, value in settings.items():
    if key in _READ_VALUES:
      known, cure = _READ_VALUES[key]
      # `in` would take 0 for False.
      is_read = any(value == x and type(value) is type(x) for x in known)
    else:
      is_read = key in _IGNORED or value in (None, False, [], {})
      cure = f"only plain LoRA is read; {_MERGE}"
    if not is_read:
      raise WeightsError(f"{path}: {key}={value!r} is not supported: {cure}")
  if "peft_type" not in settings:
    raise WeightsError(f"{path} has no peft_type: PEFT did not write it")


def _open(
  directory: pathlib.Path,
) -> tuple[dict[str, hf_files.StoredTensor], str | None]:
  """Maps the weights into memory; returns them and the digest of the base."""
  path = directory / WEIGHTS
  if not path.is_file():
    raise WeightsError(
      f"{directory} has no {WEIGHTS}; other formats are not read, save the "
      "adapter again as safetensors"
    )
  try:
    with safetensors.safe_open(path, "numpy") as file:
      metadata = file.metadata() or {}
    return hf_files.open_file(path), metadata.get(_DIGEST)
  except safetensors.SafetensorError as error:
    raise WeightsError(
      f"{path} is no complete safetensors file: {error}"
    ) from error


def _targets(
  directory: pathlib.Path,
  tensors: Mapping[str, hf_files.StoredTensor],
  config: DecoderConfig,
) -> tuple[str, ...]:
  """Returns the matrices that the tensors belong to.

  The names of modules in the settings may be patterns, so that the tensors say
  more surely what an adapter has.
  """
  known = [
    target
    for target in lora.TARGETS.values()
    if not (config.num_experts and target in lora.MLP)
  ]
  found, names = [], set[str]()
  for target in known:
    layouts = _layouts(config, (target,)).values()
    own = {
      name for layout in layouts for name in layout.names((config.num_layers,))
    }
    if own & tensors.keys():
      found.append(target)
    names |= own
  if extra := sorted(tensors.keys() - names):
    modules = [x for x in lora.TARGETS if lora.TARGETS[x] in known]
    raise WeightsError(
      f"{directory / WEIGHTS} has {len(extra)} tensors for which a "
      f"{config.family} of {config.num_layers} layers has no adapters, such as "
      f"{extra[0]}; it has them for {', '.join(modules)} of its layers: is the "
      f"adapter of another base? If not, {_MERGE}"
    )
  if not found:
    raise WeightsError(f"{directory / WEIGHTS} holds no adapter")
  return tuple(found)


def _check_tensors(
  directory: pathlib.Path,
  tensors: Mapping[str, hf_files.StoredTensor],
  leaves: Mapping[Path, Any],
  layouts: Mapping[Path, Layout],
) -> None:
  """Compares every tensor of the file with what the network needs."""
  problems = []
  for path, leaf in leaves.items():
    shape = list(layouts[path].theirs(leaf.shape))
    for name in layouts[path].names(leaf.shape):
      if name not in tensors:
        problems.append(f"missing {name}: expected {shape}")
      elif (found := list(tensors[name].shape)) != shape:
        problems.append(f"mis-shaped {name}: found {found}, expected {shape}")
      elif (dtype := tensors[name].dtype) not in hf_files.FLOATS:
        problems.append(
          f"unreadable {name}: found type {dtype}, expected one of "
          f"{', '.join(hf_files.FLOATS)}"
        )
  if problems:
    head = f"the adapter in {directory} does not fit the model; is it of "
    raise WeightsError("\n  ".join([f"{head}another base?", *problems]))
