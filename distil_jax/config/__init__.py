"""The schema of a run: frozen pydantic models, one per section.

A config is a YAML file plus dotted overrides (`optimizer.learning_rate=1e-4`).
Every check of a setting is here; its error names the key's path and says what
would be right. An unknown key is an error that names the nearest known one.
"""

from distil_jax.config.base import ConfigError, SamplingConfig, Section
from distil_jax.config.data import DataConfig, HubDatasetConfig
from distil_jax.config.environments import (
  CalculatorConfig,
  EnvironmentConfig,
  JudgingConfig,
  MultipleChoiceConfig,
  SandboxConfig,
)
from distil_jax.config.loading import load, load_as, parse
from distil_jax.config.mesh import MeshConfig
from distil_jax.config.mixture import DataSetConfig
from distil_jax.config.model import CreateModelConfig, ModelConfig
from distil_jax.config.objectives import (
  DistilConfig,
  GRPOConfig,
  MiniLLMConfig,
  ObjectiveConfig,
  OPSDConfig,
  SDPOConfig,
  SFTConfig,
  check_teacher,
)
from distil_jax.config.optimizers import (
  AdafactorConfig,
  AdamWConfig,
  LionConfig,
  MuonConfig,
  OptimizerConfig,
  ParameterGroupConfig,
)
from distil_jax.config.rollout import RolloutConfig
from distil_jax.config.schema import Config
from distil_jax.config.teacher import (
  GuardConfig,
  TeacherConfig,
  TeacherModelConfig,
  TeacherServerConfig,
)
from distil_jax.config.tools import OwnToolConfig, PythonToolConfig, ToolsConfig
from distil_jax.config.training import (
  CheckpointConfig,
  CompilationConfig,
  EvaluationConfig,
  EvaluationSetConfig,
  LoggingConfig,
  TrainConfig,
)

__all__ = [
  "AdafactorConfig",
  "AdamWConfig",
  "CalculatorConfig",
  "CheckpointConfig",
  "CompilationConfig",
  "Config",
  "ConfigError",
  "CreateModelConfig",
  "DataConfig",
  "DataSetConfig",
  "DistilConfig",
  "EnvironmentConfig",
  "EvaluationConfig",
  "EvaluationSetConfig",
  "GRPOConfig",
  "GuardConfig",
  "HubDatasetConfig",
  "JudgingConfig",
  "LionConfig",
  "LoggingConfig",
  "MeshConfig",
  "MiniLLMConfig",
  "ModelConfig",
  "MultipleChoiceConfig",
  "MuonConfig",
  "OPSDConfig",
  "ObjectiveConfig",
  "OptimizerConfig",
  "OwnToolConfig",
  "ParameterGroupConfig",
  "PythonToolConfig",
  "RolloutConfig",
  "SDPOConfig",
  "SFTConfig",
  "SamplingConfig",
  "SandboxConfig",
  "Section",
  "TeacherConfig",
  "TeacherModelConfig",
  "TeacherServerConfig",
  "ToolsConfig",
  "TrainConfig",
  "check_teacher",
  "load",
  "load_as",
  "parse",
]
