"""A policy: a network with its parameters and its tokenizer.

Loads it from a Hugging Face directory, saves it, and shows its logits.
"""

import dataclasses
import functools
import os
import pathlib
import typing
from collections.abc import Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import Tracer

from distil_jax.data import chat_templates
from distil_jax.data import tokenizer as tokenizers
from distil_jax.generation.policy_directory import resolve_directory
from distil_jax.models import (
  decoder,
  hf_config,
  hf_directory,
  hf_export,
  hf_files,
  hf_weights,
  layers,
  lora,
)
from distil_jax.models import decoder_config as models_config
from distil_jax.models.kernels import sequence_attention
from distil_jax.ops import fused_linear


@dataclasses.dataclass(frozen=True)
class Policy:
  """Holds a network, its parameters and its tokenizer.

  Attributes:
    config: Sizes of the network.
    graphdef: Graph definition of the network, static under jit.
    params: Parameters of the network.
    tokenizer: Turns text into token ids and back.
  """

  config: models_config.DecoderConfig
  # Shown in full, these three fill pages of a notebook.
  graphdef: nnx.GraphDef = dataclasses.field(repr=False)
  params: layers.Params = dataclasses.field(repr=False)
  tokenizer: tokenizers.Tokenizer = dataclasses.field(repr=False)

  def texts(self, ids: jax.Array, mask: jax.Array) -> list[str]:
    """Returns the texts of token ids without padding and special tokens.

    Args:
      ids: Shape `[B, T]`.
      mask: 1 where the token counts. Shape `[B, T]`.
    """
    return [
      self.tokenizer.decode(row[counts.astype(bool)].tolist())
      for row, counts in zip(np.asarray(ids), np.asarray(mask), strict=True)
    ]

  @property
  def sampling_graphdef(self) -> nnx.GraphDef:
    """The graph definition of the network that samples."""
    if self.config.sampled is self.config:
      return self.graphdef
    return decoder.make(self.config.sampled)[0]

  def save(
    self, directory: str | os.PathLike[str], *, dtype: str | None = None
  ) -> None:
    """Writes a Hugging Face directory: weights, config and tokenizer.

    Adapters are merged into the weights.

    Args:
      directory: Made if it does not exist. Earlier weights are replaced, and
        settings in its `generation_config.json` are kept.
      dtype: Type of the weights; None means that of the parameters.
    """
    settings = hf_config.to_hugging_face(
      self.config,
      eos_ids=self.tokenizer.eos_ids,
      pad_id=self.tokenizer.pad_id,
    )
    # Weights are gathered from all processes, so each of them calls `save`;
    # files that are the same everywhere are written by one.
    if jax.process_index() == 0:
      self.tokenizer.save(directory)
    merged = lora.merge(self.params, self.config.lora, dtype)
    network = dataclasses.replace(self.config, lora=None)
    hf_export.save(
      directory, merged, network, config_json=settings, dtype=dtype
    )


