"""Experiments over seeds: what is run, in which order, and what is printed."""

import ast
import functools
import importlib
import json
import operator
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from PIL import Image
from scipy import stats

from unifluid_jax import experiments, studies, systems
from unifluid_jax.core import checkpoint, checkpoint_files, config_files
from unifluid_jax.evals.bench import Shown
from unifluid_jax.evals.published import (
  scaling_tables,
  sibling_tables,
  study_results,
  vargpt_tables,
)
from unifluid_jax.evals.published.paper_tables import Arm
from unifluid_jax.evals.published.scaling_tables import Point
from unifluid_jax.evals.published.sibling_tables import STUDIES
from unifluid_jax.evals.report import samples

SMALL = STUDIES["liquid1"]._replace(arms=STUDIES["liquid1"].arms[:2])


class Machine:
  """Trains and scores in no time: writes what the commands would."""

  def __init__(self, value=lambda metric, flags: 1.0):
    self.commands, self.value, self.fail = [], value, False

  def __call__(self, command):
    module, *rest = command
    given = dict(f.removeprefix("--").split("=", 1) for f in rest)
    self.commands.append((module, given))
    if self.fail:
      raise ValueError("interrupted")
    folder = given.get("workdir")
    if "config.steps" not in given or module == "encode":
      return  # an image tokenizer, and its cache
    if module == "main":
      every, steps = (int(given[f"config.{k}"])
                      for k in ("checkpoint.every", "steps"))  # fmt: skip
      for step in {*range(every, steps + 1, every), steps}:
        write(folder, f"checkpoints/{step}/_CHECKPOINT_METADATA", "")
      return
    settings = {"cfg": 2.0} | {
      key.rpartition(".")[2]: value if value.isalpha() else float(value)
      for key, value in given.items()
      if "config.sampling." in key and value != "0"  # a default is left out
    }  # fmt: skip
    metrics = re.findall(r"'(\w+)'", given["config.eval.metrics"])
    rows = [
      {"step": int(given["step"]), "metric": metric, "settings": settings,
       "value": self.value(metric, given)}
      for study in STUDIES.values() for metric in study.columns.values()
      if metric.split("/")[0].removesuffix("_held_out") in metrics
    ]  # fmt: skip
    write(folder, "metrics_eval.jsonl", "".join(
      json.dumps(row) + "\n" for row in rows), mode="a")  # fmt: skip
    if "geneval" in metrics:
      step = int(given["step"])
      image = np.full((2, 2, 3), step, np.uint8)
      samples.write(folder, step, [Shown("generated", image, "a cat", seed=0)])

  def did(self):
    return [
      (m, g.get("workdir", "").rpartition("/")[2]) for m, g in self.commands
    ]


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
  """The machine's checkpoints are empty: no read waits for them to vanish."""
  monkeypatch.setattr(checkpoint_files, "_VANISHING_SECONDS", 0.0)


def write(folder, name, content, mode="w"):
  path = Path(folder) / name
  path.parent.mkdir(parents=True, exist_ok=True)
  with path.open(mode) as file:
    file.write(content)


def carry_out(study, tmp_path, machine, seeds=2, budget=40):
  return studies.carry_out(
    "name", study, seeds, str(tmp_path), budget, "", machine, lambda line: None
  )


def test_stages_follow_one_another_seed_by_seed(tmp_path):
  machine = Machine()
  carry_out(SMALL, tmp_path, machine)
  before, after = (a.name for a in SMALL.arms)
  assert machine.did() == [
    (module, f"{arm}_seed{seed}")
    for seed in range(2)
    for module, arm in (("main", before), ("main", after), ("evaluate", after))
  ]
  first, second, scored = (given for _, given in machine.commands[:3])
  assert first["config"] == "configs/liquid_shapes.py"
  assert (first["config.steps"], second["config.steps"]) == ("40", "10")
  assert first["config.seed"] == "0" and "config.init.all" not in first
  own = f"{tmp_path}/{before}_seed0"
  assert first["workdir"] == own and second["config.init.all"] == own
  assert scored["step"] == "10"
  assert scored["config.init.all"] == own
  third = machine.commands[4][1]
  assert third["config.seed"] == "1"
  assert third["config.init.all"] == f"{tmp_path}/{before}_seed1"


