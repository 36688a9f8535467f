"""The checks pass a right run, and each fails where its fault is put in."""

import contextlib
import dataclasses
import functools
import io
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distil_jax import config as configs
from distil_jax.analysis.teacher_check import (
  accuracy,
  checks,
  evidence,
  gather,
  movement,
  page,
  prompt_checks,
  report,
  samples,
)
from distil_jax.cli import main
from distil_jax.models import decoder, sharding
from distil_jax.objectives import scoring, teachers
from distil_jax.training import train_step
from distil_jax.training.setup import meshes
from tests.paths import ROOT

RUN = ROOT / "configs/calculator/quickstart.yaml"
SMALL = "rollout.group_size=2"


@dataclasses.dataclass(frozen=True)
class Checked:
  """A run of two problems with two samples each, and all that was found."""

  run: object
  gathered: object
  evidence: object
  batch: object
  status: int
  text: str
  html: str
  accuracy: object


@pytest.fixture(scope="module")
def checked(tmp_path_factory):
  """The command itself, in this process, on a mesh of one device."""
  path = tmp_path_factory.mktemp("page") / "teacher.html"
  collect, seen, text = evidence.collect, [], io.StringIO()

  def remember(*arguments):
    seen.extend((*arguments, collect(*arguments)))
    return seen[-1]

  compared, compare = [], accuracy.check

  def remember_accuracy(answers):
    compared.append(compare(answers))
    return compared[-1]

  # Programs for one device compile sooner than those for eight.
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  with pytest.MonkeyPatch.context() as patch, jax.set_mesh(mesh):
    patch.setattr(evidence, "collect", remember)
    patch.setattr(accuracy, "check", remember_accuracy)
    patch.setattr(meshes, "build_mesh", lambda config, devices=None: mesh)
    with contextlib.redirect_stdout(text):
      status = main.main(
        [
          *("check-teacher", str(RUN), SMALL),
          *("--html", str(path), "--num-answers", "4"),
        ]
      )
    batch = evidence.put_batch(*seen[:2])
    html = path.read_text(encoding="utf-8")
    yield Checked(*seen, batch, status, text.getvalue(), html, *compared)


def failed(checked, **changed):
  """Names of the checks that fail if parts of the evidence are changed."""
  found = dataclasses.replace(checked.evidence, **changed)
  results = checks.all_checks(checked.gathered, found)
  return {check.name for check in checks.failures(results)}


def changed_gathered(checked, **changed):
  return dataclasses.replace(checked.gathered, **changed)


def with_settings(checked, **sections):
  """The run with other settings, on the same samples."""
  config = checked.run.trainer.config
  changed = {
    name: getattr(config, name).model_copy(update=settings)
    if isinstance(settings, dict)
    else settings
    for name, settings in sections.items()
  }
  config = config.model_copy(update=changed)
  fields = vars(checked.run.trainer) | {"config": config}
  run = dataclasses.replace(
    checked.run, trainer=types.SimpleNamespace(**fields)
  )
  return run, dataclasses.replace(checked.gathered, config=config)


def test_a_right_run_passes(checked):
  assert checked.status == 0
  results = checks.all_checks(checked.gathered, checked.evidence)
  assert [check.is_ok for check in results] == [True] * 8, results
  *lines, last = checked.text.splitlines()
  assert [line[:4] for line in lines[-8:]] == ["ok  "] * 8
  # Of so few answers nothing more can be said for certain.
  assert re.search(r"^\S+ +teacher's accuracy: [\d.]+% of \d+ held-out", last)