def load_policy(
  directory: str | os.PathLike[str],
  dtype: str = "float32",
  *,
  revision: str | None = None,
  compute_dtype: str | None = None,
  remat: str = "layer",
  attention: str = "auto",
  mesh: jax.sharding.Mesh | None = None,
  chat_template_kwargs: Mapping[str, Any] | None = None,
  report: hf_files.Report | None = None,
) -> Policy:
  """Loads a Hugging Face directory of a decoder; see `models.families`.

  Args:
    directory: Has `config.json`, safetensors and a tokenizer with a chat
      template; or OWNER/NAME of a model on the Hub, which is downloaded into
      its cache; or `embedded:calculator`.
    dtype: Type of the parameters.
    revision: Branch, tag or commit of a model on the Hub; None means `main`.
    compute_dtype: Type of activations; None means that of the parameters.
    remat: `layer` recomputes each layer in the backward pass, `none` keeps it.
    attention: Kernel for whole sequences: `xla`, on CUDA GPUs `cudnn`, on TPUs
      `splash`; `auto` takes the best one that supports the network.
    mesh: Mesh to shard the parameters over; None puts them on one device.
    chat_template_kwargs: Passed to the tokenizer's chat template.
    report: Told how many bytes of the weights this process has read, and how
      many it will read in all.

  Raises:
    ValueError: Names the file, tensor or setting that does not fit.
    HubError: The model cannot be downloaded.
  """
  if remat not in ("layer", "none"):
    raise ValueError(f"remat={remat!r} must be 'layer' or 'none'")
  known = typing.get_args(sequence_attention.Implementation)
  if attention not in known:
    raise ValueError(f"attention={attention!r} must be one of {known}")
  dtype = models_config.float_name("dtype", dtype)
  compute_dtype = models_config.float_name(
    "compute_dtype", compute_dtype or dtype
  )
  path = resolve_directory(directory, revision)
  config = hf_config.from_hugging_face(
    hf_directory.read_config(path),
    param_dtype=dtype,
    compute_dtype=compute_dtype,
    remat=remat,
    attention=attention,
  )
  sequence_attention.check(
    config.attention, head_size=config.head_size, dtype=compute_dtype
  )
  # The small files are checked before the weights are read, which takes
  # minutes.
  tokenizer = tokenizers.Tokenizer.load(
    path, template_kwargs=chat_template_kwargs or {}
  )
  _check_tokenizer(path, tokenizer, config.vocab_size)
  if tokenizer.vocab_size < config.vocab_size:
    config = dataclasses.replace(config, num_tokens=tokenizer.vocab_size)
  graphdef, template = decoder.make(config)
  if mesh is not None:
    # With shardings in the template no device ever holds the whole model.
    template = jax.tree.map(
      lambda x, sharding: jax.ShapeDtypeStruct(
        x.shape, x.dtype, sharding=sharding
      ),
      template,
      decoder.shardings(mesh, template),
    )
  params = hf_weights.load(path, template, config, report=report)
  return Policy(
    config=config, graphdef=graphdef, params=params, tokenizer=tokenizer
  )


def logits(policy: Policy, token_ids: jax.Array, mask: jax.Array) -> jax.Array:
  """Returns the logits of whole sequences, for inspection.

  All of `[B, S, V]` is held in memory. Entries that pad the vocabulary have the
  network's own logits here, although no token is drawn or scored with them.

  Args:
    policy: From `load_policy`.
    token_ids: Shape `[B, S]`.
    mask: 1 where the token counts, padding on either side. Shape `[B, S]`.

  Returns:
    float32, shape `[B, S, V]`; values at padding are meaningless.

  Raises:
    ValueError: A token that counts is not in the vocabulary.
  """
  token_ids, mask = jnp.asarray(token_ids), jnp.asarray(mask)
  chex.assert_rank([token_ids, mask], 2)
  chex.assert_equal_shape([token_ids, mask])
  # Under jit the values are not known yet, so they cannot be checked.
  if not any(isinstance(x, Tracer) for x in (token_ids, mask)):
    check_tokens(policy, np.asarray(token_ids)[np.asarray(mask) == 1])
  return _logits(policy.params, token_ids, mask, graphdef=policy.graphdef)


@functools.partial(jax.jit, static_argnames="graphdef")
def _logits(params, ids, mask, *, graphdef):
  hidden = decoder.hidden_states(graphdef, params, ids, mask)
  return fused_linear.logits(hidden, layers.unembedding(params))


def check_tokens(policy: Policy, ids: np.ndarray) -> None:
  """Refuses token ids that are not in the vocabulary.

  Raises:
    ValueError: Names the first such token.
  """
  vocab_size = policy.config.vocab_size
  unknown = (ids < 0) | (ids >= vocab_size)
  if unknown.any():
    raise ValueError(
      f"there is a token {ids[unknown][0]}, but the vocabulary has ids 0 to "
      f"{vocab_size - 1}"
    )


def _check_tokenizer(
  path: pathlib.Path, tokenizer: tokenizers.Tokenizer, vocab_size: int
) -> None:
  """Refuses tokens without an embedding, and settings that nothing reads."""
  fault = chat_templates.unread_setting(
    tokenizer.backend.chat_template, tokenizer.template_kwargs
  )
  if fault:
    raise ValueError(f"{path}: {fault}")
  if tokenizer.vocab_size > vocab_size:
    raise ValueError(
      f"the tokenizer in {path} has {tokenizer.vocab_size} tokens, but "
      f"config.json says vocab_size={vocab_size}: the tokens beyond "
      "have no embedding; take the tokenizer that belongs to the model"
    )
  for token in tokenizer.eos_ids:
    if token >= vocab_size:
      raise ValueError(
        f"eos_token_id={token} in {path} is not among the "
        f"{vocab_size} tokens of the model: no completion could end "
        "with it; correct generation_config.json or config.json"
      )
