"""Makes the golden adapters with PEFT, and has PEFT read ours.

In the environment that `make_golden.py` describes, with peft==0.21.2:

  golden-env/bin/python tests/golden/make_adapters.py
  golden-env/bin/python tests/golden/make_adapters.py --check FOLDER ...

Each golden is a folder with an adapter as PEFT writes it, of a model among
`families/`, and `golden.npz`:

  token_ids  [B, S]     padding is token 0
  mask       [B, S]     1 where the token counts
  logits     [B, S, V]  float32; only those where the mask is 1 mean anything

A folder to check has an adapter from `distil-jax export --adapter`, and such a
`golden.npz` with the logits that this package computes. The base is that which
the adapter names.
"""

import pathlib
import shutil
import sys

import numpy as np
import peft
import torch
import transformers

HERE = pathlib.Path(__file__).parent
# Name: the base, rank, alpha and targets.
CASES = {
  "llama": ("llama_biases", 3, 5, "all-linear"),
  "qwen2": ("qwen2_plain", 2, 8, ["q_proj", "v_proj", "o_proj", "down_proj"]),
}
LENGTHS = (9, 14, 1)
TOLERANCE = 1e-4


def batch(vocab_size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
  """Rows that are padded on the right."""
  mask = np.arange(max(LENGTHS))[None] < np.array(LENGTHS)[:, None]
  ids = np.random.default_rng(seed).integers(1, vocab_size, mask.shape)
  return (ids * mask).astype(np.int32), mask.astype(np.int32)


def logits_of(model, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
  tokens, counts = (torch.from_numpy(x).long() for x in (ids, mask))
  with torch.no_grad():
    return model.eval()(tokens, attention_mask=counts).logits.numpy()


def make(name: str, seed: int) -> None:
  base, rank, alpha, targets = CASES[name]
  path = (HERE / "families" / base).relative_to(pathlib.Path.cwd())
  model = transformers.AutoModelForCausalLM.from_pretrained(
    path, dtype=torch.float32
  )
  config = peft.LoraConfig(
    task_type="CAUSAL_LM", r=rank, lora_alpha=alpha, target_modules=targets
  )
  adapted = peft.get_peft_model(model, config)
  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for key, parameter in sorted(adapted.named_parameters()):
      if "lora_" in key:
        noise = torch.randn(parameter.shape, generator=generator) * 0.3
        # Rounded, so that the file says as much in 16 bits.
        parameter.copy_(noise.to(torch.bfloat16))
  ids, mask = batch(model.config.vocab_size, seed)
  folder = HERE / "adapters" / name
  shutil.rmtree(folder, ignore_errors=True)
  adapted.save_pretrained(folder)
  (folder / "README.md").unlink(missing_ok=True)
  # safetensors makes files that only their owner can read.
  (folder / "adapter_model.safetensors").chmod(0o644)
  found = logits_of(adapted, ids, mask)
  with adapted.disable_adapter():
    moved = np.abs(found - logits_of(adapted, ids, mask))[mask == 1].max()
  print(f"{name}: the adapter moves logits by up to {moved:.2f}")
  np.savez_compressed(
    folder / "golden.npz", token_ids=ids, mask=mask, logits=found
  )


def check(folder: pathlib.Path) -> bool:
  """Compares the logits of an adapter with those beside it."""
  model = peft.AutoPeftModelForCausalLM.from_pretrained(
    folder, dtype=torch.float32
  )
  golden = np.load(folder / "golden.npz")
  counted = golden["mask"] == 1
  found = logits_of(model, golden["token_ids"], golden["mask"])
  with model.disable_adapter():
    plain = logits_of(model, golden["token_ids"], golden["mask"])
  moved = np.abs(found - plain)[counted].max()
  apart = np.abs(found - golden["logits"])[counted].max()
  print(
    f"{folder}: off by {apart:.1e}; the adapter moves logits by {moved:.2f}"
  )
  return bool(apart <= TOLERANCE < moved)


if __name__ == "__main__":
  if sys.argv[1:2] == ["--check"]:
    results = [check(pathlib.Path(x)) for x in sys.argv[2:]]
    sys.exit(0 if all(results) else 1)
  for number, case in enumerate(CASES):
    make(case, seed=number)