@pytest.mark.parametrize(
  "sections",
  [
    {"objective": configs.SDPOConfig(alpha=0.3, top_k=5)},
    {
      "objective": configs.OPSDConfig(
        beta=0.4, token_clip=0.05, temperature=1.1
      ),
      "teacher": {"parameters": "trust_region"},
    },
    {"teacher": {"access": "samples", "num_samples": 3}},
    {
      "teacher": {"access": "top_k", "top_k": 6},
      "objective": {
        "cost": "kl",
        "local_cost": "reverse_kl",
        "temperature": 0.8,
        "tail": False,
        "differential": True,
      },
    },
    {
      "teacher": {"access": "top_k", "top_k": 3},
      "objective": configs.MiniLLMConfig(),
    },
  ],
  ids=("sdpo", "opsd", "samples", "lists", "lists of minillm"),
)
def test_other_objectives_and_teachers_pass(checked, sections):
  other, gathered = with_settings(checked, **sections)
  batch = evidence.put_batch(other, gathered)
  tokens = evidence.dense_tokens(evidence.networks(other), gathered, batch)
  # A step would compile for each; its cost is compared by the whole command.
  mean = float(tokens["carried"][gathered.teacher_mask].mean())
  found = dataclasses.replace(
    checked.evidence,
    signal=evidence.objective_signal(other, batch),
    tokens=tokens,
    metrics={**checked.evidence.metrics, "cost": mean},
  )
  assert checks.alignment(gathered, found).is_ok
  assert checks.direction(gathered, found).is_ok


def test_another_model_with_padding_passes(checked):
  """A teacher with weights of its own; some entries are no tokens."""
  student = checked.run.state.params
  params = jax.tree.map(lambda x: 1.05 * x, student)
  policy = checked.run.trainer.policy
  network = dataclasses.replace(policy.config, num_tokens=400)
  graphdef, _ = decoder.make(network)
  policy = dataclasses.replace(policy, config=network, graphdef=graphdef)
  model = types.SimpleNamespace(network=teachers.OtherNetwork(graphdef))
  fields = vars(checked.run.trainer) | {
    "teacher_model": model,
    "policy": policy,
  }
  run = dataclasses.replace(
    checked.run,
    trainer=types.SimpleNamespace(**fields),
    step_fn=functools.partial(print, teacher_params=params),
  )
  gathered = changed_gathered(checked, num_tokens=400)
  tokens = evidence.dense_tokens(
    evidence.networks(run), gathered, checked.batch
  )
  found = dataclasses.replace(
    checked.evidence,
    signal=evidence.objective_signal(run, checked.batch),
    tokens=tokens,
  )
  assert checks.alignment(gathered, found).is_ok
  mask = gathered.teacher_mask
  for name in ("costs", "carried"):
    np.testing.assert_allclose(
      found.signal[name][mask], tokens[name][mask], atol=1e-5
    )
  # The student's own network is another teacher.
  other = checked.evidence.tokens["teacher_log_probs"]
  assert np.abs(tokens["teacher_log_probs"] - other)[mask].max() > 1e-3


def test_several_teachers_pass(checked):
  """The first problem has another model, the second the student's network."""
  student = checked.run.state.params
  params = jax.tree.map(lambda x: 1.05 * x, student)
  graphdef = checked.run.trainer.policy.graphdef
  model = types.SimpleNamespace(network=(teachers.OtherNetwork(graphdef), None))
  fields = vars(checked.run.trainer) | {"teacher_model": model}
  run = dataclasses.replace(
    checked.run,
    trainer=types.SimpleNamespace(**fields),
    step_fn=functools.partial(print, teacher_params=(params, None)),
  )
  index = np.asarray([0, 0, 1, 1], np.int32)
  batch, host_batch = (
    dataclasses.replace(x, teacher_index=index)
    for x in (checked.batch, checked.gathered.batch)
  )
  gathered = changed_gathered(checked, batch=host_batch)
  tokens = evidence.dense_tokens(evidence.networks(run), gathered, batch)
  signal = evidence.objective_signal(run, batch)
  mask = gathered.teacher_mask
  for name in ("costs", "carried"):
    np.testing.assert_allclose(
      signal[name][mask], tokens[name][mask], atol=1e-5
    )
  own = checked.evidence.tokens["teacher_log_probs"]
  gaps = np.where(mask, np.abs(tokens["teacher_log_probs"] - own), 0)
  assert gaps[:2].max() > 1e-3
  assert gaps[2:].max() < 1e-5
  assert mask[:2].any()
  assert mask[2:].any()


