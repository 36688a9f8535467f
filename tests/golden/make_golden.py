"""Makes the golden files: tiny random Qwen3 models and their logits.

The files are committed and the tests need only those. To make them again, or
to add a case, a separate environment with torch is needed:

  python3.11 -m venv golden-env
  golden-env/bin/pip install torch==2.13.0 transformers==5.23.0
  golden-env/bin/python tests/golden/make_golden.py

Each case is a folder with a Hugging Face checkpoint and `golden.npz`:

  token_ids  [B, S]     padding is token 0
  mask       [B, S]     1 where the token counts
  columns    [C]        the columns of which the logits are kept
  logits     [B, C, V]  float32, as transformers computes them; only those
                        where the mask is 1 mean anything
"""

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np
import torch
import transformers

HERE = pathlib.Path(__file__).parent
# Float32 noise that transformers itself may show against float64. A case above
# it would test the luck of rounding and needs another seed or smaller weights.
MAX_NOISE = 3e-5


@dataclasses.dataclass(frozen=True)
class Case:
  """One model and one batch.

  Attributes:
    config: what this case has of its own in `config.json`.
    masks: rows of the batch as (padding left, tokens, padding right).
    kept: how many of the last columns have their logits kept.
    dtype: of the weights on disk; the logits are computed in float32.
    std: of the random weights, large enough that logits differ clearly.
    max_shard_size: cuts the checkpoint into shards where it is larger.
  """

  config: dict[str, Any]
  masks: tuple[tuple[int, int, int], ...]
  kept: int
  dtype: str = "float32"
  std: float = 0.3
  max_shard_size: str = "1GB"


def sizes(**changed: Any) -> dict[str, Any]:
  return {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 56,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
    **changed,
  }


def default_rope(theta: float) -> dict[str, Any]:
  """The style of transformers 5."""
  return {"rope_parameters": {"rope_type": "default", "rope_theta": theta}}


def flat_rope(theta: float) -> dict[str, Any]:
  """The style of transformers 4, as the published Qwen3 models have it."""
  return {"rope_theta": theta, "rope_scaling": None}


CASES = {
  # Heads wider than width / heads; padded as prompts are.
  "tied_left_padded": Case(
    config=sizes(**flat_rope(10000.0)),
    masks=((0, 12, 0), (5, 7, 0), (11, 1, 0)),
    kept=12,
  ),
  # One KV head for all, width no multiple of the heads; padded as completions.
  "untied_one_kv_head_right_padded_sharded": Case(
    config=sizes(
      hidden_size=30,
      num_key_value_heads=1,
      head_dim=8,
      num_hidden_layers=3,
      tie_word_embeddings=False,
      **default_rope(10000.0),
    ),
    masks=((0, 12, 0), (0, 7, 5), (0, 1, 11)),
    kept=12,
    max_shard_size="50KB",
  ),
  # As many KV heads as heads, padding on both sides, bfloat16 on disk, and an
  # epsilon that is large enough to be seen.
  "untied_bfloat16_both_sides": Case(
    config=sizes(
      num_key_value_heads=4,
      head_dim=8,
      rms_norm_eps=0.01,
      tie_word_embeddings=False,
      **flat_rope(500.0),
    ),
    masks=((3, 6, 3), (0, 9, 3), (4, 8, 0)),
    kept=12,
    dtype="bfloat16",
  ),
  # A long context: angles of thousands of radians.
  "long_positions": Case(
    config=sizes(num_hidden_layers=1, **default_rope(1000000.0)),
    masks=((0, 2100, 0), (90, 2010, 0)),
    kept=16,
  ),
}


def write_config(folder: pathlib.Path, case: Case) -> None:
  config = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_act": "silu",
    "attention_bias": False,
    "use_sliding_window": False,
    "dtype": case.dtype,
    **case.config,
  }
  text = json.dumps(config, indent=2) + "\n"
  (folder / "config.json").write_text(text, encoding="utf-8")


def write_model(folder: pathlib.Path, case: Case, seed: int) -> None:
  """Random weights; norms around 1, so that a forgotten one is seen."""
  config = transformers.Qwen3Config.from_pretrained(folder)
  model = transformers.Qwen3ForCausalLM(config)
  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for name, parameter in sorted(model.named_parameters()):
      noise = torch.randn(parameter.shape, generator=generator) * case.std
      parameter.copy_(1 + noise if "norm" in name else noise)
  model.to(getattr(torch, case.dtype))
  model.save_pretrained(folder, max_shard_size=case.max_shard_size)


def batch(case: Case, seed: int) -> tuple[np.ndarray, np.ndarray]:
  mask = np.array(
    [
      [0] * left + [1] * tokens + [0] * right
      for left, tokens, right in case.masks
    ],
    np.int32,
  )
  generator = np.random.default_rng(seed)
  ids = generator.integers(1, case.config["vocab_size"], mask.shape)
  return (ids * mask).astype(np.int32), mask


def logits(
  folder: pathlib.Path, ids: np.ndarray, mask: np.ndarray, dtype: torch.dtype
) -> np.ndarray:
  model = transformers.Qwen3ForCausalLM.from_pretrained(folder, dtype=dtype)
  tokens, attention_mask = (torch.from_numpy(a).long() for a in (ids, mask))
  # Positions as `generate` counts them: padding does not move a token.
  positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)
  with torch.no_grad():
    output = model(
      tokens, attention_mask=attention_mask, position_ids=positions
    )
  return output.logits.numpy()


def make(name: str, case: Case, seed: int) -> None:
  folder = HERE / name
  folder.mkdir(exist_ok=True)
  for old in folder.iterdir():
    old.unlink()
  write_config(folder, case)
  write_model(folder, case, seed)
  # transformers has rewritten the config in its own style.
  (folder / "generation_config.json").unlink(missing_ok=True)
  write_config(folder, case)

  ids, mask = batch(case, seed)
  columns = np.arange(mask.shape[1])[-case.kept :]
  single, double = (
    logits(folder, ids, mask, dtype)[:, columns]
    for dtype in (torch.float32, torch.float64)
  )
  valid = mask[:, columns].astype(bool)
  noise = np.abs(single - double)[valid].max()
  print(f"{name}: std of logits {single[valid].std():.2f}, noise {noise:.1e}")
  if not noise <= MAX_NOISE:  # also where it is not a number
    raise ValueError(f"{name}: float32 noise {noise:.1e} is above {MAX_NOISE}")
  np.savez_compressed(
    folder / "golden.npz",
    token_ids=ids,
    mask=mask,
    columns=columns.astype(np.int32),
    logits=single,
  )


if __name__ == "__main__":
  for number, (case_name, case) in enumerate(CASES.items()):
    make(case_name, case, seed=number)
