"""Measures sampling: against other libraries, and with each saving on and off.

  python -m benchmarks.rollout                    # every table but the last
  python -m benchmarks.rollout --bound --dtype bfloat16     # on an accelerator

All networks have Qwen3's shape and random weights. The rows of a table are
timed in turn after rounds of warm-up, so compilation is not counted.
benchmarks/peers/README.md says how to install the other libraries; the row of
one that is not installed says so.

samplers    Each row samples the same number of tokens for each prompt.
prompts     Prefill of a group's prompt once, against the same engine with a
            prefill for each sample. Columns of the KV cache are counted from
            the arrays.
slots       Lengths are drawn beforehand and there is no end token, so the plain
            loop and the slots do the same work. Efficiency is the share of
            slot-steps that gave a token that counts.
bound       A decode step must read the weights and the KV cache of all samples
            in flight. The bound is these bytes at the bandwidth of a large
            copy.
"""

import argparse
import contextlib
import functools
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import machine, peers
from distil_jax.generation import engine, prefill, random_keys
from distil_jax.generation import sampler as generation_sampler
from distil_jax.generation.engine_config import EngineConfig
from distil_jax.generation.sampler_state import SamplerSizes
from distil_jax.generation.sampling_params import SamplingParams
from distil_jax.generation.usage import Usage
from distil_jax.models import cached_forward, decoder
from distil_jax.models import decoder_config as models_config

SMALL = {
  "vocab_size": 32768,
  "width": 256,
  "num_layers": 4,
  "num_heads": 4,
  "num_kv_heads": 2,
  "head_size": 64,
  "mlp_size": 768,
}
_QWEN3 = {
  "vocab_size": 151936,
  "num_kv_heads": 8,
  "head_size": 128,
}
SHAPES: dict[str, dict[str, Any]] = {
  "small": SMALL,
  "0.6B": {
    **_QWEN3, "width": 1024, "num_layers": 28, "num_heads": 16,
    "mlp_size": 3072,
  },
  "1.7B": {
    **_QWEN3, "width": 2048, "num_layers": 28, "num_heads": 16,
    "mlp_size": 6144,
  },
  "4B": {
    **_QWEN3, "width": 2560, "num_layers": 36, "num_heads": 32,
    "mlp_size": 9728,
  },
}  # fmt: skip
TABLES = ("samplers", "prompts", "slots")
Row = dict[str, Any]


