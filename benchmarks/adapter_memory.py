"""Compares the optimizer's state of adapters with that of all weights.

  python -m benchmarks.adapter_memory   # writes the table of the guide

It needs no TPU, no compiler and no weights: states are those that a run would
make, as shapes. It takes seconds.
"""

from collections.abc import Sequence
from typing import Any

import jax

from benchmarks.plans import ROOT
from distil_jax import config as configs
from distil_jax.models import decoder
from distil_jax.planning import memory, planner
from distil_jax.training.setup import steps

DOCUMENT = ROOT / "docs/guides/memory_and_planning.md"
_CONFIG = ROOT / "configs/math/qwen3_8b.yaml"
_BFLOAT16 = "model.param_dtype=bfloat16"
_WHOLE = {
  "float32": ("model.lora=null", "model.param_dtype=float32"),
  "bfloat16 with its float32 copy": ("model.lora=null", _BFLOAT16),
}
_SHAPES = {"8B": "qwen3_8b", "32B": "qwen3_32b"}
_RANKS = (64, 128)


def main() -> None:
  text = DOCUMENT.read_text()
  begin, end = "<!-- table: adapters -->", "<!-- end: adapters -->"
  head, rest = text.split(begin)
  lines = table()
  body = "\n".join(lines)
  print(body)
  DOCUMENT.write_text(f"{head}{begin}\n{body}\n{end}{rest.split(end)[1]}")


def table() -> list[str]:
  """Returns the lines of the guide's table."""
  columns = ["model", "rank", "trained", "optimizer"]
  columns += [f"of all weights, {name}" for name in _WHOLE]
  rows = [columns, ["---"] * len(columns)]
  for model, shape in _SHAPES.items():
    whole = [
      _state(shape, settings)["optimizer"] for settings in _WHOLE.values()
    ]
    for rank in _RANKS:
      lora = f"model.lora={{rank: {rank}, alpha: {2 * rank}}}"
      found = _state(shape, (_BFLOAT16, lora))
      state = found["optimizer"]
      rows.append(
        [
          model,
          str(rank),
          f"{found['trained'] / 1e6:.0f} million",
          f"{state / 1e9:.2f} GB",
          *(f"{100 * state / x:.1f} % of {x / 1e9:.1f} GB" for x in whole),
        ]
      )
  return [f"| {' | '.join(row)} |" for row in rows]


def _state(shape: str, settings: Sequence[str]) -> dict[str, float]:
  """Returns the number of trained parameters, and the optimizer's bytes."""
  config = configs.load(_CONFIG, settings)
  network = planner.load_network(
    config, str(ROOT / f"configs/shapes/{shape}.json")
  )
  params = decoder.make(network)[1]
  optimizer, _ = steps.build_optimizer(config, params)

  def build(params: Any) -> Any:
    return steps.build_train_state(config, params, optimizer)

  state = jax.eval_shape(build, params)
  return {
    "trained": sum(x.size for x in jax.tree.leaves(state.params)),
    "optimizer": memory.tree_bytes(state.opt_state),
  }


if __name__ == "__main__":
  main()
