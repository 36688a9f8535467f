"""A policy to hold in one's hands: load it, ask it, look at its logits."""

import dataclasses
import functools
import numbers
import os
import pathlib
import typing
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import Tracer

from distil_jax.data import padding
from distil_jax.data import tokenizer as tokenizers
from distil_jax.generation import engine, random_keys, sampling_params
from distil_jax.models import decoder, hf_export, hf_weights
from distil_jax.models import decoder_config as models_config
from distil_jax.models.kernels import sequence_attention
from distil_jax.ops import fused_linear
from distil_jax.types import Message, Rollout

_EMBEDDED = "embedded:"


@dataclasses.dataclass(frozen=True)
class Policy:
  """A network with its tokenizer.

  Attributes:
    config: sizes of the network.
    graphdef: its graph definition, static.
    params: its parameters.
    tokenizer: text to ids and back.
  """

  config: models_config.DecoderConfig
  graphdef: nnx.GraphDef
  params: decoder.Params
  tokenizer: tokenizers.Tokenizer

  def texts(self, ids: jax.Array, mask: jax.Array) -> list[str]:
    """The texts of `[B, T]` ids without padding and special tokens."""
    return [
      self.tokenizer.decode(row[counts.astype(bool)].tolist())
      for row, counts in zip(np.asarray(ids), np.asarray(mask), strict=True)
    ]

  def save(self, directory: str | os.PathLike[str]) -> None:
    """Writes a Hugging Face directory: weights, config and tokenizer."""
    settings = models_config.to_hugging_face(
      self.config,
      eos_ids=self.tokenizer.eos_ids,
      pad_id=self.tokenizer.pad_id,
    )
    if jax.process_index() == 0:
      self.tokenizer.save(directory)
    hf_export.save(directory, self.params, config_json=settings)


def resolve_directory(directory: str | os.PathLike[str]) -> pathlib.Path:
  """The path of a model; `embedded:NAME` ships with the package."""
  name = str(directory)
  if not name.startswith(_EMBEDDED):
    return pathlib.Path(directory)
  assets = pathlib.Path(__file__).parents[1] / "models/assets"
  path = assets / name.removeprefix(_EMBEDDED)
  if not path.is_dir():
    known = sorted(p.name for p in assets.iterdir() if p.is_dir())
    raise ValueError(
      f"model.directory={name} is not embedded; known: "
      + ", ".join(_EMBEDDED + k for k in known)
    )
  return path


