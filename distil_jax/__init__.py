"""Reinforcement learning of language models from rich feedback.

An implementation of DistIL (arXiv:2606.05152) in JAX. The command line is
`distil-jax`; in a notebook:

    import distil_jax as dj

    policy = dj.load_policy("embedded:calculator")
    rollout = dj.generate(policy, ["Compute 47 + 8 - 3."], jax.random.key(0))
    policy.texts(rollout.completion_ids, rollout.completion_mask)

What a token costs and what the teacher would write there shows

    dj.inspect(policy, problem, completion, feedback="Step 1 is wrong.")

and a run is `dj.train(dj.Config(...))`.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from distil_jax.analysis.token_view import inspect
  from distil_jax.config.schema import Config
  from distil_jax.data.teacher_prompts import teacher_prompt
  from distil_jax.envs import make_environment
  from distil_jax.generation.generate import generate
  from distil_jax.generation.policy import Policy, load_policy, logits
  from distil_jax.training.train import train
  from distil_jax.types import Problem, Status, Verdict

# transformers warns without torch, but only its tokenizers are used.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

__version__ = "0.1.0"

__all__ = [
  "Config",
  "Policy",
  "Problem",
  "Status",
  "Verdict",
  "generate",
  "inspect",
  "load_policy",
  "logits",
  "make_environment",
  "teacher_prompt",
  "train",
]

_MODULES = {
  "Config": "config.schema",
  "Policy": "generation.policy",
  "Problem": "types",
  "Status": "types",
  "Verdict": "types",
  "generate": "generation.generate",
  "inspect": "analysis.token_view",
  "load_policy": "generation.policy",
  "logits": "generation.policy",
  "make_environment": "envs",
  "teacher_prompt": "data.teacher_prompts",
  "train": "training.train",
}


def __getattr__(name: str) -> Any:
  """Imports what is shown when it is first used.

  Each process that judges imports this package, and needs no tokenizer.
  """
  if name not in _MODULES:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
  globals()[name] = value
  return value


def __dir__() -> list[str]:
  """Returns the names that a user of the package needs."""
  return sorted([*__all__, "__version__"])
