"""The commands on real questions, and what they say to a mistake."""

import json
import os

import jax
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import yaml

import distil_jax as dj
from distil_jax.cli import main
from tests.commands import WITH_FEW_PROGRAMS, run
from tests.paths import DATA

SMOKE = "configs/science/smoke.yaml"
CHEMISTRY = DATA / "sciknoweval/chemistry"
needs_data = pytest.mark.skipif(
  not CHEMISTRY.is_dir(), reason=f"no data at {CHEMISTRY}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp("smoke")


@pytest.fixture(scope="module")
def smoke(folder):
  """Runs a command on the smoke config; it must succeed."""

  def command(name, *arguments, **settings):
    done = run(
      [
        name,
        SMOKE,
        *arguments,
        f"train.run_directory={folder}/run",
        f"model.directory={folder}/model",
        f"data.train={CHEMISTRY}/train.json",
        f"data.evaluation={CHEMISTRY}/test.json",
        "logging.num_rollouts=8",
      ],
      folder / "compiled",
      **settings,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done

  return command


@pytest.fixture(scope="module")
def trained(smoke):
  return smoke("train", is_cold=True)


# Of an environment; SMOKE trains with all that a large network has.
SMALL = (
  "model.remat=none",
  "model.create.width=16",
  "model.create.num_layers=1",
  "model.create.num_heads=2",
  "model.create.num_kv_heads=1",
  "model.create.head_size=8",
  "model.create.mlp_size=32",
  "rollout.num_problems=2",
  "data.num_train=16",
  "data.num_evaluation=2",
  "evaluation.num_problems=2",
  "logging.tensorboard=false",
)


def read_lines(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


@needs_data
def test_train_leaves_a_complete_run_folder(trained, folder):
  directory = folder / "run"
  vocab_size = dj.load_policy(folder / "model").config.vocab_size
  assert 1500 < vocab_size <= 2048
  metrics = read_lines(directory / "metrics.jsonl")
  assert [line["step"] for line in metrics] == [1, 2, 3]
  for line in metrics:
    # The feedback of the environment is the only signal there is.
    assert line["signal_fraction"] == 1
    assert line["cost"] == pytest.approx(np.log(vocab_size), abs=0.2)
    assert np.isfinite(line["loss"])
    assert line["gradient_norm"] > 0
  evaluations = read_lines(directory / "evaluations.jsonl")
  assert [line["step"] for line in evaluations] == [0, 3]

  summary = json.loads((directory / "summary.json").read_text())
  assert set(summary) == {
    *("before", "after", "steps", "rollouts", "seconds", "seconds_by_cause")
  }
  assert (summary["steps"], summary["rollouts"]) == (3, 3 * 4 * 2)
  for side in ("before", "after"):
    assert {"avg@2", "pass@1", "pass@2"} <= set(summary[side])
    shares = [v for k, v in summary[side].items() if k.startswith("verdict/")]
    assert sum(shares) == pytest.approx(1)

  assert (directory / "learning.png").read_bytes().startswith(b"\x89PNG")
  assert any((directory / "tensorboard").iterdir())
  pages = sorted((directory / "rollouts").glob("*.md"))
  assert [page.name[5:11] for page in pages] == ["000001", "000002", "000003"]
  page = pages[0].read_text()
  for text in (
    "- status: unparsable",
    "The format is wrong",
    "Correctly solve the original question.<|im_end|>\n<|im_start|>assistant",
  ):
    assert text in page
  # All of the step's completions are on the page, so that the costs of their
  # tokens have the mean of the step.
  records = [read_lines(page.with_suffix(".jsonl")) for page in pages]
  for line, samples in zip(metrics, records, strict=True):
    assert len(samples) == 8
    tokens = [sample["tokens"] for sample in samples]
    for name in ("cost", "future_cost"):
      values = [x for of_sample in tokens for x in of_sample[name]]
      found = np.mean([x for x in values if x is not None])
      assert found == pytest.approx(line[name], rel=2e-3)
    for sample in samples:
      sizes = {len(values) for values in sample["tokens"].values()}
      assert sizes == {sample["num_tokens"]}
  resolved = yaml.safe_load((directory / "config.yaml").read_text())
  assert resolved["rollout"]["max_prompt_length"] == 512
  environment = json.loads((directory / "environment.json").read_text())
  assert environment["packages"]["jax"] == jax.__version__
  assert environment["devices"]["count"] == 1

  assert "before" in trained.stdout
  assert "pass@2" in trained.stdout
  assert "long prompts dropped" in trained.stderr


def write_as_verl(folder, rows):
  """Returns a pattern of parquet files with rows in verl's layout."""
  rows = [
    {
      "data_source": "openai/gsm8k",
      "prompt": [{"role": "user", "content": row["question"]}],
      "reward_model": {"style": "rule", "ground_truth": row["answer"]},
      "extra_info": {"index": index},
    }
    for index, row in enumerate(rows)
  ]
  for part in range(2):
    table = pyarrow.Table.from_pylist(rows[part::2])
    pyarrow.parquet.write_table(table, folder / f"part-{part}.parquet")
  return folder / "part-*.parquet"


@needs_data
@pytest.mark.parametrize(
  ("config", "data", "said"),
  [
    ("tools/smoke", "tooluse/test.json", "Write each call as a line `Action:`"),
    ("math/smoke", "verl", "Correct solution:"),
    ("code/smoke", "humaneval/humaneval.jsonl", "no code block was found"),
    (
      "science/olmo3_smoke",
      "sciknoweval/material/test.json",
      "no answer was found",
    ),
    (
      "self_evaluation/smoke",
      "gsm8k/test.jsonl",
      "no answer was found in \\box",
    ),
    ("reasoning_gym/smoke", None, "no answer was found between <answer>"),
    ("writing/smoke", None, "The sentence "),
  ],
)
def test_other_environments_go_through_all_stations(
  config, data, said, folder, tmp_path
):
  fields = []
  if data == "verl":
    data = write_as_verl(tmp_path, read_lines(DATA / "gsm8k/test.jsonl"))
    truth = "answer: reward_model.ground_truth"
    fields = [f"data.fields={{prompt: prompt, {truth}}}"]
  else:
    data = DATA / data if data else "generated"
  done = run(
    [
      "train",
      f"configs/{config}.yaml",
      "train.num_steps=1",
      *SMALL,
      "evaluation.num_samples=2",  # as many as a group: the same programs
      f"train.run_directory={tmp_path}/run",
      f"model.directory={tmp_path}/model",
      f"data.train={data}",
      f"data.evaluation={data}",
      *fields,
    ],
    folder / "compiled",
    program=WITH_FEW_PROGRAMS,
  )
  assert done.returncode == 0, done.stderr
  (metrics,) = read_lines(tmp_path / "run/metrics.jsonl")
  statuses = {k: v for k, v in metrics.items() if k.startswith("verdict/")}
  assert statuses.pop("verdict/unparsable") == 1.0
  assert not any(statuses.values())
  assert metrics["signal_fraction"] == 1.0
  # Of every failure, where the policy criticises itself.
  assert metrics.get("critique/asked", 1.0) == 1.0
  (page,) = (tmp_path / "run/rollouts").glob("*.md")
  assert said in page.read_text(encoding="utf-8")


@needs_data
def test_trained_run_resumes_evaluates_and_exports(trained, smoke, folder):
  directory = folder / "run"
  before = (directory / "metrics.jsonl").read_text()
  again = smoke("train")
  assert "step 3 of 3 is done" in again.stderr
  assert (directory / "metrics.jsonl").read_text() == before
  assert again.stdout == trained.stdout

  smoke("train", "train.num_steps=4")
  lines = read_lines(directory / "metrics.jsonl")
  assert [line["step"] for line in lines] == [1, 2, 3, 4]
  assert (directory / "metrics.jsonl").read_text().startswith(before)
  summary = json.loads((directory / "summary.json").read_text())
  assert summary["steps"] == 4

  judged = smoke("evaluate", "--step", "4")
  samples = read_lines(folder / "run/evaluation_samples/step_000004.jsonl")
  assert len(samples) == 6 * 2  # each problem once, the last batch filled up
  assert {"messages", "completion", "status", "feedback"} <= set(samples[0])
  assert f"{directory}, step 4" in judged.stdout
  assert "pass@2" in judged.stdout
  evaluations = (directory / "evaluations.jsonl").read_text()
  assert len(evaluations.splitlines()) == 3

  exported = smoke("export", str(folder / "exported"))
  assert "step 4" in exported.stdout
  policy = dj.load_policy(folder / "exported")
  base = dj.load_policy(folder / "model")
  ids = np.asarray(policy.tokenizer.encode("molar weight"))[None]
  trained_logits = dj.logits(policy, ids, np.ones_like(ids))
  base_logits = dj.logits(base, ids, np.ones_like(ids))
  assert trained_logits.shape[:2] == ids.shape
  assert not np.allclose(trained_logits, base_logits, atol=1e-4)


@pytest.fixture(scope="module")
def model_directory(tmp_path_factory):
  """A tiny model, so that only what a test is about can go wrong."""
  return tmp_path_factory.mktemp("errors") / "model"


@pytest.fixture
def tiny(tmp_path, model_directory):
  """A config that runs on the eight devices of the tests."""
  rows = [
    {"prompt": f"Is {i} even?\nA: yes\nB: no", "answer": "AB"[i % 2]}
    for i in range(16)
  ]
  data = tmp_path / "rows.jsonl"
  data.write_text("".join(json.dumps(row) + "\n" for row in rows))
  tree = {
    "model": {
      "directory": str(model_directory),
      "create": {
        "vocab_size": 300,
        "width": 16,
        "num_layers": 1,
        "num_heads": 2,
        "num_kv_heads": 1,
        "head_size": 8,
        "mlp_size": 16,
      },
    },
    "data": {"train": str(data), "evaluation": str(data)},
    "environment": {"kind": "multiple_choice"},
    "rollout": {
      "num_problems": 8,
      "group_size": 2,
      "max_prompt_length": 64,
      "max_completion_length": 4,
    },
    "teacher": {"parameters": "ema", "max_prompt_length": 160},
    "train": {"num_steps": 1, "run_directory": str(tmp_path / "run")},
    "evaluation": {"num_samples": 2, "pass_at": [1, 2], "num_problems": 8},
    "checkpoint": {"every": 1},
  }
  path = tmp_path / "tiny.yaml"
  path.write_text(yaml.safe_dump(tree))
  return path


def refusal(capsys, *arguments):
  """The one message with which a command ends."""
  assert main.main(list(map(str, arguments))) == 1
  err = capsys.readouterr().err
  assert err.startswith("distil-jax: ")
  assert err.count("distil-jax:") == 1
  assert "Traceback" not in err
  return err


def test_wrong_settings_are_refused_before_anything_is_written(
  tiny, tmp_path, model_directory, capsys
):
  empty = tmp_path / "empty.jsonl"
  empty.touch()
  malformed = tmp_path / "malformed.jsonl"
  malformed.write_text('{"prompt": "Is 1 even?"}\n')
  nowhere = tmp_path / "nowhere"
  untouched = f"model.directory={tmp_path / 'made'}"
  for override, *expected in (
    ("rollout.gruop_size=4", "rollout.gruop_size", "group_size?"),
    (f"data.train={nowhere}.json", f"no data file {nowhere}.json"),
    (f"data.evaluation={nowhere}.json", f"no data file {nowhere}.json"),
    (f"data.train={empty}", f"{empty} holds no rows"),
    (
      f"data.train={malformed}",
      "line 1",
      "'answer' is missing",
      "data.fields={answer: NAME}",
    ),
    ("mesh.fsdp=3", "fsdp=3", "8 devices"),
    ("rollout.num_problems=6", "rollout.num_problems=6", "multiple of 8"),
    ("evaluation.pass_at=[1,8]", "k=8", "num_samples=2"),
    ("optimizer.micro_batch_size=5", "micro_batch_size=5", "16 sequences"),
    (
      "environment.kind=calculater",
      "environment.kind",
      "did you mean calculator?",
    ),
  ):
    err = refusal(capsys, "train", tiny, untouched, override)
    for text in expected:
      assert text in err, override
  err = refusal(capsys, "train", nowhere)
  assert f"no config file at {nowhere}" in err
  assert not (tmp_path / "made").exists()
  assert not (tmp_path / "run").exists()


def test_missing_model_is_refused(tiny, tmp_path, capsys):
  nowhere = tmp_path / "nowhere"
  for command in ("train", "evaluate"):
    err = refusal(
      capsys, command, tiny, "model.create=null", f"model.directory={nowhere}"
    )
    assert str(nowhere) in err
  assert not nowhere.exists()
  assert not (tmp_path / "run").exists()


def test_place_of_the_run_is_taken_by_a_file(tiny, tmp_path, capsys):
  taken = tmp_path / "taken"
  taken.write_text("mine")
  for place in (taken, taken / "inside"):
    err = refusal(capsys, "train", tiny, f"train.run_directory={place}")
    assert f"train.run_directory={place}: {taken} is a file" in err
  assert taken.read_text() == "mine"


def test_place_of_the_checkpoints_is_taken_by_a_file(tiny, tmp_path, capsys):
  taken = tmp_path / "run" / "checkpoints"
  taken.parent.mkdir()
  taken.write_text("mine")
  assert f"{taken} is a file" in refusal(capsys, "train", tiny)


def test_model_made_with_other_sizes_is_refused(tiny, capsys):
  refusal(capsys, "train", tiny, "rollout.max_prompt_length=1")  # makes it
  err = refusal(capsys, "train", tiny, "model.create.mlp_size=24")
  assert "model.create.mlp_size=24" in err
  assert "has 16" in err


def test_more_tokens_than_positions_are_refused(tiny, capsys):
  err = refusal(capsys, "train", tiny, "teacher.max_prompt_length=4093")
  assert "prompts of 4093 and completions of 4 tokens" in err
  assert "4096 positions" in err


@pytest.mark.parametrize(
  "settings",
  [
    ["objective.top_k=5000"],
    [
      "teacher.top_k=5000",
      "teacher.access=top_k",
      "objective.local_cost=forward_cross_entropy",
    ],
  ],
)
def test_lists_longer_than_the_vocabulary_are_refused(tiny, capsys, settings):
  err = refusal(capsys, "train", tiny, *settings)
  assert f"{settings[0]} is more than the" in err


def test_export_needs_its_directory(tiny, tmp_path, capsys, monkeypatch):
  monkeypatch.chdir(tmp_path)
  err = refusal(capsys, "export", tiny, "train.num_steps=2")
  assert "DIRECTORY comes before the settings" in err
  assert not (tmp_path / "train.num_steps=2").exists()


def test_export_onto_the_base_model_is_refused(tiny, model_directory, capsys):
  refusal(capsys, "train", tiny, "rollout.max_prompt_length=1")  # makes it
  weights = model_directory / "model.safetensors"
  before = weights.read_bytes()
  winding = model_directory / ".." / model_directory.name
  for target in (model_directory, winding):
    err = refusal(capsys, "export", tiny, target)
    assert f"{target} holds the base model of this run" in err
  assert weights.read_bytes() == before


def test_a_setting_with_dashes_is_explained(tiny, capsys):
  with pytest.raises(SystemExit):
    main.main(["train", str(tiny), "--train.num_steps=2"])
  assert "a setting has no dashes" in capsys.readouterr().err
  with pytest.raises(SystemExit):
    main.main(["train", str(tiny), "--num-steps=2"])
  assert "dashes" not in capsys.readouterr().err


def test_export_of_a_teacher_that_there_is_not(tiny, tmp_path, capsys):
  target = tmp_path / "exported"
  err = refusal(capsys, "export", tiny, target, "--teacher")
  assert f"no checkpoint in {tmp_path / 'run'}" in err
  err = refusal(capsys, "export", tiny, target)
  assert f"no checkpoint in {tmp_path / 'run'}" in err
  assert "nothing to export yet" in err
  err = refusal(
    capsys, "export", tiny, target, "--teacher", "teacher.parameters=current"
  )
  assert "teacher.parameters=current keeps no weights" in err
  assert not target.exists()


def test_export_of_student_and_teacher(tiny, tmp_path, model_directory, capsys):
  settings = ["teacher.ema_rate=0.25", "optimizer.learning_rate=0.01"]
  assert main.main(["train", str(tiny), *settings]) == 0
  sampling = {"temperature": 0.6, "top_k": 20}
  file = model_directory / "generation_config.json"
  file.write_text(json.dumps(json.loads(file.read_text()) | sampling))

  def exported(name, *options):
    target = tmp_path / name
    command = ["export", str(tiny), str(target), *options, *settings]
    assert main.main(command) == 0
    kept = json.loads((target / "generation_config.json").read_text())
    assert sampling.items() <= kept.items()
    template = "chat_template.jinja"
    assert (target / template).read_text() == (
      model_directory / template
    ).read_text()
    dtype = json.loads((target / "config.json").read_text())["dtype"]
    return dtype, dj.load_policy(target, dtype).params

  base = dj.load_policy(model_directory).params
  dtype, student = exported("student")
  assert dtype == "float32"
  capsys.readouterr()
  dtype, teacher = exported("teacher", "--teacher", "--dtype=float32")
  assert "teacher of step 1 of" in capsys.readouterr().out
  assert dtype == "float32"
  # After one step, by hand: a quarter of the way from the base model.
  jax.tree.map(
    lambda x, a, b: np.testing.assert_allclose(
      x, a + 0.25 * (b - a), rtol=1e-5, atol=1e-7
    ),
    teacher,
    base,
    student,
  )
  assert np.abs(student["embedding"] - base["embedding"]).max() > 1e-3
  dtype, rounded = exported("rounded", "--dtype", "bfloat16")
  assert dtype == "bfloat16"
  jax.tree.map(
    lambda x, y: np.testing.assert_array_equal(x, y.astype(x.dtype)),
    rounded,
    student,
  )
  with pytest.raises(SystemExit):
    exported("wrong", "--dtype", "float16")
  assert "invalid choice: 'float16'" in capsys.readouterr().err


def test_epochs_that_fill_no_batch_are_refused(tiny, tmp_path, capsys):
  err = refusal(capsys, "train", tiny, "data.num_train=4", "data.num_epochs=1")
  assert "4 items in all epochs" in err
  assert not (tmp_path / "run").exists()


def test_long_prompt_is_an_error_or_dropped(tiny, tmp_path, capsys):
  data = tmp_path / "rows.jsonl"
  row = {"prompt": "Is it even? " * 20, "answer": "A"}
  data.write_text(data.read_text() + json.dumps(row) + "\n")
  err = refusal(capsys, "train", tiny)
  for text in ("row 17", "max_prompt_length=64", "long_prompts=drop"):
    assert text in err
  assert not (tmp_path / "run").exists()

  assert main.main(["train", str(tiny), "data.long_prompts=drop"]) == 0
  assert "2 long prompts dropped" in capsys.readouterr().err

  err = refusal(
    capsys,
    "train",
    tiny,
    "data.long_prompts=drop",
    "rollout.max_prompt_length=4",
    f"train.run_directory={tmp_path / 'other'}",
  )
  assert "none of the 17 prompts fits" in err
  assert not (tmp_path / "other").exists()


def test_checkpoint_of_other_settings_is_refused(tiny, tmp_path, capsys):
  assert main.main(["train", str(tiny)]) == 0
  capsys.readouterr()

  def files():
    return {
      os.path.join(place, name): os.stat(os.path.join(place, name)).st_mtime_ns
      for place, _, names in os.walk(tmp_path / "run")
      for name in names
    }

  before = files()
  err = refusal(
    capsys,
    "train",
    tiny,
    "optimizer.learning_rate=0.5",
    "teacher.ema_rate=0.5",
    "train.num_steps=2",
  )
  assert "optimizer.learning_rate: 1e-05 in the checkpoint, 0.5 now" in err
  assert "teacher.ema_rate: 0.01 in the checkpoint, 0.5 now" in err
  assert "num_steps" not in err
  err = refusal(capsys, "train", tiny, "checkpoint.resume=false")
  for text in ("checkpoint of step 1", "train.run_directory"):
    assert text in err
  assert files() == before


def test_lost_evaluations_are_made_up_for(tiny, tmp_path):
  assert main.main(["train", str(tiny)]) == 0
  run = tmp_path / "run"
  summary = json.loads((run / "summary.json").read_text())
  (run / "evaluations.jsonl").unlink()
  assert main.main(["train", str(tiny)]) == 0
  again = json.loads((run / "summary.json").read_text())
  for when in ("before", "after"):
    assert again[when] == summary[when]


def test_unknown_command_is_refused(capsys):
  with pytest.raises(SystemExit) as error:
    main.main(["trian", "config.yaml"])
  assert error.value.code == 2
  said = capsys.readouterr().err
  assert "no command 'trian'; did you mean train? the commands are" in said


def test_version_is_that_of_the_package(capsys):
  with pytest.raises(SystemExit) as ended:
    main.main(["--version"])
  assert ended.value.code == 0
  assert capsys.readouterr().out == f"distil-jax {dj.__version__}\n"


def test_debug_shows_where_an_error_comes_from(tmp_path):
  with pytest.raises(ValueError, match="no config file"):
    main.main(["train", str(tmp_path / "nowhere.yaml"), "--debug"])
