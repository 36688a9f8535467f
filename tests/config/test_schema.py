"""Settings: files, overrides, checks and what they say."""

import pathlib

import pytest

from distil_jax import config as configs
from tests.paths import ROOT

# Those of comparisons have a schema of their own.
SHIPPED = sorted(
  path
  for path in (ROOT / "configs").rglob("*.yaml")
  if path.parent.name != "comparison"
)


def load(tmp_path, text="", *overrides):
  path = tmp_path / "trial.yaml"
  path.write_text(text or "{}")
  return configs.load(path, list(overrides))


def refusal(tmp_path, text="", *overrides):
  with pytest.raises(configs.ConfigError) as error:
    load(tmp_path, text, *overrides)
  return str(error.value)


def test_configs_are_shipped():
  names = {str(path.relative_to(ROOT / "configs")) for path in SHIPPED}
  assert {"calculator/base.yaml", "science/smoke.yaml"} <= names


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_config_loads(path):
  config = configs.load(path)
  assert config.name == path.stem
  assert path.read_text().startswith("#"), "say command, hardware and time"


def test_empty_file_has_the_defaults(tmp_path):
  config = load(tmp_path)
  assert config == configs.Config(name="trial")
  assert config.run_directory == pathlib.Path("runs/trial")
  assert config.num_sequences == 16 * 8


@pytest.mark.parametrize(
  ("override", "read", "expected"),
  [
    ("train.num_steps=7", lambda c: c.train.num_steps, 7),
    (
      "optimizer.learning_rate=1e-5",
      lambda c: c.optimizer.learning_rate,
      1e-5,
    ),
    (
      "optimizer.learning_rate=.5",
      lambda c: c.optimizer.learning_rate,
      0.5,
    ),
    (
      "optimizer.max_gradient_norm=null",
      lambda c: c.optimizer.max_gradient_norm,
      None,
    ),
    ("evaluation.pass_at=[1, 2]", lambda c: c.evaluation.pass_at, (1, 2)),
    ("data.fields={prompt: q}", lambda c: c.data.fields, {"prompt": "q"}),
    ("data.fields.prompt=q", lambda c: c.data.fields, {"prompt": "q"}),
    ("objective.normalize=false", lambda c: c.objective.normalize, False),
    ("name=other", lambda c: c.name, "other"),
    ("model.directory=a=b", lambda c: c.model.directory, "a=b"),
  ],
)
def test_override(tmp_path, override, read, expected):
  assert read(load(tmp_path, "", override)) == expected


def test_overrides_win_over_the_file_and_the_last_one_wins(tmp_path):
  text = "train: {num_steps: 5, seed: 3}"
  config = load(tmp_path, text, "train.num_steps=6", "train.num_steps=7")
  assert (config.train.num_steps, config.train.seed) == (7, 3)


def test_override_opens_a_section_that_is_null(tmp_path):
  text = "model: {create: null, directory: here}"
  config = load(tmp_path, text, "model.create.width=32")
  assert config.model.create.width == 32


def test_equal_sections_have_one_hash():
  """Dictionaries in them too, in whatever order."""
  one, same, other = (
    configs.parse({"data": {"fields": fields}})
    for fields in (
      {"prompt": "q", "answer": "a"},
      {"answer": "a", "prompt": "q"},
      {"prompt": "q"},
    )
  )
  assert hash(one) == hash(same) != hash(other)
  assert hash(one.teacher) == hash(other.teacher)


def test_kind_chooses_the_section(tmp_path):
  config = load(tmp_path, "objective: {kind: sft}")
  assert isinstance(config.objective, configs.SFTConfig)
  # A setting of the other kind is no setting of this one.
  text = "objective: {kind: sft, future_weight: 1}"
  message = refusal(tmp_path, text)
  assert "objective.future_weight: a setting of kind=distil" in message
  assert "'objective={kind: sft}'" in message
  config = load(tmp_path, text, "objective={kind: sft}")
  assert isinstance(config.objective, configs.SFTConfig)