def test_the_same_command_goes_on_where_it_was_interrupted(tmp_path):
  machine = Machine()
  machine.fail = True
  with pytest.raises(ValueError, match="interrupted"):
    carry_out(SMALL, tmp_path, machine, 1)
  machine.fail, machine.commands = False, []
  whole = carry_out(SMALL, tmp_path, machine, 1)
  assert len(machine.commands) == 3
  assert carry_out(SMALL, tmp_path, machine, 1) == whole
  assert len(machine.commands) == 3
  # A metric that failed is scored again, the run not trained again.
  results = tmp_path / f"{SMALL.arms[1].name}_seed0/metrics_eval.jsonl"
  kept = [r for r in results.read_text().splitlines() if "fid/gen" not in r]
  results.write_text("\n".join(kept) + "\n")
  carry_out(SMALL, tmp_path, machine, 1)
  assert machine.did()[3:] == [("evaluate", f"{SMALL.arms[1].name}_seed0")]
  # Of what is scored the checkpoints may be deleted.
  shutil.rmtree(results.parent / "checkpoints")
  carry_out(SMALL, tmp_path, machine, 1)
  assert len(machine.commands) == 4
  # Another seed is added to those that are there.
  carry_out(SMALL, tmp_path, machine, 2)
  assert {name[-1] for _, name in machine.did()[4:]} == {"1"}


def test_guidance_is_varied_on_one_trained_run(tmp_path):
  def value(metric, given):
    return float(given["config.sampling.cfg"]) / 100

  machine, study = Machine(value), STUDIES["liquid10"]
  text = carry_out(study, tmp_path, machine, 1)
  assert [m for m, _ in machine.did()] == ["main"] + ["evaluate"] * 9
  assert len({name for _, name in machine.did()}) == 1
  rows = re.findall(r"\| cfg ([\d.]+) \| ([\d.]+) \[–\]", text)
  assert [float(v) for _, v in rows] == [float(g) / 100 for g, _ in rows]
  # The report shows the last, and the plain run's scores are of it alone.
  tree = config_files.load(study.config)
  assert [float(g) for g, _ in rows][-1] == tree.sampling.cfg
  plain = STUDIES["liquid6"].arms[0]
  found = study_results.scores(
    f"{tmp_path}/{plain.name}_seed0", STUDIES["liquid6"], plain
  )
  assert found[40]["GenEval (GenAI-Bench basic)"] == tree.sampling.cfg / 100
  assert {1.0, 15.0} < {float(g) for g, _ in rows}


def test_a_run_is_scored_when_its_held_out_columns_are_too():
  study = STUDIES["emoji_heads"]
  assert "held out, top 1" in study.columns
  for arm in study.arms:
    assert study_results.wanted(study, arm) == set(study.columns)


@pytest.mark.parametrize("name", ["heads", "emoji_heads", "passes"])
def test_every_way_to_draw_is_scored_once_of_one_run(name, tmp_path):
  """Two ways never share a score, though they share a workdir."""
  ways, study = [], STUDIES[name]

  def value(metric, given):
    way = {k: v for k, v in given.items() if k != "config.eval.metrics"}
    ways.append(way) if way not in ways else None
    return ways.index(way) / 10

  machine = Machine(value)
  text = carry_out(study, tmp_path, machine, 1)
  runs = {arm.name for arm in study.arms}
  assert [m for m, _ in machine.did()].count("main") == len(runs)
  assert len(ways) == len(study.arms)
  for i, arm in enumerate(study.arms):
    cell = f"{i / 10:.3g} [–]"
    assert f"| {arm.title} | {cell} | {cell} | {cell} | {cell} |" in text


