"""Run folders with made-up numbers, written as a run writes them."""

import math
import pathlib
import random

import yaml

from distil_jax.training.logging.rollout_pages import Sample
from distil_jax.training.logging.run_folder import RunFolder
from distil_jax.types import Problem, Status, StopReason, Verdict

# What a model may write, and a page must not trip over.
HOSTILE = "</script><b>x</b>\x00\x1b[31m\u202etxt 😀 שלום \ud800 &amp; <!--"


def write_run(
  directory: pathlib.Path,
  *,
  seed: int = 0,
  learning_rate: float = 1e-5,
  num_steps: int = 12,
  is_finished: bool = True,
  completion: str = "3 + 4 = 7\n7 * 2 = 15\n<answer>15</answer>",
) -> pathlib.Path:
  """Writes a run's folder; one in two rollouts fails."""
  rng = random.Random(seed)
  folder = RunFolder(directory, tensorboard=False)
  config = {
    "name": "made_up",
    "model": {"directory": "embedded:calculator"},
    "environment": {"kind": "calculator"},
    "objective": {"kind": "distil"},
    "optimizer": {"kind": "adamw", "learning_rate": learning_rate},
    "train": {
      "seed": seed,
      "num_steps": num_steps,
      "run_directory": str(directory),
    },
  }
  folder.start(yaml.safe_dump(config), None, device_kind="cpu", num_devices=2)
  speed = 1e5 * learning_rate
  for step in range(0, num_steps + 1, max(num_steps // 6, 1)):
    accuracy = 0.85 - 0.45 * math.exp(-3 * speed * step / num_steps)
    accuracy += rng.gauss(0, 0.01)
    folder.evaluation(
      step, {"avg@4": accuracy, "pass@4": min(accuracy + 0.2, 1)}
    )
  for step in range(1, num_steps + 1):
    folder.metrics(step, _metrics(step / num_steps, speed, rng))
  for step in (1, num_steps):
    samples = [_sample(i, completion) for i in range(4)]
    folder.rollouts(step, samples)
  if is_finished:
    folder.summary({"steps": num_steps, "seconds": 4.0 * num_steps})
  folder.close()
  return directory


def _metrics(share: float, speed: float, rng: random.Random) -> dict:
  right = 0.8 - 0.4 * math.exp(-3 * speed * share) + rng.gauss(0, 0.04)
  wrong = 1 - right - 0.02
  return {
    "loss": rng.gauss(0.05, 0.02),
    "cost": 0.3 * math.exp(-2 * share) + abs(rng.gauss(0, 0.02)),
    "entropy": 0.25 * math.exp(-share) + abs(rng.gauss(0, 0.01)),
    "teacher_entropy": 0.1 + abs(rng.gauss(0, 0.01)),
    "future_cost": 0.2 * math.exp(-2 * share),
    "score_weight": 0.05 + abs(rng.gauss(0, 0.01)),
    "gradient_norm": 0.4 + abs(rng.gauss(0, 0.2)),
    "learning_rate": 1e-5,
    "reward": right,
    "completion_length": 35 + rng.gauss(0, 1),
    "cut_off": 0.02,
    "frac_reward_zero_std": 0.2 + 0.3 * share,
    "mismatch/mean": 1e-7,
    "status/correct": round(128 * right),
    "status/wrong": round(128 * wrong),
    "status/unparsable": 2,
    "status/crashed": 0,
    "signal/feedback": round(20 * wrong),
    "signal/sibling": 100,
    "signal/reference": 0,
    "signal/none": 8,
    "time/step_seconds": 3.0 + rng.random(),
    "time/rollout_seconds": 1.4,
    "time/judging_seconds": 0.3,
    "time/tokens_per_second": 1500 + rng.gauss(0, 90),
  }


def _sample(number: int, completion: str) -> Sample:
  is_right = number % 2 == 0
  texts = completion.split(" ")
  texts = [f"{text} " for text in texts[:-1]] + texts[-1:]
  count = len(texts)
  return Sample(
    problem=Problem(
      index=100 + number,
      messages=({"role": "user", "content": "Compute (3 + 4) * 2."},),
      answer="14",
    ),
    completion=completion,
    num_tokens=count,
    stop_reason=StopReason.EOS,
    verdict=Verdict(
      reward=float(is_right),
      feedback="" if is_right else "7 * 2 is 14, not 15.",
      status=Status.CORRECT if is_right else Status.WRONG,
    ),
    teacher_prompt=None if is_right else "Compute (3 + 4) * 2.\n\n7 * 2 is 14.",
    tokens={
      "text": texts,
      "log_prob": [-0.1 * i for i in range(count)],
      "teacher_log_prob": [-0.2 * i for i in range(count)],
      "cost": [0.01 * i**2 for i in range(count)],
      "future_cost": [0.3 - 0.02 * i for i in range(count)],
      "score_weight": [0.1 - 0.03 * i for i in range(count)],
      "teacher_choices": [[["14", 0.9], ["15", 0.05]]] * count,
    },
  )
