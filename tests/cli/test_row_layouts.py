"""Rows in the layouts of other libraries, trained on in one mixture."""

import json

import pyarrow
import pyarrow.parquet
import pytest

from tests.commands import WITH_FEW_PROGRAMS, run

NUMBERS = range(2, 10)
# The data files of a set, and what its section says besides.
MATH = {"kind": "math", "symbolic": False}
VERL = [
  {
    "data_source": "openai/gsm8k",
    "prompt": [{"role": "user", "content": f"How much is {n} + 1?"}],
    "ability": "math",
    "reward_model": {"style": "rule", "ground_truth": str(n + 1)},
    "extra_info": {"split": "train", "index": n},
  }
  for n in NUMBERS
]
TRL = [
  {
    "prompt": [
      {"role": "system", "content": "Think first."},
      {"role": "user", "content": f"How much is {n} + 2?"},
    ],
    "solution": f"Adding gives $\\boxed{{{n + 2}}}$.",
  }
  for n in NUMBERS
]
OPENAI = [
  {
    "messages": [
      {"role": "user", "content": f"Find page {n}."},
      {
        "role": "assistant",
        "content": None,
        "tool_calls": [
          {
            "id": "call_1",
            "type": "function",
            "function": {
              "name": "find",
              "arguments": json.dumps({"page": n}),
            },
          }
        ],
      },
    ],
    "tools": [
      {
        "type": "function",
        "function": {
          "name": "find",
          "parameters": {
            "type": "object",
            "properties": {"page": {"type": "integer"}},
          },
        },
      }
    ],
  }
  for n in NUMBERS
]
VERIFIERS = [
  {
    "prompt": [{"role": "user", "content": f"How much is {n} + 3?"}],
    "answer": str(n + 3),
    "info": {"level": n},
    "task": "sums",
  }
  for n in NUMBERS
]
PAIRS = [
  {
    "prompt": f"How much is {n} + 4?",
    "completion": f"It is \\boxed{{{n + 4}}}.",
  }
  for n in NUMBERS
]
CHATS = [
  {
    "messages": [
      {"role": "user", "content": f"How much is {n} + 5?"},
      {"role": "assistant", "content": f"\\boxed{{{n + 5}}}"},
    ]
  }
  for n in NUMBERS
]
SETS = {
  "verl": (VERL, {"answer": "reward_model.ground_truth"}, MATH),
  "trl": (TRL, {"answer": "solution"}, MATH),
  "openai": (OPENAI, {"prompt": "messages"}, {"kind": "tool_calls"}),
  "verifiers": (VERIFIERS, {}, MATH),
}
SUPERVISED = {
  "trl": (PAIRS, {"answer": "completion", "solution": "completion"}, MATH),
  "openai": (
    CHATS,
    {"prompt": "messages", "answer": "messages.1.content"},
    MATH,
  ),
}
SMALL = (
  "model.remat=none",
  "model.create.width=16",
  "model.create.num_layers=1",
  "model.create.num_heads=2",
  "model.create.num_kv_heads=1",
  "model.create.head_size=8",
  "model.create.mlp_size=32",
  "train.num_steps=1",
  "evaluation.num_samples=2",  # as many as a group: the same programs
  "logging.tensorboard=false",
  "logging.num_rollouts=12",
)


@pytest.fixture(scope="module")
def train(tmp_path_factory):
  """Trains one step on configs/mixture/smoke.yaml with further sets."""
  folder = tmp_path_factory.mktemp("layouts")

  def train(name, *settings):
    done = run(
      [
        "train",
        "configs/mixture/smoke.yaml",
        *SMALL,
        f"train.run_directory={folder / name}",
        f"model.directory={folder}/model",
        *settings,
      ],
      folder / "compiled",
      program=WITH_FEW_PROGRAMS,
    )
    assert done.returncode == 0, done.stderr
    (line,) = (folder / name / "metrics.jsonl").read_text().splitlines()
    pages = (folder / name / "rollouts").glob("*.md")
    return json.loads(line), "".join(x.read_text("utf-8") for x in pages)

  return train


def section(folder, name, rows, fields, environment):
  """Returns the setting of a mixture's set; verl has parquet, others JSON."""
  path = folder / f"{name}.jsonl"
  if name == "verl":
    path = path.with_suffix(".parquet")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
  else:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  data = {"train": str(path), "evaluation": str(path), "num_evaluation": 1}
  made = {"data": {**data, "fields": fields}, "environment": environment}
  return f"mixture.{name}={json.dumps(made)}"


def test_the_layouts_of_other_libraries_are_trained_on(tmp_path, train):
  sets = [section(tmp_path, name, *SETS[name]) for name in SETS]
  metrics, pages = train(
    "grpo", "mixture.arithmetic.weight=1", "rollout.num_problems=6", *sets
  )
  assert metrics["gradient_norm"] > 0
  assert metrics["verdict/crashed"] == 0
  for name in ("arithmetic", "writing", *SETS):
    assert metrics[f"problems/{name}"] == 1
    assert metrics[f"signal_fraction/{name}"] == 1
  for text in (" + 1?", " + 2?", " + 3?", "Find page ", "Think first."):
    assert text in pages


def test_supervised_rows_of_other_libraries_are_trained_on(tmp_path, train):
  sets = [section(tmp_path, name, *SUPERVISED[name]) for name in SUPERVISED]
  metrics, _ = train(
    "sft",
    "objective={kind: sft}",
    "rollout.refill=null",
    "mixture.arithmetic.weight=0",
    "mixture.writing.weight=0",
    "rollout.max_completion_length=32",
    *sets,
  )
  assert metrics["gradient_norm"] > 0
  assert metrics["loss"] > 1