def test_a_shift_by_one_fails(checked, monkeypatch):
  right = scoring.completion_hidden_states

  def shifted(params, prompt_ids, prompt_mask, ids, mask, **others):
    found = right(params, prompt_ids, prompt_mask, ids, mask, **others)
    return jnp.roll(found, 1, axis=1)

  monkeypatch.setattr(scoring, "completion_hidden_states", shifted)
  signal = evidence.objective_signal(checked.run, checked.batch)
  names = failed(checked, signal=signal)
  assert {"alignment", "sampler = scorer", "direction"} <= names


def test_another_cost_and_other_credit_fail(checked):
  other, _ = with_settings(
    checked, objective={"local_cost": "reverse_kl", "normalize": False}
  )
  signal = evidence.objective_signal(other, checked.batch)
  assert failed(checked, signal=signal) == {"direction", "credit"}


def test_leaked_padding_and_a_wrong_rate_fail(checked, monkeypatch):
  follow, read = train_step._follow, scoring.completion_hidden_states

  def attend_to_padding(params, prompt_ids, prompt_mask, *others, **more):
    ones = jnp.ones_like(prompt_mask)
    return read(params, prompt_ids, ones, *others, **more)

  monkeypatch.setattr(
    train_step, "_follow", lambda old, new, rate: follow(old, new, 2 * rate)
  )
  monkeypatch.setattr(scoring, "completion_hidden_states", attend_to_padding)
  run = dataclasses.replace(
    checked.run, step_fn=gather.compile_step(checked.run.trainer)
  )
  metrics, padding, teacher = evidence.try_step(
    run, checked.gathered, checked.batch
  )
  names = failed(checked, metrics=metrics, padding=padding, teacher=teacher)
  assert {"padding", "teacher's rate"} <= names
  assert not names & {"alignment", "tokenizer", "feedback"}


@pytest.mark.parametrize(
  ("rate", "went", "is_ok"),
  [
    (0.01, 0.01, True),
    (0.01, 0.02, False),
    (0.01, 0.0, False),
    (0.0, 0.0, True),
    (0.0, 0.01, False),
  ],
)
def test_the_rate_is_measured(checked, rate, went, is_ok):
  rng = np.random.default_rng(0)
  student = {"w": rng.normal(size=50).astype(np.float32)}
  before = movement.displaced({"w": jnp.asarray(student["w"])})
  after = {"w": before["w"] + went * (student["w"] - before["w"])}
  moved = movement.of_teacher(before, student, after, rate)
  assert checks.teacher_rate(moved, checked.gathered).is_ok is is_ok


def test_an_average_that_is_rounded_away_fails(checked):
  before = movement.displaced({"w": jnp.ones(4, jnp.bfloat16)})
  moved = movement.of_teacher(before, {"w": np.ones(4)}, before, 0.01)
  found = checks.teacher_rate(moved, checked.gathered)
  assert found.is_ok is False
  assert "optimizer.master_dtype" in found.cure


def test_a_sampler_that_scores_otherwise_fails(checked):
  batch = checked.gathered.batch
  batch = batch.replace(old_log_probs=batch.old_log_probs - 0.06)
  gathered = changed_gathered(checked, batch=batch)
  assert checks.sampler(gathered, checked.evidence).is_ok is False


def test_feedback_in_the_students_prompt_fails(checked):
  stats = checked.gathered.stats
  batch = checked.gathered.batch.replace(
    prompt_ids=stats.teacher_prompt_ids, prompt_mask=stats.teacher_prompt_mask
  )
  found = prompt_checks.feedback(changed_gathered(checked, batch=batch))
  assert found.is_ok is False
  assert "not the problem alone" in found.numbers


def test_a_teacher_without_the_feedback_fails(checked):
  gathered = checked.gathered
  stats = dataclasses.replace(
    gathered.stats,
    teacher_prompts=[
      gathered.tokenizer.decode(gathered.student_prompt(row))
      for row in range(4)
    ],
  )
  found = prompt_checks.feedback(changed_gathered(checked, stats=stats))
  assert found.is_ok is False
  assert "lacks" in found.numbers


def test_a_cut_is_said(checked):
  stats = dataclasses.replace(checked.gathered.stats, num_truncated=3)
  found = prompt_checks.feedback(changed_gathered(checked, stats=stats))
  assert found.is_ok
  assert "3 prompts were cut at teacher.max_prompt_length=120" in found.numbers


