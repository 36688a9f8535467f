"""Reinforcement learning of language models from rich feedback.

An implementation of DistIL (arXiv:2606.05152) in JAX. The command line is
`distil-jax`; in a notebook:

    import distil_jax as dj

    policy = dj.load_policy("embedded:calculator")
    rollout = dj.generate(policy, ["Compute 47 + 8 - 3."], jax.random.key(0))
    policy.texts(rollout.completion_ids, rollout.completion_mask)
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from distil_jax.data.teacher_prompts import teacher_prompt
  from distil_jax.envs import make_environment
  from distil_jax.generation.generate import generate
  from distil_jax.generation.policy import Policy, load_policy, logits

# transformers warns without torch, but only its tokenizers are used.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

__version__ = "0.1.0"

__all__ = [
  "Policy",
  "generate",
  "load_policy",
  "logits",
  "make_environment",
  "teacher_prompt",
]

_MODULES = {
  "Policy": "generation.policy",
  "generate": "generation.generate",
  "load_policy": "generation.policy",
  "logits": "generation.policy",
  "make_environment": "envs",
  "teacher_prompt": "data.teacher_prompts",
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
  return sorted({*globals(), *__all__})
