"""Runs Tunix's sampler with its Qwen3, on the device that jax finds.

The time is that of the whole call, from lists of ids to arrays of ids. The
sampler takes strings, so the tokenizer here returns ids unchanged and decodes
nothing. The KV cache is as long as prompt and completion, and prompts are not
padded to a power of two. The sampler draws tokens only if `top_p` is set, and
compiles for each temperature; `top_p=1` keeps the whole vocabulary.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tunix.generate import sampler as tunix  # pyright: ignore[reportMissingImports]
from tunix.models.qwen3 import model as qwen3  # pyright: ignore[reportMissingImports]

from benchmarks.peers import worker


class Ids:
  """A tokenizer that takes ids for text, without special tokens."""

  def encode(self, ids):
    return ids

  def decode(self, ids):
    return ids

  def bos_id(self):
    return None

  def eos_id(self):
    return -1

  def pad_id(self):
    return -1


class Sampler:
  def __init__(self, sizes):
    self.config = qwen3.ModelConfig(
      num_layers=sizes["num_layers"],
      vocab_size=sizes["vocab_size"],
      embed_dim=sizes["width"],
      hidden_dim=sizes["mlp_size"],
      num_heads=sizes["num_heads"],
      head_dim=sizes["head_size"],
      num_kv_heads=sizes["num_kv_heads"],
      rope_theta=1_000_000,
      norm_eps=1e-6,
      use_tied_embedding=True,
      dtype=jnp.float32,
      param_dtype=jnp.float32,
    )
    self.model = qwen3.Qwen3(self.config, rngs=nnx.Rngs(params=0))
    nnx.update(self.model, self._drawn(nnx.state(self.model, nnx.Param)))
    self.samplers = {}

  def _drawn(self, params):
    """Draws weights as transformers does; some of Tunix's own are zero."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    return jax.tree.unflatten(
      tree,
      [
        0.02 * jax.random.normal(key, leaf.shape) if leaf.ndim > 1 else leaf
        for key, leaf in zip(keys, leaves, strict=True)
      ],
    )

  def generate(self, prompt_ids, num_tokens, temperature, seed):
    length = len(prompt_ids[0])
    cache_size = length + num_tokens
    if cache_size not in self.samplers:
      self.samplers[cache_size] = tunix.Sampler(
        self.model,
        Ids(),
        tunix.CacheConfig(
          cache_size=cache_size,
          num_layers=self.config.num_layers,
          num_kv_heads=self.config.num_kv_heads,
          head_dim=self.config.head_dim,
        ),
      )
    settings = {"temperature": temperature, "top_p": 1.0} if temperature else {}
    output = self.samplers[cache_size](
      prompt_ids,
      max_generation_steps=num_tokens,
      max_prompt_length=length,
      seed=seed,
      **settings,
    )
    return np.stack(output.tokens)

  def check(self, prompt_ids, completion_ids):
    all_ids = jnp.concatenate([jnp.asarray(prompt_ids), completion_ids], axis=1)
    size, length = all_ids.shape
    logits, _ = self.model(
      all_ids,
      jnp.tile(jnp.arange(length), (size, 1)),
      None,
      jnp.tile(jnp.tril(jnp.ones((length, length), bool)), (size, 1, 1)),
    )
    log_probs = jax.nn.log_softmax(logits[:, len(prompt_ids[0]) - 1 : -1])
    taken = jnp.take_along_axis(log_probs, completion_ids[..., None], axis=-1)
    is_greedy = completion_ids == jnp.argmax(log_probs, axis=-1)
    return {
      "greedy": float(jnp.mean(is_greedy)),
      "surprisal": -float(jnp.mean(taken)),
      "entropy": -float(jnp.mean(jnp.sum(jnp.exp(log_probs) * log_probs, -1))),
    }


if __name__ == "__main__":
  worker.serve(
    "Tunix sampler", Sampler, packages=("google-tunix", "jax", "flax")
  )
