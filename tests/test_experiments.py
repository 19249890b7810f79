import json
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags
from absl.testing import flagsaver
from etils import epath

from configs import shapes
from unifluid_jax import experiments, systems
from unifluid_jax.evals.published import paper_tables

REPO = Path(__file__).parent.parent
ORDER = {"random_until": 100, "raster_from": 250}
ARMS = {a.name: a for t in paper_tables.TABLES.values() for a in t.arms}


def resolved(arm, steps=600):
  """The configuration that a run's flags describe."""
  head, *rest = experiments.arguments(arm, "configs/shapes.py", steps, ORDER)
  assert head.startswith("--config=configs/shapes.py")
  tree = shapes.get_config(head.partition(".py")[2].removeprefix(":"))
  for flag in rest:
    key, _, value = flag.removeprefix("--config.").partition("=")
    old = tree
    for part in key.split(".")[:-1]:
      old = old[part]
    kind = type(old[key.split(".")[-1]])
    value = value if kind is str else json.loads(
      value.replace("(", "[").replace(",)", "]").replace(")", "]")
      .replace("'", '"')
    )  # fmt: skip
    tree.update_from_flattened_dict({key: kind(value)})
  return systems.resolve(tree)


def test_arguments_of_the_given_file_stay():
  given = [
    experiments.arguments(ARMS[name], "a.py:lambda=1", 9, ORDER)[0]
    for name in ("t2i_only", "unified")
  ]
  assert given == ["--config=a.py:lambda=1,t2i_only", "--config=a.py:lambda=1"]


@pytest.mark.parametrize("name", sorted(ARMS))
def test_every_arm_is_a_configuration(name):
  c = resolved(ARMS[name])
  assert c.steps == 600
  assert bool(c.batch["t2i"]) == ("geneval" in c.eval.metrics)
  assert bool(c.batch["i2t"]) == ("vqa" in c.eval.metrics)


def test_arms_differ_in_what_they_are_named_for():
  usual = resolved(ARMS["unified"])
  assert (usual.loss.random_until, usual.loss.raster_from) == (100, 250)
  assert resolved(ARMS["raster"]).loss.raster_from == 0
  assert resolved(ARMS["lambda_0.05"]).loss.text_weight == 0.05
  gemma1 = resolved(ARMS["gemma1"]).model.decoder
  assert usual.model.decoder.post_norms and not gemma1.post_norms
  assert usual.model.decoder.attn_softcap and not gemma1.attn_softcap
  assert gemma1.width == usual.model.decoder.width


def test_a_scored_run_is_not_run_again(tmp_path):
  called = []

  def call(command):
    called.append(command[0])
    if command[0] == "evaluate":
      assert "--step=7" in command
      rows = [
        {"step": 7, "metric": m, "value": 1.0}
        for c, m in paper_tables.COLUMNS.items()
        if c in ("FID", "GenEval")
      ]
      path = tmp_path / "t2i_only/metrics_eval.jsonl"
      path.parent.mkdir()
      path.write_text("\n".join(map(json.dumps, rows)))

  for _ in range(2):
    experiments.run(ARMS["t2i_only"], "c.py", str(tmp_path), 7, ORDER, call)
  assert called == ["main", "evaluate"]