class Network:
  """Holds a random network, and makes samplers for it."""

  def __init__(self, shape: str, dtype: str):
    # Qwen3's base of the rotary angles, which the peers use too.
    self.config = models_config.DecoderConfig(
      **SHAPES[shape],
      tie_embeddings=True,
      rope_theta=1e6,
      param_dtype=dtype,
      compute_dtype=dtype,
    )
    self.graphdef, _ = decoder.make(self.config)
    init = jax.jit(functools.partial(decoder.init, self.config))
    self.params = init(jax.random.key(0))

  def prompts(self, count: int, length: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(1, self.config.vocab_size, (count, length))

  def sampler(
    self, ids: np.ndarray, group_size: int, length: int, **settings: Any
  ) -> Callable[..., Usage]:
    """Returns a function that samples and returns the usage."""
    run = engine.Engine(
      self.graphdef, EngineConfig(**settings), eos_ids=(), pad_id=0
    )
    names = random_keys.identities(list(range(len(ids))))
    arrays = (jnp.asarray(ids), jnp.ones_like(ids))

    def sample(seed: int = 0, temperature: float = 1.0, max_lengths=None):
      keys = random_keys.sample_keys(jax.random.key(seed), names, group_size)
      sampling = SamplingParams(temperature=temperature, max_tokens=length)
      sampled, usage = run(self.params, *arrays, keys, sampling, max_lengths)
      jax.block_until_ready(sampled.completion_ids)
      return usage

    return sample


def keep(
  usages: dict[str, Usage],
  name: str,
  function: Callable[[], Usage],
) -> None:
  usages[name] = function()


@contextlib.contextmanager
def installed_peers() -> Iterator[dict[str, peers.Peer]]:
  with contextlib.ExitStack() as stack:
    yield {
      name: stack.enter_context(peers.Peer(name, peers.python(name), SMALL))
      for name in peers.NAMES
      if peers.is_installed(name)
    }


def samplers(network: Network, options: argparse.Namespace) -> list[Row]:
  """Returns the rows for 16 prompts of 64 tokens with 128 new tokens each."""
  num_prompts, prompt_length, length = 16, 64, 128
  ids = network.prompts(num_prompts, prompt_length)
  sample = network.sampler(ids, 1, length)
  num_tokens = num_prompts * length
  rows = []
  with installed_peers() as others:
    for how, temperature in (("sampled", 1.0), ("greedy", 0.0)):

      def ask(peer, temperature=temperature):
        return peer.generate(
          ids.tolist(), length, temperature=temperature, seed=0
        )

      def ours(temperature=temperature):
        sample(temperature=temperature)

      functions: dict[str, Callable[[], object]] = {"distil_jax": ours}
      functions |= {
        name: functools.partial(ask, peer) for name, peer in others.items()
      }
      times = machine.seconds(functions, rounds=options.rounds)
      for name in ("distil_jax", *peers.NAMES):
        if name not in times:
          said = f"not installed: {peers.commands(name)}"
          rows.append({"tokens are": how, "sampler": name, "note": said})
          continue
        rows.append(
          {
            "tokens are": how,
            "sampler": name,
            "seconds": f"{times[name]:.2f}",
            "tokens/s": f"{num_tokens / times[name]:.0f}",
            "of ours": f"{times[name] / times['distil_jax']:.2f} x",
            "note": versions(others.get(name)),
          }
        )
  return rows


def versions(peer: peers.Peer | None) -> str:
  if peer is None:
    return ""
  said = peer.description
  found = ", ".join(f"{k} {v}" for k, v in said["versions"].items())
  return f"{said['name']}: {found}"


def prompts(network: Network, options: argparse.Namespace) -> list[Row]:
  """Returns the rows for G samples of a prompt: one prefill, or G of them."""
  config, group_size, num_problems = network.config, 8, 4
  itemsize = jnp.dtype(config.compute_dtype).itemsize
  column = 2 * config.num_layers * config.num_kv_heads * config.head_size
  rows = []
  for prompt_length, length in ((64, 64), (512, 64), (1024, 32)):
    ids = network.prompts(num_problems, prompt_length)
    shared = network.sampler(ids, group_size, length)
    each = network.sampler(np.repeat(ids, group_size, axis=0), 1, length)
    usages: dict[str, Usage] = {}
    times = machine.seconds(
      {
        name: functools.partial(keep, usages, name, function)
        for name, function in (("shared", shared), ("each", each))
      },
      rounds=options.rounds,
    )
    columns = {
      name: usage.cache_bytes / column / itemsize
      for name, usage in usages.items()
    }
    # The first decode step reads the last token of a prompt, so its column is
    # in the cache of the completion.
    expected = num_problems * (prompt_length - 1 + group_size * length)
    assert columns["shared"] == expected, (columns, expected)
    rows.append(
      {
        "P": num_problems,
        "G": group_size,
        "prompt": prompt_length,
        "new": length,
        "shared s": f"{times['shared']:.2f}",
        "each s": f"{times['each']:.2f}",
        "speed-up": f"{times['each'] / times['shared']:.2f} x",
        "shared columns": f"{columns['shared']:.0f}",
        "each columns": f"{columns['each']:.0f}",
      }
    )
  return rows


def draws(rng: np.random.Generator, count: int, limit: int) -> dict[str, Any]:
  """Returns lengths of completions by the name of their distribution."""
  drawn = {
    "exponential": rng.exponential(limit / 8, count),
    "log-normal": np.exp(rng.normal(np.log(limit / 12), 1.0, count)),
    "a tenth at the limit": np.where(
      rng.random(count) < 0.1, limit, rng.uniform(limit / 64, limit / 8, count)
    ),
  }
  return {
    name: np.clip(np.ceil(lengths), 1, limit).astype(np.int32)
    for name, lengths in drawn.items()
  }


def slots(network: Network, options: argparse.Namespace) -> list[Row]:
  """Returns the rows for 256 completions, with all or fewer slots at once."""
  num_problems, group_size, limit = 32, 8, 256
  count = num_problems * group_size
  ids = network.prompts(num_problems, 32)
  keys = random_keys.sample_keys(
    jax.random.key(0),
    random_keys.identities(list(range(num_problems))),
    group_size,
  )
  plain = jax.jit(
    functools.partial(_plain_loop, graphdef=network.graphdef, length=limit)
  )
  rows = []
  for name, lengths in draws(np.random.default_rng(0), count, limit).items():
    limits = lengths.reshape(num_problems, group_size)
    versions: dict[str, Callable[[], object]] = {
      "plain loop": functools.partial(plain, network.params, ids, keys, limits)
    }
    usages: dict[str, Usage] = {}
    for num_slots in (count, 64, 32):
      run = network.sampler(ids, group_size, limit, num_slots=num_slots)

      version = f"{num_slots} slots"
      versions[version] = functools.partial(
        keep, usages, version, functools.partial(run, max_lengths=limits)
      )
    times = machine.seconds(versions, rounds=options.rounds)
    for version in versions:
      usage = usages.get(version)
      efficiency = lengths.sum() / (count * lengths.max())
      steps = int(lengths.max())
      if usage is not None:
        assert usage.num_tokens == lengths.sum()
        efficiency, steps = usage.slot_efficiency, usage.num_steps
      rows.append(
        {
          "lengths": name,
          "mean": f"{lengths.mean():.0f}",
          "version": version,
          "steps": steps,
          "efficiency": f"{efficiency:.1%}",
          "seconds": f"{times[version]:.2f}",
          "of plain": f"{times[version] / times['plain loop']:.2f} x",
          "KV MB": "" if usage is None else f"{usage.cache_bytes / 1e6:.0f}",
        }
      )
  return rows


def _plain_loop(params, ids, keys, limits, *, graphdef, length):
  """Samples in one program that keeps every row until the longest is done."""
  weights = cached_forward.by_layer(graphdef, params)
  state = prefill.prefill(
    weights,
    jnp.asarray(ids),
    jnp.ones_like(ids),
    keys,
    SamplingParams().arrays(),
    limits,
    graphdef=graphdef,
    sizes=SamplerSizes(keys.size, length, length),
  )
  return generation_sampler.advance(
    weights, state, graphdef=graphdef, eos_ids=(), buffer_length=length
  ).completions


def bound(options: argparse.Namespace) -> list[Row]:
  """Returns the rows that compare decode steps with the memory bound."""
  bandwidth = copy_bandwidth()
  rows = []
  for shape in options.shapes:
    network = Network(shape, options.dtype)
    weights = jax.eval_shape(
      functools.partial(cached_forward.by_layer, network.graphdef),
      network.params,
    )
    # The lookup reads few rows of an embedding, but a tied one is read as a
    # whole for the logits.
    weight_bytes = sum(
      x.size * x.dtype.itemsize for x in jax.tree.leaves(weights)
    )
    for batch in options.batches:
      group_size = min(8, batch)
      ids = network.prompts(batch // group_size, options.prompt_length)
      sample = network.sampler(ids, group_size, options.length)
      sample()
      begun = time.perf_counter()
      usage = sample(seed=1)
      seconds = time.perf_counter() - begun
      config = network.config
      column = (
        2 * config.num_layers * config.num_kv_heads * config.head_size
        * jnp.dtype(options.cache_dtype or options.dtype).itemsize
      )  # fmt: skip
      # On average half of the completion is in the cache.
      live = column * (
        len(ids) * options.prompt_length + batch * options.length / 2
      )
      least = usage.num_steps * (weight_bytes + live) / bandwidth
      rows.append(
        {
          "network": shape,
          "batch": batch,
          "new": options.length,
          "tokens/s": f"{usage.num_tokens / seconds:.0f}",
          "ms a step": f"{1e3 * seconds / usage.num_steps:.2f}",
          "weights GB": f"{weight_bytes / 1e9:.2f}",
          "mean KV GB": f"{live / 1e9:.2f}",
          "bound ms": f"{1e3 * least / usage.num_steps:.2f}",
          "of bound": f"{least / seconds:.0%}",
        }
      )
      print(table(rows[-1:]), flush=True)
  rows.append({"network": f"copy: {bandwidth / 1e9:.0f} GB/s"})
  return rows


def copy_bandwidth(size: int = 2**28) -> float:
  """Returns the bytes per second that a large copy reads and writes."""
  x = jnp.zeros(size, jnp.float32)
  copy = jax.jit(lambda x: x + 1)
  seconds = machine.seconds({"copy": lambda: copy(x)}, rounds=5)["copy"]
  return 2 * x.nbytes / seconds


def table(rows: list[Row]) -> str:
  """Returns a Markdown table; a column that a row lacks is empty."""
  names = list(dict.fromkeys(name for row in rows for name in row))
  cells = [names] + [[str(row.get(n, "")) for n in names] for row in rows]
  widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
  lines = [
    "| "
    + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True))
    + " |"
    for row in cells
  ]
  rule = "|" + "|".join("-" * (w + 2) for w in widths) + "|"
  return "\n".join([lines[0], rule, *lines[1:]])


