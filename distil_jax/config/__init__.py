"""The one schema of a run: frozen models, one per section.

A config is a YAML file plus dotted overrides (`optimizer.learning_rate=1e-4`).
Every check of a setting lives here, names the key's path and says what would
be right; an unknown key is an error with the nearest known name.
"""

from distil_jax.config.base import ConfigError, Section
from distil_jax.config.data import Data
from distil_jax.config.environments import (
  Calculator,
  Environment,
  Judging,
  MultipleChoice,
  Sandbox,
)
from distil_jax.config.loading import load, load_as, parse
from distil_jax.config.model import CreateModel, Model
from distil_jax.config.objectives import (
  GRPO,
  OPSD,
  SDPO,
  SFT,
  Distil,
  MiniLLM,
  Objective,
  check_teacher,
  needs_teacher,
)
from distil_jax.config.rollout import Mesh, Rollout, Sampling
from distil_jax.config.schema import Config
from distil_jax.config.teacher import Guard, Teacher
from distil_jax.config.tools import OwnTool, PythonTool, Tools
from distil_jax.config.training import (
  Checkpoint,
  Evaluation,
  Logging,
  Optimizer,
  Train,
)

__all__ = [
  "GRPO",
  "OPSD",
  "SDPO",
  "SFT",
  "Calculator",
  "Checkpoint",
  "Config",
  "ConfigError",
  "CreateModel",
  "Data",
  "Distil",
  "Environment",
  "Evaluation",
  "Guard",
  "Judging",
  "Logging",
  "Mesh",
  "MiniLLM",
  "Model",
  "MultipleChoice",
  "Objective",
  "Optimizer",
  "OwnTool",
  "PythonTool",
  "Rollout",
  "Sampling",
  "Sandbox",
  "Section",
  "Teacher",
  "Tools",
  "Train",
  "check_teacher",
  "load",
  "load_as",
  "needs_teacher",
  "parse",
]
