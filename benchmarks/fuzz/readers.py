"""The readers, good inputs of each, and the errors that each may raise."""

import dataclasses
import functools
import io
import json
import pathlib
import random
import shutil
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import pyarrow
import pyarrow.parquet
import yaml

from benchmarks.fuzz import inputs
from distil_jax import config
from distil_jax.data import datasets, teacher_templates, tokenizer
from distil_jax.data.data_files import DataError
from distil_jax.generation.policy_directory import resolve_directory
from distil_jax.models import (
  decoder,
  hf_config,
  hf_directory,
  hf_export,
  hf_weights,
)
from distil_jax.models.decoder_config import DecoderConfig
from distil_jax.types import Problem

_QUESTION = {"role": "user", "content": "1 + 1?"}
_ROWS = [
  {"prompt": "1 + 1?", "answer": "2", "extra": {"level": 3, "tags": ["a"]}},
  {"prompt": [_QUESTION], "answer": ["2", "two"], "solution": None},
  {"prompt": "Überall", "answer": "ja", "feedback": "\u2028", "n": 1.5},
]
_TREE = {
  "name": "x",
  "data": {"train": "generated", "num_train": 64, "fields": {"prompt": "q"}},
  "environment": {"kind": "calculator", "num_steps": [3, 4]},
  "rollout": {"num_problems": 8, "group_size": 4, "temperature": 1.0},
  "teacher": {"parameters": "ema", "ema_rate": 0.01},
  "objective": {"kind": "distil", "top_k": None, "tail": True},
  "optimizer": {
    "kind": "adamw",
    "learning_rate": 1e-5,
    "schedule": "wsd",
    "decay_steps": 10,
    "groups": [{"match": "layers[.].*", "weight_decay": 0.0}],
  },
  "mesh": {"fsdp": -1},
  "evaluation": {"every": 10, "pass_at": [1, 4]},
  "train": {"num_steps": 100, "run_directory": "~/runs/x"},
}
_TEMPLATES = (
  b"{{ problem }}\n{% if solution %}{{ solution }}{% endif %}",
  b"{% for x in [solution, feedback] %}{% if x %}{{ x }}{% endif %}"
  b"{% endfor %}{{ problem }}",
  b"{%- set s = solution or feedback -%}{{ problem | trim }} {{ s | upper }}"
  b"{{ solution }}",
)


@dataclasses.dataclass(frozen=True)
class Reader:
  """Describes a reader.

  Attributes:
    make: a generator -> an input.
    read: the input's file -> anything; it lies alone in a folder.
    name: of the file.
    errors: what it may raise.
    prepare: puts what the reader needs besides into the folder, once.
  """

  make: Callable[[random.Random], bytes]
  read: Callable[[pathlib.Path], Any]
  name: str
  errors: tuple[type[Exception], ...]
  prepare: Callable[[pathlib.Path], None] = lambda folder: None


def _rows(path: pathlib.Path) -> Any:
  found = datasets.read_rows(path, fields={}, malformed="skip")
  # A row that is neither read nor counted would be lost without a word.
  for row in found.rows:
    assert isinstance(row.fields["prompt"], str | list)
  return found


def _csv(path: pathlib.Path) -> Any:
  return datasets.read_rows(path, fields={}, malformed="error")


def _parquet(rng: random.Random) -> bytes:
  rows = [dict(_ROWS[0]), dict(_ROWS[0], prompt=rng.choice(("", None, "x")))]
  sink = io.BytesIO()
  pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
  return inputs.damaged(sink.getvalue(), rng)


_NETWORK = DecoderConfig(
  vocab_size=8,
  width=4,
  num_layers=1,
  num_heads=1,
  num_kv_heads=1,
  head_size=4,
  mlp_size=8,
  tie_embeddings=True,
  rope_theta=1e4,
)


@functools.cache
def _weights() -> tuple[Any, bytes]:
  """Returns the header of a small model's file, and the bytes after it."""
  with tempfile.TemporaryDirectory() as folder:
    params = decoder.init(_NETWORK, jax.random.key(0))
    hf_export.save(folder, params, _NETWORK, config_json={})
    content = (pathlib.Path(folder) / hf_directory.SINGLE).read_bytes()
  end = 8 + int.from_bytes(content[:8], "little")
  return json.loads(content[8:end]), content[end:]


