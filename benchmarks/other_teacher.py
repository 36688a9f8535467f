"""Lets the calculator's base model teach a smaller network that knows nothing.

  python -m benchmarks.other_teacher FOLDER [--steps 300]

The student has the calculator's tokenizer, random weights, half the width and
two layers of three. It samples, and the base model, which reads the solution,
scores its samples: a forward KL over the whole vocabulary and nothing else.
"""

import argparse
import json
import pathlib

import jax

from distil_jax import config as configs
from distil_jax.generation.policy import Policy, load_policy
from distil_jax.models import decoder, decoder_config
from distil_jax.training.trainer import Trainer

TEACHER = "embedded:calculator"
CONFIG = "configs/calculator/quickstart.yaml"
SETTINGS = (
  "objective={kind: opsd, beta: 0.0, token_clip: null, temperature: 1.0, "
  "top_k: null}",
  f"teacher.model={{directory: {TEACHER}}}",
  "teacher.parameters=frozen",
  "teacher.solution=reference",
  "optimizer.learning_rate=3e-3",
  "evaluation.every=50",
)


def make_student(directory: pathlib.Path) -> None:
  """Writes a random student with the teacher's tokenizer."""
  if directory.exists():
    return
  tokenizer = load_policy(TEACHER).tokenizer
  sizes = decoder_config.DecoderConfig(
    vocab_size=tokenizer.vocab_size,
    width=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_size=12,
    mlp_size=128,
    tie_embeddings=True,
    rope_theta=1e4,
    max_positions=4096,
  )
  graphdef, _ = decoder.make(sizes)
  params = decoder.init(sizes, jax.random.key(0))
  Policy(sizes, graphdef, params, tokenizer).save(directory)


def main() -> None:
  """Trains the student, and prints its costs and accuracies."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("folder", type=pathlib.Path)
  parser.add_argument("--steps", type=int, default=300)
  arguments = parser.parse_args()
  student, run = arguments.folder / "student", arguments.folder / "run"
  make_student(student)
  overrides = [
    f"model.directory={student}",
    f"train.run_directory={run}",
    f"train.num_steps={arguments.steps}",
    # The config's rate is that of a moving average.
    "teacher.ema_rate=0.01",
    *SETTINGS,
  ]
  Trainer(configs.load(CONFIG, overrides)).train()
  for name in ("metrics", "evaluations"):
    for line in (run / f"{name}.jsonl").read_text().splitlines():
      values = json.loads(line)
      if name == "evaluations" or values["step"] % 50 in (0, 1):
        shown = ("cost", "completion_length", "reward", "avg@4")
        numbers = "  ".join(
          f"{k} {values[k]:.4g}" for k in shown if k in values
        )
        print(f"step {values['step']}: {numbers}")


if __name__ == "__main__":
  main()
