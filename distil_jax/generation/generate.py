"""Samples completions of prompts that a person has."""

import dataclasses
import numbers
import zlib
from collections.abc import Mapping, Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np

from distil_jax.data import padding
from distil_jax.generation import engine, random_keys
from distil_jax.generation.engine_config import EngineConfig
from distil_jax.generation.policy import Policy, check_tokens
from distil_jax.generation.sampling_params import (
  OneOrMore,
  SamplingParams,
  check_size,
)
from distil_jax.generation.usage import Report, no_report
from distil_jax.types import Message, Rollout

# Strings, conversations, or token ids and their mask.
Prompts = Sequence[str | Sequence[Message]] | tuple[jax.Array, jax.Array]


def generate(
  policy: Policy,
  prompts: Prompts,
  key: jax.Array,
  *,
  group_size: int = 1,
  max_completion_length: int = 128,
  temperature: OneOrMore = 1.0,
  top_k: OneOrMore = None,
  top_p: OneOrMore = None,
  min_p: OneOrMore = None,
  stop: Sequence[str] = (),
  num_slots: int | None = None,
  cache_dtype: str | None = None,
  report: Report | None = None,
) -> Rollout:
  """Samples completions.

  A completion depends on the key, its own prompt and its number within the
  group: not on the other prompts. The same prompt twice gets other samples.

  Args:
    policy: From `load_policy`.
    prompts: A string is a user's message; a list of messages a conversation;
      or left-padded token ids and their mask, `[P, S]` each.
    key: Another key gives other samples.
    group_size: G, completions of each prompt.
    max_completion_length: T, the most tokens of a completion.
    temperature: 0 takes the most probable token. This and the next three may
      be one value, or a list of one for each prompt.
    top_k: Sample among the k most probable tokens; None means all.
    top_p: Sample among the most probable tokens that reach this mass; None
      means all.
    min_p: Sample among tokens whose probability is at least this share of the
      largest; None means all.
    stop: Strings that end a completion when its text contains one of them.
    num_slots: Completions in flight at once; None means all.
    cache_dtype: Type of keys and values; None means bfloat16 on accelerators
      and the type of the activations on a CPU.
    report: Called with the number of tokens and of completions that are done.

  Returns:
    The rollout; `policy.texts(r.completion_ids, r.completion_mask)` reads it.

  Raises:
    ValueError: There is no prompt, a prompt is empty or not left-padded, a
      token is not in the vocabulary, or a setting is out of its range.
  """
  check_size("max_completion_length", max_completion_length)
  return sample_completions(
    policy,
    prompts,
    key,
    SamplingParams(
      temperature=temperature,
      top_k=top_k,
      top_p=top_p,
      min_p=min_p,
      stop=stop,
      max_tokens=max_completion_length,
    ),
    group_size=group_size,
    engine_config=EngineConfig(num_slots=num_slots, cache_dtype=cache_dtype),
    report=report or no_report,
  )


def sample_completions(
  policy: Policy,
  prompts: Prompts,
  key: jax.Array,
  sampling: SamplingParams,
  *,
  group_size: int = 1,
  engine_config: EngineConfig | None = None,
  report: Report = no_report,
) -> Rollout:
  """Samples completions by settings that are made already; see `generate`.

  Args:
    policy, prompts, key, group_size, report: As for `generate`.
    sampling: How tokens are chosen and where completions end.
    engine_config: Slots and type of the KV cache; None means the defaults.

  Returns:
    As `generate`.

  Raises:
    ValueError: As `generate`.
  """
  check_size("group_size", group_size)
  ids, mask = _prompt_arrays(policy, prompts)
  arrays = sampling.arrays()
  for field in dataclasses.fields(arrays):
    count = np.size(getattr(arrays, field.name))
    if count not in (1, len(ids)):
      raise ValueError(f"{field.name} has {count} values, {len(ids)} prompts")
  # A prompt is named by its tokens, so that its samples do not depend on its
  # place among the prompts.
  # Width and byte order are fixed, so that every machine gives the same names.
  names = [
    zlib.crc32(row[counts.astype(bool)].astype("<i4").tobytes())
    for row, counts in zip(ids, mask, strict=True)
  ]
  if isinstance(key, numbers.Integral):
    raise ValueError(f"key={key} is no key; give jax.random.key({key})")
  # `jax.random.PRNGKey` returns plain numbers without the type of a key.
  if not jnp.issubdtype(jnp.asarray(key).dtype, jax.dtypes.prng_key):
    key = jax.random.wrap_key_data(key)
  run = engine.Engine(
    policy.sampling_graphdef,
    engine_config,
    eos_ids=policy.tokenizer.eos_ids,
    pad_id=policy.tokenizer.pad_id,
    decode=policy.tokenizer.decode,
    special_ids=policy.tokenizer.special_ids,
    adapters=policy.config.merged_lora,
  )
  sampled, _ = run(
    policy.params,
    jnp.asarray(ids),
    jnp.asarray(mask),
    random_keys.sample_keys(key, random_keys.identities(names), group_size),
    sampling,
    report=report,
  )
  return sampled


def _prompt_arrays(policy: Policy, given) -> tuple[np.ndarray, np.ndarray]:
  """Returns left-padded token ids and their mask; refuses unusable prompts."""
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
  check_tokens(policy, ids[mask == 1])
  return ids.astype(np.int32), mask.astype(np.int32)
