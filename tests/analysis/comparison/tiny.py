"""A family of three tokens and a network that learns it in seconds."""

import jax

from distil_jax import config as configs
from distil_jax.analysis.comparison import (
  base_models,
  compiled_trial,
  program_setting,
)
from distil_jax.analysis.comparison.problem_families import Family, Route
from tests import networks

# The base writes the code of one digit, right with .6, or guesses.
FAMILY = Family(
  "q",
  num_digits=1,
  routes=(Route(("code",), 0.25, 0.6), Route(("fresh",), 0.75, 0.1)),
  feedback="traces",
  checks_all=True,
)
NETWORK = base_models.network(
  width=32, num_layers=1, num_heads=2, max_positions=16
)
PLAN = base_models.Plan(
  FAMILY, NETWORK, num_steps=250, batch_size=64, learning_rate=8e-3
)
FROZEN = configs.TeacherConfig(parameters="frozen")
PUBLISHED = configs.DistilConfig(**networks.PUBLISHED)


def setting(objective=PUBLISHED, teacher=FROZEN, family=FAMILY, **sizes):
  return program_setting.Setting(
    family=family,
    network=NETWORK,
    objective=objective,
    teacher=teacher,
    **{"num_problems": 16, "group_size": 4, **sizes},
  )


experience = jax.jit(compiled_trial.experience, static_argnames="setting")
