"""Reinforcement learning of language models from rich feedback.

An implementation of DistIL (arXiv:2606.05152) in JAX. The command line is
`distil-jax`; in a notebook:

    import distil_jax as dj

    policy = dj.load_policy("embedded:calculator")
    rollout = dj.generate(policy, ["Compute 47 + 8 - 3."], jax.random.key(0))
    policy.texts(rollout.completion_ids, rollout.completion_mask)
"""

import os

# transformers warns without torch, but only its tokenizers are used.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

from distil_jax.data.teacher_prompts import teacher_prompt
from distil_jax.envs import make_environment
from distil_jax.generation.generate import generate
from distil_jax.generation.policy import Policy, load_policy, logits

__version__ = "0.1.0"

__all__ = [
  "Policy",
  "generate",
  "load_policy",
  "logits",
  "make_environment",
  "teacher_prompt",
]