@pytest.mark.parametrize("before", ["kind: distil, ", ""])
def test_another_kind_drops_what_it_does_not_have(tmp_path, before):
  text = f"objective: {{{before}reward_weight: 0, top_k: 7}}"
  with pytest.warns(UserWarning, match="only other kinds have: reward_weight$"):
    config = load(tmp_path, text, "objective.kind=opsd")
  assert isinstance(config.objective, configs.OPSDConfig)
  assert config.objective.top_k == 7
  # What no kind has is a mistake as before; so is a kind that there is not.
  text = "objective: {reward_weight: 0, rewardweight: 1}"
  with pytest.warns(UserWarning, match="drops"):
    message = refusal(tmp_path, text, "objective.kind=opsd")
  assert "objective.rewardweight: unknown key" in message
  assert "did you mean opsd?" in refusal(tmp_path, text, "objective.kind=opds")


def test_an_empty_file_means_defaults_and_says_so(tmp_path):
  with pytest.warns(UserWarning, match="is empty: every setting has its def"):
    assert load(tmp_path, "# nothing") == load(tmp_path, "{}")


def test_a_config_of_a_comparison_is_told_its_command(tmp_path):
  message = refusal(tmp_path, "arms: {grpo: {}}")
  assert (
    "has arms, so it compares objectives: use distil-jax compare" in message
  )


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("rollout: {gruop_size: 4}", ["rollout.gruop_size", "mean group_size?"]),
    ("rolout: {group_size: 4}", ["rolout: unknown key", "mean rollout?"]),
    (
      "model: {directory: d, create: {widht: 8}}",
      ["model.create.widht", "mean width?"],
    ),
    (
      "objective: {kind: distil, futureweight: 1}",
      ["objective.futureweight", "mean future_weight?"],
    ),
    ("train: {num_steps: many}", ["train.num_steps", "'many'"]),
    ("train: {num_steps: 0}", ["train.num_steps", "greater than 0", "got 0"]),
    ("train: {seed: -1}", ["train.seed", "got -1"]),
    ("teacher: {ema_rate: 1.5}", ["teacher.ema_rate", "got 1.5"]),
    (
      "teacher: {ema_rate: 0.05}",
      ["teacher", "ema_rate=0.05", "parameters=frozen", "drop ema_rate"],
    ),
    (
      "teacher: {parameters: ema, trust_region_rate: 0.1}",
      ["teacher", "trust_region_rate=0.1", "set parameters=trust_region"],
    ),
    ("teacher: {parameters: ema2}", ["teacher.parameters", "'frozen'"]),
    ("environment: {kind: chess}", ["environment", "'calculator'", "chess"]),
    (
      "environment: {kind: calculator, num_steps: [4, 3]}",
      ["environment", "num_steps=[4, 3]"],
    ),
    (
      "model: {directory: d, create: {num_heads: 4, num_kv_heads: 3}}",
      ["model.create", "num_heads=4", "num_kv_heads=3"],
    ),
    (
      "model: {create: {width: 8}}",
      ["model", "embedded:calculator", "directory of its own"],
    ),
    ("mesh: {data: 0}", ["mesh", "data=0"]),
    ("mesh: {data: -1, fsdp: -1}", ["mesh", "only one axis"]),
    ("mesh: {context: 0}", ["mesh", "context=0"]),
    (
      "evaluation: {num_samples: 2, pass_at: [1, 4]}",
      ["evaluation", "k=4", "num_samples=2"],
    ),
    ("evaluation: {pass_at: []}", ["evaluation", "at least one k"]),
    (
      "optimizer: {micro_batch_size: 7}",
      ["optimizer.micro_batch_size=7", "128 sequences", "num_problems=16"],
    ),
    (
      "{objective: {baseline: leave_one_out}, rollout: {group_size: 1}}",
      ["objective.baseline=leave_one_out", "group_size", "got 1"],
    ),
    (
      "environment: {kind: multiple_choice}",
      ["data.train=generated", "environment.kind=multiple_choice", "a file"],
    ),
    ("train: {num_steps: 0, seed: x}", ["train.num_steps", "train.seed"]),
    ("train: 3", ["train"]),
    ("train: {run_directory: {a: b}}", ["train.run_directory"]),
    ("environment: {reveal_answer: true}", ["environment.reveal_answer"]),
    ("objective: 3", ["objective"]),
    ("- a\n- b", ["must hold a mapping"]),
    ("a: [", ["not valid YAML"]),
    (
      "train: {seed: 1}\ntrain: {num_steps: 2}",
      ["not valid YAML", "'train' appears twice", "line 2"],
    ),
    ("optimizer: {learning_rate: .inf}", ["learning_rate", "finite"]),
    ("rollout: {group_size: 3000000000}", ["rollout.group_size", "less than"]),
    ("rollout: {temperature: 1e-40}", ["rollout.temperature", "1e-6"]),
    (
      "{objective: {kind: grpo}, rollout: {group_size: 1}}",
      ["objective.kind=grpo", "group_size of at least 2", "another objective"],
    ),
    (
      "rollout: {group_size: 1}",  # all that must change is said at once
      [
        "objective.reward_weight, objective.failure_weighted",
        "reward_weight=0, failure_weighted=false",
      ],
    ),
    (
      "{objective: {kind: grpo, kl_weight: 0.1}, teacher: {parameters: ema}}",
      ["objective.kl_weight=0.1", "teacher.parameters=ema", "frozen"],
    ),
    (
      "{objective: {kind: grpo}, teacher: {parameters: ema, guard: {}}}",
      ["teacher.guard", "objective.kind=grpo has no teacher"],
    ),
    (
      "teacher: {parameters: frozen, guard: {}}",
      ["teacher", "parameters=frozen", "guard=null"],
    ),
    (
      "teacher: {guard: {marign: 0.1}}",
      ["teacher.guard.marign", "mean margin?"],
    ),
    (
      "{objective: {kind: sdpo}, teacher: {access: samples}}",
      ["objective.kind=sdpo", "teacher.access=samples"],
    ),
    (
      "{objective: {kind: opsd}, teacher: {access: top_k, top_k: 1}}",
      ["teacher.top_k=1", "objective.tail=true", "nothing could be learned"],
    ),
    (
      "{objective: {kind: minillm}, teacher: {access: top_k,"
      " server: {url: 'http://h/v1', model: m, protocol: next_token}}}",
      ["kind=minillm", "protocol to prompt_logprobs or echo"],
    ),
    (
      "teacher: {access: samples}",
      [
        "objective.local_cost=reverse_kl, objective.cost=kl",
        "local_cost=forward_cross_entropy, objective.cost=cross_entropy",
        "access=top_k",
      ],
    ),
    (
      "{objective: {top_k: 5, local_cost: forward_cross_entropy},"
      " teacher: {access: top_k}}",
      ["objective.top_k=5", "teacher.top_k"],
    ),
    (
      "{objective: {temperature: 0.7, local_cost: forward_cross_entropy},"
      " teacher: {access: top_k}}",
      ["objective.temperature=0.7", "tail=false", "access=probabilities"],
    ),
    (
      "optimizer: {mini_batch_size: 12}",
      ["optimizer.mini_batch_size=12", "128 sequences", "group_size=8"],
    ),
    (
      "optimizer: {mini_batch_size: 32, micro_batch_size: 24}",
      ["micro_batch_size=24", "optimizer.mini_batch_size=32"],
    ),
    ("objective: {kind: sdpo, alpha: 1.5}", ["objective.alpha", "got 1.5"]),
    (
      "teacher: {solution: none, feedback: never}",
      [
        "teacher.solution=none",
        "teacher.feedback=never",
        "nothing could be learned",
      ],
    ),
    (
      "{objective: {kind: sdpo}, teacher: {feedback: never},"
      " rollout: {group_size: 1}}",
      ["teacher.solution=sibling", "rollout.group_size=1"],
    ),
  ],
)
def test_wrong_setting_is_named(tmp_path, text, expected):
  message = refusal(tmp_path, text)
  for part in (str(tmp_path / "trial.yaml"), *expected):
    assert part in message
  assert "pydantic" not in message


