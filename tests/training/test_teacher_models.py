"""Runs whose teacher is another model: read, checked, learned from, resumed."""

import json

import jax
import numpy as np
import pytest

from distil_jax import config
from distil_jax.cli import export
from distil_jax.data import tokenizer as tokenizers
from distil_jax.generation.policy import Policy, load_policy
from distil_jax.models import decoder
from distil_jax.planning import hardware as planning_hardware
from distil_jax.planning import memory, planner
from distil_jax.training import checkpoints, trainer
from distil_jax.training.logging.progress import Progress
from distil_jax.training.setup import policies, teacher_models
from tests import networks

pytestmark = pytest.mark.usefixtures("one_width")
CALCULATOR = "embedded:calculator"
# The calculator has 405 tokens and pads nothing.
SMALL = {"width": 16, "num_layers": 1, "head_size": 8, "max_positions": 512}


def save(directory, tokenizer, seed=0, **sizes):
  network = networks.config_of(**{**SMALL, **sizes})
  graphdef, _ = decoder.make(network)
  params = decoder.init(network, jax.random.key(seed))
  Policy(network, graphdef, params, tokenizer).save(directory)
  return str(directory)


@pytest.fixture(scope="module")
def tokenizer():
  return load_policy(CALCULATOR).tokenizer


@pytest.fixture(scope="module")
def student(tokenizer, tmp_path_factory):
  folder = tmp_path_factory.mktemp("student")
  return save(folder, tokenizer, vocab_size=416)


@pytest.fixture
def teacher(tmp_path):
  """A copy of the calculator that a test may change."""
  policy = load_policy(CALCULATOR)
  policy.save(tmp_path / "teacher")
  return tmp_path / "teacher"


def settings(student, teacher=CALCULATOR, **changed):
  tree = {
    "model": {"directory": student},
    "data": {"num_train": 32, "num_evaluation": 8},
    "rollout": {
      "num_problems": 8,
      "group_size": 2,
      "max_prompt_length": 64,
      "max_completion_length": 8,
    },
    "teacher": {
      "model": {"directory": str(teacher)},
      "max_prompt_length": 192,
    },
    "objective": {"kind": "sdpo", "alpha": 0.0, "top_k": None},
    "optimizer": {"learning_rate": 0.03},
    "evaluation": {
      "num_problems": 8,
      "num_samples": 2,  # as in training: the same programs
      "pass_at": [1],
      "every": 0,
    },
    "checkpoint": {"every": 3},
    "logging": {"tensorboard": False, "token_values": False},
    "train": {"num_steps": 6},
  }
  for key, value in changed.items():
    section, name = key.split("__")
    tree.setdefault(section, {})[name] = value
  return config.parse(tree)


def train(directory, *arguments, **changed):
  """Trains, and returns the metrics of every step without the times."""
  trial = settings(*arguments, train__run_directory=str(directory), **changed)
  trainer.Trainer(trial).train()
  lines = (directory / "metrics.jsonl").read_text().splitlines()
  return [
    {
      k: v
      for k, v in json.loads(x).items()
      if not k.startswith(("time/", "memory/"))
    }
    for x in lines
  ]


def last_params(directory, student):
  """Parameters and notes of the last checkpoint."""
  with checkpoints.Checkpoints(directory / "checkpoints") as saved:
    step = saved.latest_step
    assert step is not None
    template = checkpoints.template(load_policy(student).params)
    return saved.read_params(step, template), saved.notes(step)


def test_a_student_learns_and_an_interrupted_run_goes_on(
  student, teacher, tmp_path
):
  whole = train(tmp_path / "whole", student, teacher, train__num_steps=8)
  costs = [line["cost"] for line in whole]
  assert costs == sorted(costs, reverse=True)
  # New adapters change nothing, so the first cost is the same teacher's.
  adapted = train(
    tmp_path / "lora",
    student,
    teacher,
    model__lora={"rank": 2},
    train__num_steps=2,
  )
  assert adapted[0]["cost"] == pytest.approx(costs[0], rel=1e-5)
  assert adapted[1]["cost"] != pytest.approx(costs[1], rel=1e-5)
  assert costs[-1] < 0.7 * costs[0]
  train(tmp_path / "cut", student, teacher, train__num_steps=3)
  resumed = train(tmp_path / "cut", student, teacher, train__num_steps=8)
  assert resumed == whole
  (one, notes), (other, _) = (
    last_params(tmp_path / name, student) for name in ("whole", "cut")
  )
  jax.tree.map(np.testing.assert_array_equal, one, other)
  assert notes["teacher_model"]["directory"] == str(teacher)

  # The same folder with other weights is another teacher.
  weights = teacher / "model.safetensors"
  content = bytearray(weights.read_bytes())
  content[-8] ^= 1
  weights.write_bytes(content)
  with pytest.raises(config.ConfigError, match="whose teacher had digest"):
    train(tmp_path / "cut", student, teacher, train__num_steps=9)
  with pytest.raises(config.ConfigError, match=r"teacher\.model\.directory: "):
    train(tmp_path / "cut", student, student, train__num_steps=9)