def test_the_order_shrinks_with_the_budget(tmp_path, monkeypatch):
  seen = []
  monkeypatch.setattr(experiments, "run", lambda *args: seen.append(args))
  monkeypatch.setattr(paper_tables, "scores", lambda *_: {})
  full = shapes.get_config()
  script = (
    "experiments", "table1", f"--root={tmp_path}", f"--budget={full.steps // 4}"
  )  # fmt: skip
  (tmp_path / f"steps_{full.steps // 4}").mkdir()
  with flagsaver.as_parsed():
    experiments.main(list(flags.FLAGS(script)))
  _, config_file, _, steps, order, _ = seen[0]
  assert (config_file, steps) == ("configs/shapes.py", full.steps // 4)
  assert order == {
    k: full.loss[k] // 4 for k in ("random_until", "raster_from")
  }
  text = (tmp_path / f"steps_{steps}" / "table1.md").read_text()
  assert "Ours: not known" in text and "trends compare" in text


def run_on_coco(monkeypatch, *script):
  """The commands that would run, and what is said."""
  called, said = [], []
  monkeypatch.setattr(experiments, "call", called.append)
  monkeypatch.setattr(experiments.cli, "speaker", lambda: said.append)
  with flagsaver.as_parsed():
    args = ["experiments", *script, "--world=coco", "--budget=7"]
    monkeypatch.setattr(sys, "argv", args)
    experiments.main(list(flags.FLAGS(args)))
  return called, said


@pytest.mark.parametrize("name", sorted(paper_tables.TABLES))
def test_on_coco_the_papers_models_run(tmp_path, monkeypatch, name):
  root = tmp_path / "steps_7"
  root.mkdir()
  called, said = run_on_coco(monkeypatch, name, f"--root={tmp_path}")
  arms = paper_tables.TABLES[name].arms
  trained = [c for c in called if c[0] == "main"]
  assert [c[1] for c in trained] == [f"--workdir={root}/{a.name}" for a in arms]
  size = "700m" if name == "table3" else "2b"
  for command, arm in zip(trained, arms, strict=True):
    config_file = command[2].removeprefix("--config=").partition(":")[0]
    own = "_gemma1" if arm.name == "gemma1" else ""
    assert config_file == f"configs/unified_{size}{own}.py"
    assert (REPO / config_file).exists()
    captions = name in ("table3", "table4") and "captions" in arm.metrics
    scored = ["evaluate", *command[1:2], "--step=7", *command[2:]]
    assert (scored in called) == captions
    assert f"--config.eval.metrics={('captions',) * captions!r}" in command
    missing = [x for x in said if f"of {arm.title} is missing" in x]
    assert len(missing) == len({"FID", "GenEval"} & {*arm.published}
                               & {*paper_tables.TABLES[name].coco})  # fmt: skip
    for line in missing:
      file = "coco_fid" if line.startswith("FID") else "geneval"
      assert f"--out={root}/{arm.name}/{file}.json" in line
  if name != "table2":
    assert not any("preset" in x for c in called for x in c)
  text = (root / f"{name}.md").read_text()
  assert text.count("– [") and "QA" not in text
  assert "trends compare" not in text


def test_on_coco_a_given_model_is_varied(tmp_path, monkeypatch):
  root = tmp_path / "steps_7"
  root.mkdir()
  # Trained elsewhere: only what has no checkpoint is trained here.
  done = root / "unified/checkpoints/7"
  done.mkdir(parents=True)
  (done / "_CHECKPOINT_METADATA").touch()
  called, _ = run_on_coco(
    monkeypatch, "table2", "--config=configs/debug.py", f"--root={tmp_path}"
  )
  (command,) = called
  assert command[:2] == ["main", f"--workdir={root}/gemma1"]
  assert command[2] == "--config=configs/debug.py"
  assert command[-1] == "--config.model.decoder.preset=gemma1_2b"
  assert "--config.loss.random_until=2" in command  # 8 of 20 steps, at 7


@pytest.mark.parametrize(
  "args, message",
  [
    (["table1", "--config.seed=1"], "write a file for --config"),
    ([], "choose one of table1"),
    (["table9"], "choose one of table1"),
    (["table1", "--budget=0"], "at least 1 step"),
    (["table1", "table2"], "unknown arguments: table2"),
  ],
)
def test_unusable_commands(args, message):
  done = subprocess.run(
    [sys.executable, "-m", "unifluid_jax.experiments", *args],
    capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert done.returncode != 0
  assert message in done.stdout + done.stderr


def test_runs_of_another_configuration_are_not_taken(tmp_path):
  """What is scored is not run again, so names must mean one configuration."""
  root, tree = epath.Path(tmp_path), {"seed": 0, "optim": {"lr": 0.1}}
  experiments.claim(root, ["unified", "raster"], "a.py", tree)
  other = tree | {"optim": {"lr": 0.2}}
  experiments.claim(root, ["raster"], "b.py", other)  # nothing has been run
  (root / "raster_seed0").mkdir()
  experiments.claim(root, ["raster"], "b.py", other | {"name": "free"})
  with pytest.raises(ValueError, match=r"raster varies b\.py, not a\.py: .*--"):
    experiments.claim(root, ["unified", "raster"], "a.py", tree)
  with pytest.raises(ValueError, match=r"varies b\.py as it was before"):
    experiments.claim(root, ["raster"], "b.py", tree)
