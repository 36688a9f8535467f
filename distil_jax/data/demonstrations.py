"""Encodes demonstrations, and checks that they fit before a run begins."""

from collections.abc import Sequence

from distil_jax.config.base import ConfigError
from distil_jax.config.mixture import DataSetConfig
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
  section: DataSetConfig,
  rollout: RolloutConfig,
  where: str = "",
) -> tuple[list[Demonstration], int]:
  """Returns the demonstrations that fit, and the number of the others.

  Args:
    demonstrations: of one data set.
    tokenizer: of the policy.
    section: of the data set.
    rollout: the section.
    where: path of the data set's sections, with a point at its end.

  Raises:
    ConfigError: one is too long and the config does not say to drop it, or
      none fits.
  """
  settings = (section, rollout, where)
  kept = [x for x in demonstrations if _fits(x, tokenizer, *settings)]
  if not kept:
    limits = [
      "{}={}".format(*section.length_limit(kind, rollout, where))
      for kind in ("prompt", "completion")
    ]
    raise ConfigError(
      f"{where}data.train: none of the {len(demonstrations)} demonstrations "
      f"fits {' and '.join(limits)}"
    )
  return kept, len(demonstrations) - len(kept)


def _fits(
  demonstration: Demonstration,
  tokenizer: Tokenizer,
  section: DataSetConfig,
  rollout: RolloutConfig,
  where: str,
) -> bool:
  """Returns True if a demonstration is short enough, False if it is dropped."""
  rows = encode(demonstration, tokenizer)
  allowed = (
    ("prompt", section.data.long_prompts),
    ("completion", section.data.long_solutions),
  )
  for (name, action), row in zip(allowed, rows, strict=True):
    path, limit = section.length_limit(name, rollout, where)
    if len(row) <= limit:
      continue
    if action == "drop":
      return False
    setting = "long_prompts" if name == "prompt" else "long_solutions"
    what = (
      "solution and its end token have" if name != "prompt" else "prompt has"
    )
    raise ConfigError(
      f"{where}data.train: row {demonstration.index + 1} is too long: its "
      f"{what} {len(row)} tokens, more than {path}={limit}; raise it, or set "
      f"{where}data.{setting}=drop"
    )
  return True