def test_the_vocabulary_is_padded_or_cut_to_the_students(
  student, tokenizer, tmp_path
):
  mesh = jax.make_mesh((1, 1, 1, 1), ("data", "fsdp", "context", "tensor"))
  policy = load_policy(student)
  for rows, is_tied in ((405, True), (424, False), (416, False)):
    folder = tmp_path / f"{rows}"
    save(folder, tokenizer, vocab_size=rows, tie_embeddings=is_tied)
    trial = settings(student, folder)
    found = teacher_models.build_teacher_model(trial, policy, mesh)
    assert found is not None
    assert (policy.config.num_tokens, found.config.vocab_size) == (405, 416)
    assert found.tokenizer is policy.tokenizer
    params, original = found.load_params(mesh), load_policy(folder).params
    assert params["embedding"].shape == (416, 16)
    assert ("unembedding" in params) is not is_tied
    for name in ("embedding", "unembedding"):
      if name in params:
        kept, whole = params[name], original[name]
        if name == "unembedding":
          assert kept.shape == (16, 416)
          kept, whole = kept.T, whole.T
        np.testing.assert_array_equal(kept[:405], whole[:405])
        assert rows >= 416 or not kept[rows:].any()


def test_a_teacher_writes_its_prompts_with_its_own_template(
  student, teacher, tmp_path, capsys
):
  template = tokenizers.CHAT_TEMPLATE.replace(
    "assistant\\n'", "assistant\\n: '"
  )
  (teacher / "chat_template.jinja").write_text(template)
  trial = settings(student, teacher, train__run_directory=str(tmp_path / "run"))
  made = trainer.Trainer(trial)
  said = capsys.readouterr().err
  assert "the teacher's prompt is written with the teacher's own" in said
  assert f"teacher.model.directory={teacher}" in said
  builder = made.build_batch
  messages = [{"role": "user", "content": "1 + 1"}]
  assert builder.tokenizer is made.policy.tokenizer
  ours, theirs = (
    x.decode(x.encode_messages(messages), skip_special=False)
    for x in (builder.tokenizer, builder.teacher_tokenizer)
  )
  assert theirs == ours + ": "
  with pytest.raises(config.ConfigError, match="which no run changes; leave"):
    export._teacher_params(trial, made)


@pytest.mark.parametrize(
  ("changed", "said"),
  [
    (
      {"parameters": "ema"},
      "parameters=ema makes the teacher from the student's weights, but "
      r"model\.directory=x has weights of its own.*parameters=frozen, or "
      "model=null",
    ),
    ({"parameters": "current"}, "parameters=current makes the teacher"),
    ({"parameters": "trust_region"}, "parameters=trust_region makes"),
    (
      {"guard": {}},
      r"guard\.action=roll_back watches a moving average.*model\.directory=x "
      "does not move; set guard=null",
    ),
    ({"ema_rate": 0.5}, "ema_rate=0.5 is of parameters=ema"),
    ({"model": {}}, r"teacher\.model\.directory"),
    ({"model": {"directory": "x", "dtype": "float32"}}, "dtype"),
  ],
)
def test_settings_that_do_not_go_together_are_refused(changed, said):
  section = {"model": {"directory": "x"}, **changed}
  with pytest.raises(config.ConfigError, match=said):
    config.parse({"teacher": section})


