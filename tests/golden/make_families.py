"""Makes the golden files of the families: logits and gradients.

In the environment that `make_golden.py` describes:

  golden-env/bin/python tests/golden/make_families.py

Each case is a folder with a Hugging Face checkpoint and `golden.npz`:

  token_ids  [B, S]     padding is token 0
  mask       [B, S]     1 where the token counts
  logits     [B, C, V]  float32, of the last C columns
  gradients  [n]        of the mean cost of the tokens that follow others, each
                        parameter's times its weights, summed
  names      [n]        names of the parameters; those of all experts are one
"""

import json
import pathlib
import shutil
from typing import Any

import numpy as np
import torch
import transformers
from family_cases import CASES

HERE = pathlib.Path(__file__).parent / "families"
NUM_COLUMNS, LENGTH = 10, 72
MASKS = ((0, LENGTH, 0), (40, 32, 0), (3, 60, 9))


def architecture(settings: dict[str, Any]) -> str:
  config = transformers.AutoConfig.for_model(settings["model_type"])
  kind = transformers.AutoModelForCausalLM._model_mapping[type(config)]
  return kind.__name__


def write_config(folder: pathlib.Path, settings: dict[str, Any]) -> None:
  config = {
    "architectures": [architecture(settings)],
    "eos_token_id": 1,
    "pad_token_id": 0,
    **settings,
  }
  text = json.dumps({**config, "dtype": "bfloat16"}, indent=2) + "\n"
  (folder / "config.json").write_text(text, encoding="utf-8")


def write_model(folder: pathlib.Path, seed: int) -> None:
  """Random weights in bfloat16; norms far from what they are at first."""
  config = transformers.AutoConfig.from_pretrained(folder)
  model = transformers.AutoModelForCausalLM.from_config(config)
  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for name, parameter in sorted(model.named_parameters()):
      noise = torch.randn(parameter.shape, generator=generator) * 0.25
      # A norm's scale is 1 plus its parameter in some families.
      parameter.copy_(parameter + noise if "norm" in name else noise)
  model.to(torch.bfloat16).save_pretrained(folder)
  (folder / "generation_config.json").unlink(missing_ok=True)


def batch(vocab_size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
  mask = np.array(
    [[0] * left + [1] * n + [0] * right for left, n, right in MASKS], np.int32
  )
  generator = np.random.default_rng(seed)
  ids = generator.integers(1, vocab_size, mask.shape)
  return (ids * mask).astype(np.int32), mask


def compute(folder: pathlib.Path, ids, mask, dtype: torch.dtype):
  """Logits of the last columns, and gradients by the names of parameters."""
  model = transformers.AutoModelForCausalLM.from_pretrained(
    folder, dtype=dtype, experts_implementation="eager"
  )
  tokens, counts = (torch.from_numpy(a).long() for a in (ids, mask))
  # Positions as `generate` counts them: padding does not move a token.
  positions = (counts.cumsum(-1) - 1).clamp(min=0)
  logits = model(
    tokens, attention_mask=counts, position_ids=positions, use_cache=False
  ).logits
  costs = torch.nn.functional.cross_entropy(
    logits[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none"
  )
  follows = counts[:, 1:] * counts[:, :-1]
  (torch.where(follows == 1, costs, 0).sum() / follows.sum()).backward()
  products = {
    name: float((parameter.grad.double() * parameter.detach().double()).sum())
    for name, parameter in model.named_parameters()
  }
  return logits.detach().numpy()[:, -NUM_COLUMNS:], products


def make(name: str, settings: dict[str, Any], seed: int) -> None:
  folder = HERE / name
  shutil.rmtree(folder, ignore_errors=True)
  folder.mkdir(parents=True)
  write_config(folder, settings)
  write_model(folder, seed)
  write_config(folder, settings)
  ids, mask = batch(settings["vocab_size"], seed)
  single, _ = compute(folder, ids, mask, torch.float32)
  double, products = compute(folder, ids, mask, torch.float64)
  valid = mask[:, -NUM_COLUMNS:].astype(bool)
  noise = np.abs(single - double)[valid].max()
  print(f"{name}: std of logits {single[valid].std():.2f}, noise {noise:.1e}")
  if not noise <= 3e-5:  # also where it is not a number
    raise ValueError(f"{name}: float32 noise {noise:.1e}")
  np.savez_compressed(
    folder / "golden.npz",
    token_ids=ids.astype(np.int8),
    mask=mask.astype(np.int8),
    logits=single,
    names=np.array(sorted(products)),
    gradients=np.array([products[n] for n in sorted(products)]),
  )


if __name__ == "__main__":
  for number, (case_name, case) in enumerate(CASES.items()):
    make(case_name, case, seed=number)