def test_means_over_seeds_stand_beside_the_papers_numbers(tmp_path):
  values = {"0": 0.5, "1": 0.6, "2": 0.76}

  def value(metric, given):
    return values[given["config.seed"]]

  text = carry_out(SMALL, tmp_path, Machine(value), 3)
  half = stats.sem(list(values.values())) * stats.t.ppf(0.975, 2)
  (line,) = [x for x in text.splitlines() if x.startswith("| Base mixture")]
  cell = f"0.62 ± {half:.3g}"
  assert line == (
    f"| Base mixture | {cell} [19.9] | {cell} [0.63] | {cell} [0.58] "
    f"| {cell} [60.7] |"
  )
  assert "3 seeds" in text and (tmp_path / "name.md").read_text() == text
  assert study_results.mean([0.5]) == (0.5, None)
  assert study_results.cell([]) == "–"
  assert study_results.cell([0.5], 3) == "0.5 (1 of 3 seeds)"


def test_all_checkpoints_of_the_scaling_runs_are_scored(tmp_path, monkeypatch):
  study = STUDIES["liquid_scaling"]
  some = study._replace(
    arms=tuple(sibling_tables.scaling_arm(48, d) for d in ("text", "mix"))
  )
  monkeypatch.setattr(studies, "scaling_points", lambda *_: [])
  machine = Machine()
  carry_out(some, tmp_path, machine, 1, budget=42)
  steps = [g["step"] for m, g in machine.commands if m == "evaluate"]
  assert steps == ["11", "22", "33", "42"] * 2
  trained = next(g for m, g in machine.commands if m == "main")
  assert trained["config.checkpoint.keep"] == "4"
  # No loss of images is waited for where none are trained on.
  assert study_results.wanted(some, some.arms[0]) == {"text_choice"}
  assert study_results.wanted(some, some.arms[1]) == set(study.columns)
  text = carry_out(some, tmp_path, machine, 1, budget=42)
  assert len(machine.commands) == 10
  # Sizes that have not been run stay white; the text names the prompts.
  assert "Figure 4: name.png" in text and "row by row: a cat.\n" in text
  with Image.open(tmp_path / "name.png") as picture:
    pixels = np.asarray(picture)
  side = 64
  first = pixels[16 + side // 2, 16 + side // 2 :: side + 16]
  assert [x[0] for x in first[:4]] == steps_of(some)
  height = (len(pixels) - 16) // 4
  assert (pixels[16 + height : 16 + height + side] == 255).all()


def steps_of(study):
  return studies.saved_steps(study, study.arms[-1], 42)


def test_a_budget_is_cut_into_its_checkpoints():
  study, arm = STUDIES["liquid_scaling"], sibling_tables.scaling_arm(48, "mix")
  for budget, saved in ((42, [11, 22, 33, 42]), (8, [2, 4, 6, 8]), (1, [1])):
    assert studies.saved_steps(study, arm, budget) == saved


def test_points_have_the_flops_of_their_steps(tmp_path, monkeypatch):
  class System:
    def cost(self):
      return type("Cost", (), {"flops": 100.0})

  monkeypatch.setattr(systems, "resolve", lambda tree: tree)
  monkeypatch.setattr(systems, "build", lambda config: System())
  monkeypatch.setattr(
    systems, "init_shapes", lambda s: {"a": np.zeros((3, 4)), "b": np.zeros(5)}
  )
  monkeypatch.setattr(checkpoint, "read_meta", lambda *_: {"config": {}})
  arm = sibling_tables.scaling_arm(96, "t2i")
  own = studies.workdir(str(tmp_path), arm.name, 0)
  for step in (5, 10):
    write(own, f"checkpoints/{step}/_CHECKPOINT_METADATA", "")
    row = {"step": step, "metric": "validation_loss/t2i/loss_image",
           "value": 1 / step}  # fmt: skip
    write(own, "metrics_eval.jsonl", json.dumps(row) + "\n", "a")
  found = studies.scaling_points(STUDIES["liquid_scaling"], str(tmp_path), 1)
  assert found == [
    Point(96, "t2i", 0, step, step * 100.0, 17, {"image_loss": 1 / step})
    for step in (5, 10)
  ]


def points():
  """Losses that follow L = 40 C^-.2 + 1, worse by .1 in the mixture."""
  out = []
  for i, width in enumerate((48, 96, 192, 384)):
    for data, extra in (("t2i", 0.0), ("mix", 0.1), ("text", 0.0)):
      for step in (10, 20):
        flops = 1e9 * 4**i * step
        scores = {"text_choice": 0.9 - 0.4 * extra * (4 - i)}
        if data != "text":
          scores = {"image_loss": 40 * flops**-0.2 + 1 + extra,
                    "geneval": 0.5 + 0.1 * i - extra * (4 - i)}  # fmt: skip
          scores["geneval"] -= 0.3 * (step == 10)
          scores |= {"text_choice": 0.8} if data == "mix" else {}
        out.append(Point(width, data, 0, step, flops, 10, scores))
  return out


def test_scaling_fits_and_gaps():
  given = points()
  fits = scaling_tables.fits(given)
  assert "| t2i | 40.0 [40.0, 40.0] | 0.2 [0.2, 0.2] | 1 [1, 1] | 1 |" in fits
  assert "| mix | 40.0 [40.0, 40.0] | 0.2 [0.2, 0.2] | 1.1 [1.1, 1.1]" in fits
  assert "| text " not in fits
  assert scaling_tables.fits(given[:6]).startswith("No fit: it needs four")
  gaps = scaling_tables.gaps(given[::-1]).splitlines()
  assert gaps[2].startswith("| 48 | 0.9 → 0.8 | -0.1 | 0.5 → 0.1 | -0.4 | ")
  assert gaps[5].startswith("| 384 | 0.9 → 0.8 | -0.1 | 0.8 → 0.7 | -0.1 | ")
  assert gaps[2].endswith(" | 0.1 |")


def test_curves_are_a_line_per_checkpoint():
  lines = scaling_tables.as_csv(points()).splitlines()
  assert lines[0] == (
    "width,data,seed,step,flops,parameters,"
    "image_loss,image_top1,geneval,text_choice"
  )
  assert len(lines) == 1 + len(points())
  assert lines[5] == "48,text,0,10,1e+10,10,,,,0.9"


def sources(arm):
  """Names of the arms that an arm gets weights from."""
  parts = {source.partition("#")[0] for source in arm.starts.values()}
  return parts | ({arm.follows} if arm.follows else set())


@pytest.mark.parametrize("name", sorted(STUDIES))
def test_arms_of_one_name_are_one_run(name):
  """Or their scores would be those of whichever was trained first."""
  found: dict[str, Arm] = {}
  for study in STUDIES.values():
    for arm in study.arms:
      plain = arm._replace(title="", metrics=(), published={}, where={})
      if arm.where:  # of sampling, which changes no training
        kept = [f for f in arm.flags if "config.sampling." not in f]
        plain = plain._replace(flags=tuple(kept))
      assert found.setdefault(arm.name, plain) == plain, arm.name
  names = [a.name for a in STUDIES[name].arms]
  for i, arm in enumerate(STUDIES[name].arms):
    assert sources(arm) <= set(names[:i])
    assert set(arm.published) <= set(STUDIES[name].columns)
    assert arm.metrics or any(
      arm.name in sources(a) for a in STUDIES[name].arms
    )


def test_the_control_has_as_many_rows_as_the_arms_it_stands_beside():
  rows = {}
  for arm in STUDIES["liquid1"].arms:
    if not arm.follows:
      found = [int(f.partition("=")[2]) for f in arm.flags if "batch" in f]
      rows[arm.name.removeprefix("liquid1_")] = sum(found)
  assert rows.pop("base") == 72
  assert set(rows.values()) == {96} and len(rows) == 3
  tuned = {a.flags for a in STUDIES["liquid1"].arms if a.follows}
  assert len(tuned) == 1


def run_command(monkeypatch, *script):
  said, machine = [], Machine()
  monkeypatch.setattr(experiments, "call", machine)
  monkeypatch.setattr(experiments.cli, "speaker", lambda: said.append)
  with flagsaver.as_parsed():
    args = ["experiments", *script]
    monkeypatch.setattr(sys, "argv", args)
    experiments.main(list(flags.FLAGS(args)))
  return machine, said


def test_the_command(tmp_path, monkeypatch):
  machine, said = run_command(
    monkeypatch, "liquid6", f"--root={tmp_path}", "--budget=8", "--seeds=2",
    "--config=configs/debug.py",
  )  # fmt: skip
  own = ["main", "evaluate"]
  aligned = ["main", "encode", *own]
  assert [m for m, _ in machine.did()] == [*own, *own, *aligned] * 2
  tokenizer, encoded, trained = (g for _, g in machine.commands[4:7])
  assert tokenizer == {
    "config": "configs/tokenizer.py:shapes_aligned",
    "workdir": "runs/shapes/vq_aligned",
  }
  moved = {k: v for k, v in trained.items() if k != "workdir"}
  assert encoded == moved
  assert moved["config.model.vq_path"] == tokenizer["workdir"]
  others = [g for _, g in machine.commands if g != tokenizer]
  assert all(g["config"] == "configs/debug.py" for g in others)
  assert {g["config.steps"] for g in others} == {"8", "16"}
  assert said[0] == "liquid6: run 1 of 6: Plain, seed 0"
  assert said[-1].endswith(f"{tmp_path}/steps_8/liquid6.md")
  assert (tmp_path / "steps_8/liquid6.md").exists()


@pytest.mark.parametrize(
  "script, message",
  [
    (["liquid6", "--seeds=0"], "--seeds=0: at least 1"),
    (["liquid6", "--world=coco"], "liquid6 has a world of its own"),
    (["table1", "--seeds=2"], "table1 is of one seed"),
    (["liquid6", "--budget=0"], "at least 1 step"),
    (["liquid7"], "choose one of table1, .*, liquid1, .*unitoken6"),
  ],
)
def test_unusable_commands(monkeypatch, script, message):
  with pytest.raises(ValueError, match=message):
    run_command(monkeypatch, *script, "--config=configs/debug.py")


@pytest.mark.parametrize("name", sorted(STUDIES))
def test_every_arm_is_a_configuration(name):
  """Of the file that it varies; its mixture is the one it is named for."""
  study, learned = STUDIES[name], {}
  for arm in study.arms:
    head, *rest = studies.arguments(study, arm, 0, "/runs", 600)
    file, _, argument = head.removeprefix("--config=").partition(".py")
    made = importlib.import_module(file.replace("/", "."))
    tree = made.get_config(argument.removeprefix(":"))
    for flag in rest:
      key, _, value = flag.removeprefix("--config.").partition("=")
      assert re.fullmatch(r"[\w.]+", key)  # as a command line must have it
      old = functools.reduce(operator.getitem, key.split("."), tree)
      if not isinstance(old, str):
        value = ast.literal_eval(value)
      if isinstance(old, float):
        value = float(value)
      tree.update_from_flattened_dict({key: value})
    config = systems.resolve(tree)
    assert config.steps == studies.length(arm, 600)
    if arm.codec:
      file, path = arm.codec
      own = systems.resolve(config_files.load(file))
      assert config.model.vq_path == path and config.model.vq == own.model.vq
      assert config.data.train["shapes"].moments != "shapes_codes"
    trained = {task for task, rows in config.batch.items() if rows}
    learned[arm.name] = trained.union(*(learned[s] for s in sources(arm)))
    for metric, task in (("geneval", "t2i"), ("vqa", "i2t"),
                         ("text_choice", "text")):  # fmt: skip
      if metric in config.eval.metrics:
        assert task in learned[arm.name], arm.name


def test_a_start_from_several_arms(tmp_path):
  """VARGPT's first stage; its sources stand where the arms before it do."""
  machine, study = Machine(), STUDIES["vargpt4"]
  some = study._replace(arms=study.arms[:4])
  carry_out(some, tmp_path, machine, 1, budget=90)
  names = ("vargpt_var", "vargpt_stage0", "vargpt_stage1", "vargpt_stage2")
  assert machine.did() == [
    *(("main", f"{name}_seed0") for name in names),
    ("evaluate", "vargpt_stage2_seed0"),
  ]
  runs = [given for _, given in machine.commands[:4]]
  config = "configs/vargpt_shapes.py"
  assert [g["config"] for g in runs] == [
    "configs/var.py:shapes",
    *(f"{config}:stage{k}" for k in range(3)),
  ]
  at = {name: f"{tmp_path}/{name}_seed0" for name in names}
  given = [
    {k: v for k, v in g.items() if k.startswith("config.init")} for g in runs
  ]
  assert given == [
    {}, {},
    {"config.init.all": at["vargpt_stage0"],
     "config.init.visual_decoder": f"{at['vargpt_var']}#decoder"},
    {"config.init.all": at["vargpt_stage1"]},
  ]  # fmt: skip
  # Another file for the arms is not one for those that name theirs.
  given = studies.arguments(some, some.arms[0], 0, "/runs", 90, "mine.py")
  assert given[0] == "--config=configs/var.py:shapes"
  given = studies.arguments(some, some.arms[1], 0, "/runs", 90, "mine.py")
  assert given[0] == "--config=mine.py:stage0"
  # One with an argument of its own keeps it.
  given = studies.arguments(some, some.arms[1], 0, "/runs", 90, "mine.py:x")
  assert given[0] == "--config=mine.py:x,stage0"


def test_vargpts_runs_are_as_long_as_the_demos():
  """At a budget of the configuration's own steps, those of stage 3."""
  files = {run: f"vargpt_shapes:{run}" for run in vargpt_tables.STEPS}
  steps = {
    run: config_files.load(file).steps
    for run, file in (files | {"classes": "var:shapes"}).items()
  }
  assert steps == vargpt_tables.STEPS
  for study in vargpt_tables.VARGPT_STUDIES.values():
    own = config_files.load(study.config).steps
    for arm in study.arms:
      run = "classes" if arm.config else arm.argument.partition(",")[0]
      assert studies.length(arm, own) == steps[run], arm.name


def test_without_stage_1_a_run_starts_as_stage_1_does():
  def start(name):
    (arm,) = (a for a in STUDIES["vargpt4"].arms if a.name == name)
    flags = studies.arguments(STUDIES["vargpt4"], arm, 0, "/runs", 90)
    given = dict(f.removeprefix("--").split("=", 1) for f in flags)
    tree = config_files.load(given["config"])
    found = {k: v for k, v in tree.init.items() if v}
    key = "config.init."
    return found | {
      k.removeprefix(key): v for k, v in given.items() if k.startswith(key)
    }

  first = start("vargpt_stage1")
  assert first["visual_decoder"].endswith("vargpt_var_seed0#decoder")
  assert first["visual_decoder/classes"] == "new" and len(first) == 3
  assert start("vargpt_stage2_alone") == start("vargpt_stage3_alone") == first
  then = start("vargpt_without_stage1")
  assert then == {"all": "/runs/vargpt_stage2_alone_seed0"}