def main() -> None:
  parser = argparse.ArgumentParser(
    prog="python -m benchmarks.rollout",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("--tables", nargs="*", choices=TABLES, default=TABLES)
  parser.add_argument("--bound", action="store_true", help="the last table")
  parser.add_argument("--shapes", nargs="+", default=["0.6B", "1.7B", "4B"])
  parser.add_argument("--batches", type=int, nargs="+", default=[64, 256, 512])
  parser.add_argument("--length", type=int, default=2048)
  parser.add_argument("--prompt-length", type=int, default=256)
  parser.add_argument("--dtype", default="float32")
  parser.add_argument("--cache-dtype")
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--save", help="also write the tables into this file")
  options = parser.parse_args()
  for shape in options.shapes:
    if shape not in SHAPES:
      parser.error(f"--shapes {shape!r} is none of {list(SHAPES)}")
  said = [
    machine.description(),
    f"medians of {options.rounds} rounds in turn, {options.dtype}",
  ]
  print("\n".join(said), flush=True)
  found: dict[str, Callable[[], list[Row]]] = {}
  if not options.bound:
    network = Network("small", options.dtype)
    makers = {"samplers": samplers, "prompts": prompts, "slots": slots}
    found = {
      name: functools.partial(makers[name], network, options)
      for name in options.tables
    }
  else:
    found = {"bound": functools.partial(bound, options)}
  for name, make in found.items():
    said += ["", f"## {name}", "", table(make())]
    print("\n".join(said[-4:]), flush=True)
  if options.save:
    pathlib.Path(options.save).write_text("\n".join(said) + "\n", "utf-8")


if __name__ == "__main__":
  main()