SELF = "environment: {kind: self_evaluation, "


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    (
      SELF + "of: {kind: math, symbolc: false}}",
      ["environment.of.symbolc: unknown key; did you mean symbolic?"],
    ),
    (
      SELF + "of: {kind: math, num_steps: [1, 2]}}",
      ["environment.of.num_steps: a setting of kind=calculator"],
    ),
    (SELF + "of: {kind: self_evaluation}}", ["environment.of", "'math'"]),
    (SELF + "critic: {}}", ["environment.critic: unknown key", "critique?"]),
    (
      SELF + "of: {kind: math}}",
      ["data.train=generated, but environment.of.kind=math makes no problems"],
    ),
    (
      SELF + "of: {kind: calculator}}\nobjective: {kind: grpo}",
      ["critiques, but no teacher reads them with objective.kind=grpo"],
    ),
    (
      SELF + "of: {kind: calculator}}\nteacher: {feedback: never}",
      ["teacher.feedback=never; set environment to what environment.of is"],
    ),
    (
      SELF
      + "of: null}\ndata: {train: a.jsonl, evaluation: b.jsonl}\n"
      + "teacher: {parameters: ema, guard: {action: freeze}}",
      ["teacher.guard judges by rewards", "set environment.of"],
    ),
    ("environment: {kind: reasoning_gym}", ["environment.task"]),
    (
      "environment: {kind: maths}",
      [
        "environment.kind: no kind 'maths'; did you mean math?",
        "your own as module:function",
      ],
    ),
    ("tools: {kind: pyton}", ["tools.kind: no kind 'pyton'", "mean python?"]),
    ("objective: {kind: reward}", ["objective.kind: no kind", "'distil', "]),
  ],
)
def test_environments_that_do_not_suit_are_named(tmp_path, text, expected):
  message = refusal(tmp_path, text)
  for piece in expected:
    assert piece in message


