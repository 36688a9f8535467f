"""The schema of a run: frozen pydantic models, one per section.

A config is a YAML file plus dotted overrides (`optimizer.learning_rate=1e-4`).
Every check of a setting is here; its error names the key's path and says what
would be right. An unknown key is an error that names the nearest known one.
"""

from distil_jax.config.base import ConfigError
from distil_jax.config.base import Section
from distil_jax.config.data import DataConfig
from distil_jax.config.environments import CalculatorConfig
from distil_jax.config.environments import EnvironmentConfig
from distil_jax.config.environments import JudgingConfig
from distil_jax.config.environments import MultipleChoiceConfig
from distil_jax.config.environments import SandboxConfig
from distil_jax.config.loading import load
from distil_jax.config.loading import load_as
from distil_jax.config.loading import parse
from distil_jax.config.model import CreateModelConfig
from distil_jax.config.model import ModelConfig
from distil_jax.config.objectives import DistilConfig
from distil_jax.config.objectives import GRPOConfig
from distil_jax.config.objectives import MiniLLMConfig
from distil_jax.config.objectives import ObjectiveConfig
from distil_jax.config.objectives import OPSDConfig
from distil_jax.config.objectives import SDPOConfig
from distil_jax.config.objectives import SFTConfig
from distil_jax.config.objectives import check_teacher
from distil_jax.config.rollout import MeshConfig
from distil_jax.config.rollout import RolloutConfig
from distil_jax.config.rollout import SamplingConfig
from distil_jax.config.schema import Config
from distil_jax.config.teacher import GuardConfig
from distil_jax.config.teacher import TeacherConfig
from distil_jax.config.tools import OwnToolConfig
from distil_jax.config.tools import PythonToolConfig
from distil_jax.config.tools import ToolsConfig
from distil_jax.config.training import CheckpointConfig
from distil_jax.config.training import EvaluationConfig
from distil_jax.config.training import LoggingConfig
from distil_jax.config.training import OptimizerConfig
from distil_jax.config.training import TrainConfig

__all__ = [
  "CalculatorConfig",
  "CheckpointConfig",
  "Config",
  "ConfigError",
  "CreateModelConfig",
  "DataConfig",
  "DistilConfig",
  "EnvironmentConfig",
  "EvaluationConfig",
  "GRPOConfig",
  "GuardConfig",
  "JudgingConfig",
  "LoggingConfig",
  "MeshConfig",
  "MiniLLMConfig",
  "ModelConfig",
  "MultipleChoiceConfig",
  "OPSDConfig",
  "ObjectiveConfig",
  "OptimizerConfig",
  "OwnToolConfig",
  "PythonToolConfig",
  "RolloutConfig",
  "SDPOConfig",
  "SFTConfig",
  "SamplingConfig",
  "SandboxConfig",
  "Section",
  "TeacherConfig",
  "ToolsConfig",
  "TrainConfig",
  "check_teacher",
  "load",
  "load_as",
  "parse",
]