@pytest.mark.parametrize(
  ("section", "changed", "said"),
  [
    (
      {"directory": "nowhere"},
      {},
      r"teacher\.model\.directory=nowhere: no model directory at /.*nowhere",
    ),
    (
      {"directory": "embedded:none"},
      {},
      r"teacher\.model\.directory=embedded:none is not embedded",
    ),
    (
      {"directory": CALCULATOR, "revision": "main"},
      {},
      r"teacher\.model\.revision=main .*remove teacher\.model\.revision",
    ),
    (
      {"directory": CALCULATOR, "attention": "splash"},
      {},
      r"teacher\.model\.directory=embedded:calculator: attention=splash",
    ),
    (
      {"directory": CALCULATOR},
      {"teacher__max_prompt_length": 4090},
      r"teacher\.max_prompt_length=4090 and rollout\.max_completion_length=8 "
      r"are longer than the 4096 positions of teacher\.model\.directory",
    ),
    (
      {"directory": CALCULATOR},
      {"objective__top_k": 406},
      r"objective\.top_k=406 is more than the 405 tokens of student and teac",
    ),
  ],
)
def test_a_teacher_that_does_not_suit_the_run_is_refused(
  student, section, changed, said
):
  tree = settings(student, **changed).model_dump()
  tree["teacher"]["model"] |= section
  mesh = jax.make_mesh((1, 1, 1, 1), ("data", "fsdp", "context", "tensor"))
  with pytest.raises(config.ConfigError, match=said):
    teacher_models.build_teacher_model(
      config.parse(tree), load_policy(student), mesh
    )


def test_another_tokenizer_is_refused(student, tmp_path):
  other = tokenizers.train(["What is it?"], vocab_size=300)
  save(tmp_path / "other", other, vocab_size=300)
  trial = settings(student, tmp_path / "other")
  mesh = jax.make_mesh((1, 1, 1, 1), ("data", "fsdp", "context", "tensor"))
  with pytest.raises(
    config.ConfigError,
    match=rf"teacher\.model\.directory={tmp_path}/other has another tokenizer "
    rf"than model\.directory={student}: id \d+ is '.*' for the student and "
    r"'.*' for the teacher; .*teacher\.model=null",
  ):
    teacher_models.build_teacher_model(trial, load_policy(student), mesh)


def test_the_students_positions_need_not_hold_the_teachers_prompt(
  tokenizer, tmp_path
):
  short = save(tmp_path / "short", tokenizer, vocab_size=416, max_positions=80)
  trial = settings(short)
  assert planner.load_network(trial, None).max_positions == 80
  with pytest.raises(config.ConfigError, match="longer than the 80 positions"):
    planner.load_network(settings(short, rollout__max_prompt_length=100), None)


def test_objectives_without_a_teacher_read_none(student):
  tree = settings(student, "nowhere").model_dump()
  trial = config.parse({**tree, "objective": {"kind": "grpo"}})
  mesh = jax.make_mesh((1, 1, 1, 1), ("data", "fsdp", "context", "tensor"))
  policy = load_policy(student)
  assert teacher_models.build_teacher_model(trial, policy, mesh) is None
  assert not teacher_models.teacher_networks(trial, 416)


def test_a_plan_counts_the_teacher(student, tmp_path, tokenizer):
  wide = save(
    tmp_path / "wide", tokenizer, vocab_size=405, width=64, num_layers=3
  )
  trial = settings(student, wide, mesh__fsdp=4, mesh__tensor=2)
  found = planning_hardware.find_hardware(None)
  network = planner.load_network(trial, None)
  planned = planner.Planner(trial, found, network, Progress(None))
  phase = planned.training_phase()
  by_hand = phase.memory.by_hand[planner.TEACHER_MODEL]
  (teacher,) = teacher_models.teacher_networks(
    trial, network.vocab_size
  ).values()
  assert (teacher.width, teacher.vocab_size) == (64, 416)
  shapes = decoder.make(teacher)[1]
  # All but the norms is cut over the eight devices.
  assert by_hand == pytest.approx(memory.tree_bytes(shapes) / 8, rel=0.05)
  assert phase.memory.arguments == pytest.approx(
    phase.memory.arguments_by_hand, rel=1e-3
  )
  assert planned.parts["teacher"] == 0
  own = settings(student).model_dump()
  own["teacher"]["model"] = None
  own["teacher"]["parameters"] = "current"
  alone = planner.Planner(config.parse(own), found, network, Progress(None))
  assert planner.TEACHER_MODEL not in alone.parts


def test_no_teacher_reads_what_is_sampled_to_evaluate():
  network = networks.config_of(max_positions=80)

  def check(teacher_length):
    trial = config.Config.model_validate(
      {
        "rollout": {"max_prompt_length": 10, "max_completion_length": 20},
        "teacher": {"max_prompt_length": teacher_length},
        "evaluation": {"max_completion_length": 70},
      }
    )
    policies.check_network(trial, network)

  check(60)
  with pytest.raises(config.ConfigError, match="prompts of 61 and completions"):
    check(61)