def test_an_environment_inside_another_may_be_ones_own(tmp_path):
  text = SELF + "of: {kind: 'my.module:make', slack: 1}}"
  environment = load(tmp_path, text).environment
  assert environment.of.function == "my.module:make"
  assert environment.of.settings == {"slack": 1}


@pytest.mark.parametrize(
  ("override", "expected"),
  [
    ("train.num_steps", "not of the form key=value"),
    ("=3", "not of the form key=value"),
    ("name.first=3", "name is not a section"),
    ("train.num_steps=[", "train.num_steps=["),
    ("data.train=[a", "is not valid YAML; put a text in quotes"),
  ],
)
def test_wrong_override_is_named(tmp_path, override, expected):
  message = refusal(tmp_path, "name: trial", override)
  assert repr(override) in message
  assert expected in message


@pytest.mark.parametrize(
  "template",
  ["{{ problem }} {{ solution }}", "Solve: {{ problem }}", "{% if 1 %}"],
)
def test_a_template_is_a_file(tmp_path, template):
  said = "teacher.template: a template of your own is a file: write it into"
  for text, overrides in (
    ("name: trial", [f"teacher.template={template}"]),
    (f"teacher: {{template: '{template}'}}", []),
  ):
    assert said in refusal(tmp_path, text, *overrides)


@pytest.mark.parametrize(
  "text",
  [
    "{objective: {kind: grpo}, teacher: {solution: none, feedback: never}}",
    "{objective: {baseline: batch_mean, reward_weight: 0,"
    " failure_weighted: false}, rollout: {group_size: 1},"
    " teacher: {solution: reference}}",
    "{objective: {kind: grpo, kl_weight: 0.1}}",
    "{objective: {cost: kl, local_cost: forward_cross_entropy},"
    " teacher: {access: top_k}}",
    "teacher: {access: top_k}",
    "{objective: {kind: sdpo}, teacher: {access: top_k}}",
    "{objective: {kind: opsd, temperature: 1.1}, teacher: {access: top_k}}",
    "{objective: {kind: minillm}, teacher: {access: top_k}}",
    "optimizer: {mini_batch_size: 32, micro_batch_size: 4}",
    "teacher: {parameters: ema, guard: {action: freeze}}",
  ],
)
def test_setting_that_is_unusual_is_right_all_the_same(tmp_path, text):
  load(tmp_path, text)


