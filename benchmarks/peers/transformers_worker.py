"""Runs `generate` of transformers with torch, on the CPU.

The time includes making a tensor of the lists of ids, `generate` with its KV
cache, and reading the new ids. The cache is the default one, which grows: for
16 prompts of 64 tokens with 128 new tokens, the static cache takes as long, and
longer with a compiled forward pass. The number of threads is torch's default.
"""

from typing import Any

import torch  # pyright: ignore[reportMissingImports]
import transformers

from benchmarks.peers import worker


class Sampler:
  def __init__(self, sizes):
    # Without an end token no completion stops early.
    config = transformers.Qwen3Config(
      vocab_size=sizes["vocab_size"],
      hidden_size=sizes["width"],
      intermediate_size=sizes["mlp_size"],
      num_hidden_layers=sizes["num_layers"],
      num_attention_heads=sizes["num_heads"],
      num_key_value_heads=sizes["num_kv_heads"],
      head_dim=sizes["head_size"],
      # The only base that Tunix supports.
      rope_parameters={"rope_type": "default", "rope_theta": 1e6},
      tie_word_embeddings=True,
      bos_token_id=None,
      eos_token_id=None,
      pad_token_id=None,
    )
    torch.manual_seed(0)
    model: Any = transformers.Qwen3ForCausalLM(config)
    self.model = model.to(torch.float32).eval()

  @torch.inference_mode()
  def generate(self, prompt_ids, num_tokens, temperature, seed):
    settings: dict[str, Any] = {"do_sample": False}
    if temperature:
      # By default `generate` keeps only the 50 most probable tokens.
      settings = {
        "do_sample": True,
        "temperature": temperature,
        "top_k": 0,
        "top_p": 1.0,
      }
    torch.manual_seed(seed)
    ids = torch.tensor(prompt_ids)
    all_ids = self.model.generate(
      ids,
      attention_mask=torch.ones_like(ids),
      max_new_tokens=num_tokens,
      **settings,
    )
    return all_ids[:, ids.shape[1] :].numpy()

  @torch.inference_mode()
  def check(self, prompt_ids, completion_ids):
    completion_ids = torch.tensor(completion_ids)
    all_ids = torch.cat([torch.tensor(prompt_ids), completion_ids], dim=1)
    logits = self.model(all_ids, use_cache=False).logits
    before = slice(len(prompt_ids[0]) - 1, -1)
    log_probs = torch.log_softmax(logits[:, before], dim=-1)
    taken = torch.gather(log_probs, -1, completion_ids[..., None])
    is_greedy = completion_ids == torch.argmax(log_probs, dim=-1)
    return {
      "greedy": float(is_greedy.float().mean()),
      "surprisal": -float(taken.mean()),
      "entropy": -float((log_probs.exp() * log_probs).sum(-1).mean()),
    }


if __name__ == "__main__":
  worker.serve(
    "transformers generate, dynamic cache",
    Sampler,
    packages=("transformers", "torch"),
  )