def _safetensors(rng: random.Random) -> bytes:
  tree, content = _weights()
  header = inputs.of_json(tree)(rng)
  size = len(header)
  if rng.random() < 0.2:
    size = rng.choice((0, 1, size - 1, size + 1, 2**31, 2**63, 2**64 - 1))
  if rng.random() < 0.2:
    content = content[: rng.randrange(len(content))]
  return size.to_bytes(8, "little") + header + content


def _read_safetensors(path: pathlib.Path) -> Any:
  return hf_weights.load(path.parent, decoder.make(_NETWORK)[1], _NETWORK)


def _model_files() -> pathlib.Path:
  return resolve_directory("embedded:calculator")


def _copy_tokenizer(folder: pathlib.Path) -> None:
  for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
    shutil.copy(_model_files() / name, folder / name)
  shutil.copy(_model_files() / "chat_template.jinja", folder)


def _tokenizer_json() -> Any:
  tree = json.loads((_model_files() / "tokenizer.json").read_text())
  # Of few tokens, so that the other parts are changed too.
  kept = set(list(tree["model"]["vocab"])[:270])
  tree["model"]["vocab"] = {
    k: x for k, x in tree["model"]["vocab"].items() if k in kept
  }
  tree["model"]["merges"] = []
  tree["added_tokens"] = [
    x for x in tree["added_tokens"] if x["content"] in kept
  ]
  return tree


def _read_tokenizer(path: pathlib.Path) -> Any:
  found = tokenizer.Tokenizer.load(path.parent)
  return found.encode_messages([_QUESTION]), found.decode([0, 1, 2])


def _read_teacher_template(path: pathlib.Path) -> Any:
  form = teacher_templates.load(str(path))
  problem = Problem(0, (_QUESTION,), "2")
  return form(problem, teacher_templates.Told("2", "no"))


def _read_model_config(path: pathlib.Path) -> Any:
  found = hf_config.from_hugging_face(hf_directory.read_config(path.parent))
  if found.vocab_size * found.width * found.num_layers < 2**40:
    decoder.make(found)
  return found


def _json_file(name: str) -> Any:
  return json.loads((_model_files() / name).read_text())


def _lines(tree: Any) -> bytes:
  rows = tree if isinstance(tree, list) else [tree]
  return b"\n".join(map(inputs.as_json, rows))


def _readers() -> dict[str, Reader]:
  table = b'prompt,answer,note\n"1 + 1?",2,"a ""quoted"" note"\nx,y,z\n'
  template = (_model_files() / "chat_template.jinja").read_bytes()
  text = tokenizer.TokenizerError
  return {
    "json": Reader(inputs.of_json(_ROWS), _rows, "rows.json", (DataError,)),
    "jsonl": Reader(
      inputs.of_json(_ROWS, _lines), _rows, "rows.jsonl", (DataError,)
    ),
    "csv": Reader(inputs.of_texts([table]), _csv, "rows.csv", (DataError,)),
    "parquet": Reader(_parquet, _rows, "rows.parquet", (DataError,)),
    "config": Reader(
      inputs.of_json(_TREE, lambda x: yaml.safe_dump(x).encode()),
      config.load,
      "config.yaml",
      (config.ConfigError,),
    ),
    "safetensors": Reader(
      _safetensors,
      _read_safetensors,
      "model.safetensors",
      (hf_directory.WeightsError,),
    ),
    "tokenizer": Reader(
      inputs.of_json(_tokenizer_json()),
      _read_tokenizer,
      "tokenizer.json",
      (text,),
      _copy_tokenizer,
    ),
    "tokenizer_config": Reader(
      inputs.of_json(_json_file("tokenizer_config.json")),
      _read_tokenizer,
      "tokenizer_config.json",
      (text,),
      _copy_tokenizer,
    ),
    "chat_template": Reader(
      inputs.of_texts([template]),
      _read_tokenizer,
      "chat_template.jinja",
      (text,),
      _copy_tokenizer,
    ),
    "teacher_template": Reader(
      inputs.of_texts(_TEMPLATES),
      _read_teacher_template,
      "teacher.jinja",
      (ValueError,),
    ),
    "model_config": Reader(
      inputs.of_json(_json_file("config.json")),
      _read_model_config,
      "config.json",
      (ValueError,),
    ),
  }


READERS = _readers()
