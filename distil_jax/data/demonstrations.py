"""Encodes demonstrations, and checks that they fit before a run begins."""

from collections.abc import Sequence

from distil_jax.config.base import ConfigError
from distil_jax.config.data import DataConfig
from distil_jax.config.rollout import RolloutConfig
from distil_jax.data.tokenizer import Tokenizer
from distil_jax.types import Demonstration


def encode(
  demonstration: Demonstration, tokenizer: Tokenizer
) -> tuple[list[int], list[int]]:
  """Returns the tokens of prompt and completion.

  A prompt ends with the demonstration's prefix, a completion with the token
  that ends an assistant's turn in the chat template.
  """
  prompt = tokenizer.encode_messages(demonstration.messages)
  return (
    prompt + tokenizer.encode(demonstration.prefix),
    [*tokenizer.encode(demonstration.solution), tokenizer.end_id],
  )


def drop_long(
  demonstrations: Sequence[Demonstration],
  tokenizer: Tokenizer,
  data: DataConfig,
  limits: RolloutConfig,
) -> tuple[list[Demonstration], int]:
  """Returns the demonstrations that fit, and the number of the others.

  Raises:
    ConfigError: one is too long and the config does not say to drop it, or
      none fits.
  """
  kept = [x for x in demonstrations if _fits(x, tokenizer, data, limits)]
  if not kept:
    raise ConfigError(
      f"data.train: none of the {len(demonstrations)} demonstrations fits "
      f"rollout.max_prompt_length={limits.max_prompt_length} and "
      f"rollout.max_completion_length={limits.max_completion_length}"
    )
  return kept, len(demonstrations) - len(kept)


def _fits(
  demonstration: Demonstration,
  tokenizer: Tokenizer,
  data: DataConfig,
  limits: RolloutConfig,
) -> bool:
  """Returns True if a demonstration is short enough, False if it is dropped."""
  rows = encode(demonstration, tokenizer)
  allowed = (
    ("prompt", limits.max_prompt_length, data.long_prompts),
    ("completion", limits.max_completion_length, data.long_solutions),
  )
  for (name, limit, action), row in zip(allowed, rows, strict=True):
    if len(row) <= limit:
      continue
    if action == "drop":
      return False
    setting = "long_prompts" if name == "prompt" else "long_solutions"
    what = (
      "solution and its end token have" if name != "prompt" else "prompt has"
    )
    raise ConfigError(
      f"data.train: row {demonstration.index + 1} is too long: its {what} "
      f"{len(row)} tokens, more than rollout.max_{name}_length={limit}; raise "
      f"it, or set data.{setting}=drop"
    )
  return True