def test_every_choice_of_objective_and_teacher_is_described():
  members = (
    configs.DistilConfig,
    configs.SDPOConfig,
    configs.OPSDConfig,
    configs.MiniLLMConfig,
    configs.GRPOConfig,
    configs.SFTConfig,
    configs.TeacherConfig,
    configs.GuardConfig,
    configs.AdamWConfig,
    configs.AdafactorConfig,
    configs.LionConfig,
    configs.MuonConfig,
    configs.ParameterGroupConfig,
  )
  for member in members:
    for name, field in member.model_fields.items():
      assert field.description, f"{member.__name__}.{name}"


def test_missing_file_is_named(tmp_path):
  with pytest.raises(configs.ConfigError, match=r"no config file at .*absent"):
    configs.load(tmp_path / "absent.yaml")


def test_config_is_frozen(tmp_path):
  config = load(tmp_path)
  with pytest.raises(ValueError, match="frozen"):
    config.train.num_steps = 3


def test_file_that_is_no_text_is_named(tmp_path):
  path = tmp_path / "model.yaml"
  path.write_bytes(b"\x80\xff")
  with pytest.raises(configs.ConfigError, match=r"model\.yaml is not valid"):
    configs.load(path)


def test_anchors_and_merges_are_yaml_too(tmp_path):
  text = "train: &t {seed: 3}\nname: x\ndata: {<<: *t, num_train: 8}"
  config = load(tmp_path, text)
  assert (config.train.seed, config.data.seed) == (3, 3)
  assert config.data.num_train == 8


def test_a_judge_has_time_for_all_tests_of_a_program(tmp_path):
  text = (
    "environment: {kind: code}\ndata: {train: a.json, evaluation: b.json}\n"
  )
  assert load(tmp_path, text).environment.total_seconds == 40
  said = refusal(tmp_path, text, "environment.total_seconds=50")
  assert "judging.seconds=60 is less than the 64 s" in said
  load(tmp_path, text, "environment.total_seconds=50", "judging.seconds=70")


def test_a_remote_sandbox_has_a_url(tmp_path):
  assert "a remote sandbox has a url" in refusal(
    tmp_path, "", "sandbox.kind=remote"
  )
  assert "and no other has" in refusal(tmp_path, "", "sandbox.url=http://a:1")


def test_whole_numbers_are_decimal(tmp_path):
  path = tmp_path / "run.yaml"
  path.write_text("train: {num_steps: 010, seed: +7}\n")
  found = configs.load(path, ["rollout.group_size=012"])
  assert (found.train.num_steps, found.train.seed) == (10, 7)
  assert found.rollout.group_size == 12
  path.write_text("train: {num_steps: 1:30}\n")
  with pytest.raises(configs.ConfigError, match=r"train\.num_steps"):
    configs.load(path)


def test_true_is_no_count():
  with pytest.raises(configs.ConfigError, match="whole number, got True"):
    configs.parse({"train": {"num_steps": True}})


def test_anchors_stand_under_keys_of_their_own(tmp_path):
  path = tmp_path / "run.yaml"
  path.write_text(
    "x-sampling: &sampling {temperature: 0.5}\n"
    "rollout: *sampling\nevaluation: *sampling\n"
  )
  found = configs.load(path)
  assert found.rollout.temperature == found.evaluation.temperature == 0.5


def test_paths_may_begin_at_home(monkeypatch):
  monkeypatch.setenv("HOME", "/home/someone")
  found = configs.parse(
    {
      "train": {"run_directory": "$HOME/run"},
      "model": {"directory": "~/model"},
      "data": {"train": ["~/a.jsonl", "${HOME}/b.jsonl"]},
    }
  )
  assert found.run_directory == pathlib.Path("/home/someone/run")
  assert found.model.directory == "/home/someone/model"
  assert found.data.train == ("/home/someone/a.jsonl", "/home/someone/b.jsonl")