def load_policy(
  directory: str | os.PathLike[str],
  dtype: str = "float32",
  *,
  compute_dtype: str | None = None,
  remat: str = "layer",
  attention: str = "auto",
  mesh: jax.sharding.Mesh | None = None,
  chat_template_kwargs: Mapping[str, Any] | None = None,
) -> Policy:
  """Loads a Hugging Face directory of a Qwen3-architecture decoder.

  Args:
    directory: with `config.json`, safetensors and a tokenizer with a chat
      template; or `embedded:calculator`.
    dtype: of the parameters.
    compute_dtype: of activations; None for that of the parameters.
    remat: `layer` recomputes each layer in the backward pass, `none` keeps it.
    attention: of whole sequences: `xla`, on CUDA GPUs `cudnn`, on TPUs
      `splash`; `auto` takes the best of them that suits.
    mesh: parameters are sharded over it; None puts them on one device.
    chat_template_kwargs: passed to the tokenizer's chat template.

  Raises:
    ValueError: names the file, tensor or setting that does not fit.
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
  path = resolve_directory(directory)
  config = models_config.from_hugging_face(
    hf_weights.read_config(path),
    param_dtype=dtype,
    compute_dtype=compute_dtype,
    remat=remat,
    attention=attention,
  )
  sequence_attention.check(
    config.attention, head_size=config.head_size, dtype=compute_dtype
  )
  tokenizer = tokenizers.Tokenizer.load(
    path, template_kwargs=chat_template_kwargs or {}
  )
  if tokenizer.vocab_size > config.vocab_size:
    raise ValueError(
      f"the tokenizer in {path} has {tokenizer.vocab_size} tokens, but "
      f"config.json says vocab_size={config.vocab_size}: the tokens beyond "
      "have no embedding; take the tokenizer that belongs to the model"
    )
  for token in tokenizer.eos_ids:
    if token >= config.vocab_size:
      raise ValueError(
        f"eos_token_id={token} in {path} is not among the "
        f"{config.vocab_size} tokens of the model: no completion could end "
        "with it; correct generation_config.json or config.json"
      )
  graphdef, template = decoder.make(config)
  if mesh is not None:
    template = jax.tree.map(
      lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
      template,
      decoder.shardings(mesh, template),
    )
  params = hf_weights.load(path, template, tie_embeddings=config.tie_embeddings)
  return Policy(
    config=config, graphdef=graphdef, params=params, tokenizer=tokenizer
  )


def logits(policy: Policy, token_ids: jax.Array, mask: jax.Array) -> jax.Array:
  """Logits of whole sequences, for inspection: `[B, S, V]` is held in memory.

  Args:
    policy: from `load_policy`.
    token_ids: shape `[B, S]`.
    mask: 1 where the token counts, padding on either side. Shape `[B, S]`.

  Returns:
    float32, shape `[B, S, V]`; at padding they mean nothing.

  Raises:
    ValueError: a token that counts is not in the vocabulary.
  """
  token_ids, mask = jnp.asarray(token_ids), jnp.asarray(mask)
  chex.assert_rank([token_ids, mask], 2)
  chex.assert_equal_shape([token_ids, mask])
  if not any(isinstance(x, Tracer) for x in (token_ids, mask)):
    _check_tokens(policy, np.asarray(token_ids)[np.asarray(mask) == 1])
  return _logits(policy.params, token_ids, mask, graphdef=policy.graphdef)


def generate(
  policy: Policy,
  prompts: Sequence[str | Sequence[Message]] | tuple[jax.Array, jax.Array],
  key: jax.Array,
  *,
  group_size: int = 1,
  max_completion_length: int = 128,
  temperature: sampling_params.OneOrMore = 1.0,
  top_k: sampling_params.OneOrMore = None,
  top_p: sampling_params.OneOrMore = None,
  min_p: sampling_params.OneOrMore = None,
  stop: Sequence[str] = (),
  num_slots: int | None = None,
  cache_dtype: str | None = None,
  report: engine.Report | None = None,
) -> Rollout:
  """Samples completions.

  A completion depends on the key, its own prompt and its number within the
  group: not on the other prompts. The same prompt twice gets other samples.

  Args:
    policy: from `load_policy`.
    prompts: a string is a user's message; a list of messages a conversation;
      or left-padded token ids and their mask, `[P, S]` each.
    key: another key gives other samples.
    group_size: G, completions of each prompt.
    max_completion_length: T, tokens.
    temperature: 0 takes the most probable token. This and the next three may
      be one value or a list of one for each prompt.
    top_k: sample among the k most probable; None among all.
    top_p: sample among the most probable that reach this mass; None: all.
    min_p: sample among those at least so probable as this share of the most
      probable; None: all.
    stop: strings that end a completion; see `engine.Engine`.
    num_slots: completions in flight at once; None: all.
    cache_dtype: of keys and values; see `engine.Engine`.
    report: told how many tokens and how many completions are done.

  Returns:
    the rollout; `policy.texts(r.completion_ids, r.completion_mask)` reads it.

  Raises:
    ValueError: no prompt, an empty prompt, one that is not left-padded, a
      token that is not in the vocabulary, or a setting out of its range.
  """
  _check_size("group_size", group_size)
  _check_size("max_completion_length", max_completion_length)
  ids, mask = _prompt_arrays(policy, prompts)
  choice = sampling_params.choice(
    temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p
  )
  for field in dataclasses.fields(choice):
    count = np.size(getattr(choice, field.name))
    if count not in (1, len(ids)):
      raise ValueError(f"{field.name} has {count} values, {len(ids)} prompts")
  names = [
    zlib.crc32(row[counts.astype(bool)].astype("<i4").tobytes())
    for row, counts in zip(ids, mask, strict=True)
  ]
  if isinstance(key, numbers.Integral):
    raise ValueError(f"key={key} is no key; give jax.random.key({key})")
  if not jnp.issubdtype(jnp.asarray(key).dtype, jax.dtypes.prng_key):
    key = jax.random.wrap_key_data(key)
  sampler = engine.Engine(
    policy.graphdef,
    max_completion_length=max_completion_length,
    eos_ids=policy.tokenizer.eos_ids,
    pad_id=policy.tokenizer.pad_id,
    num_slots=num_slots,
    cache_dtype=cache_dtype,
    stop=stop,
    decode=policy.tokenizer.decode,
  )
  sampled, _ = sampler(
    policy.params,
    jnp.asarray(ids),
    jnp.asarray(mask),
    random_keys.sample_keys(key, random_keys.identities(names), group_size),
    choice,
    report=report or (lambda num_tokens, num_done: None),
  )
  return sampled


@functools.partial(jax.jit, static_argnames="graphdef")
def _logits(params, ids, mask, *, graphdef):
  hidden = decoder.hidden_states(graphdef, params, ids, mask)
  return fused_linear.logits(hidden, decoder.unembedding(params))


def _prompt_arrays(policy: Policy, given) -> tuple[np.ndarray, np.ndarray]:
  if isinstance(given, str):
    raise ValueError("prompts is one string; give a list of prompts")
  if len(given) == 0:
    raise ValueError("prompts is empty")
  if isinstance(given[0], Mapping):
    raise ValueError("prompts is one conversation; give a list of them")
  if isinstance(given, tuple) and not isinstance(given[0], str):
    ids, mask = (np.asarray(x) for x in given)
    chex.assert_rank([ids, mask], 2)
    chex.assert_equal_shape([ids, mask])
    if ids.size and not np.issubdtype(ids.dtype, np.integer):
      raise ValueError(f"token ids must be whole numbers, got {ids.dtype}")
  else:
    rows = [
      policy.tokenizer.encode_messages(
        [{"role": "user", "content": p}] if isinstance(p, str) else list(p)
      )
      for p in given
    ]
    ids, mask = padding.pad_left(
      rows, max(map(len, rows)), policy.tokenizer.pad_id
    )
  if not len(ids):
    raise ValueError("prompts is empty")
  if not np.isin(mask, (0, 1)).all():
    raise ValueError("the mask of the prompts must be 1 or 0 everywhere")
  if not mask.any(axis=1).all():
    raise ValueError("a prompt has no token")
  if (np.diff(mask, axis=1) < 0).any():
    raise ValueError("prompts must be padded on the left: the mask falls")
  _check_tokens(policy, ids[mask == 1])
  return ids.astype(np.int32), mask.astype(np.int32)


def _check_tokens(policy: Policy, ids: np.ndarray) -> None:
  vocab_size = policy.config.vocab_size
  unknown = (ids < 0) | (ids >= vocab_size)
  if unknown.any():
    raise ValueError(
      f"there is a token {ids[unknown][0]}, but the vocabulary has ids 0 to "
      f"{vocab_size - 1}"
    )


def _check_size(name: str, size: int) -> None:
  is_whole = isinstance(size, numbers.Integral) and not isinstance(size, bool)
  if not is_whole or size < 1:
    raise ValueError(f"{name}={size} must be a positive whole number")