def test_other_ends_and_unknown_ids_fail(checked):
  gathered = checked.gathered
  other = dataclasses.replace(gathered.tokenizer, eos_ids=(5,))
  for changed in ({"teacher_tokenizer": other}, {"vocab_size": 100}):
    found = prompt_checks.tokenizer(changed_gathered(checked, **changed))
    assert found.is_ok is False
  assert "the vocabulary has 100" in found.numbers


def test_a_prompt_without_the_assistants_marker_fails(checked):
  batch = checked.gathered.batch
  mask = batch.prompt_mask.copy()
  mask[:, -1] = 0
  batch = batch.replace(prompt_mask=mask)
  found = prompt_checks.tokenizer(changed_gathered(checked, batch=batch))
  assert found.is_ok is False
  assert "marker" in found.numbers


def test_no_signal_fails_and_says_the_cure(checked):
  batch = checked.gathered.batch.replace(sample_mask=np.zeros(4, np.int32))
  gathered = changed_gathered(checked, batch=batch)
  results = checks.failures(checks.all_checks(gathered, None))
  assert "--num-problems" in results[-1].cure
  text = report.to_text(
    samples.all_samples(gathered, None, None), results, colours=False
  )
  assert "FAIL  signal" in text


def test_a_failure_is_the_exit_status(checked, monkeypatch, capsys):
  """All samples are wrong, and the teacher is told nothing of that."""
  assert not checked.gathered.experience.rewards.any()
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  monkeypatch.setattr(meshes, "build_mesh", lambda config, devices=None: mesh)
  settings = [SMALL, "teacher.feedback=never"]
  with jax.set_mesh(mesh):
    assert main.main(["check-teacher", str(RUN), *settings]) == 1
  assert "FAIL  signal: no token has a teacher" in capsys.readouterr().out


def test_text_and_page_show_every_token(checked):
  results = checks.all_checks(checked.gathered, checked.evidence)
  results.append(checked.accuracy)
  shown = samples.all_samples(
    checked.gathered, checked.evidence.tokens, checked.evidence.signal
  )
  plain = report.to_text(shown, results, colours=False)
  coloured = report.to_text(shown, results, colours=True)
  assert "\x1b" not in plain
  assert "\x1b[32m" in coloured
  assert checked.text == plain + "\n"
  html = page.to_page("Teacher of quickstart, step 0", shown, results)
  assert checked.html == html
  assert "<|im_end|>" not in html
  for sample in shown:
    assert sample.facts in plain
    assert sample.facts in html
  first = shown[0].tokens[0]
  assert f"{first.student:8.4f} {first.teacher:8.4f}" in plain
  num_tokens = sum(len(sample.tokens) for sample in shown)
  assert html.count("<tr><td>") == num_tokens
  for outside in ("http://", "https://", "src=", "url("):
    assert outside not in html


def test_colours_need_a_terminal_without_no_color():
  terminal = types.SimpleNamespace(isatty=lambda: True)
  file = types.SimpleNamespace(isatty=lambda: False)
  assert report.has_colours(terminal, {})
  assert not report.has_colours(terminal, {"NO_COLOR": "1"})
  assert not report.has_colours(file, {})


def test_text_of_a_model_cannot_command_a_terminal():
  assert samples.visible("a\x1b[2J\n") == "a�[2J⏎"


def test_an_objective_without_a_teacher_is_refused():
  with pytest.raises(configs.ConfigError, match=r"kind=grpo asks no teacher"):
    gather.check_has_teacher(configs.parse({"objective": {"kind": "grpo"}}))


def test_mini_batches_shrink_with_the_batch():
  config = configs.parse(
    {
      "rollout": {"num_problems": 16, "group_size": 8},
      "optimizer": {"mini_batch_size": 64, "micro_batch_size": 32},
    }
  )
  assert gather.fewer_problems(config, 3) == [
    "rollout.num_problems=3",
    "optimizer.mini_batch_size=8",
    "optimizer.micro_batch_size=8",
  ]
