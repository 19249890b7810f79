"""Runs that are trained on their own drawings."""

import json

from tests.e2e.commands import command, rows

REWARD = """
from configs import debug
from configs.base import source

def get_config():
  c = debug.get_config()
  c.steps, c.checkpoint.every = 2, 2
  c.init.all = "{run}"
  c.data.root = "{data}"
  c.text.tokenizer = "{data}/tokenizer.model"
  c.model.vae_path = "{run}/codec"
  c.data.train.rewarded = source(
    "rewarded", format="imagefolder", tasks=("t2i",), moments="rewarded"
  )
  c.eval.metrics = ("tokenizer",)
  return c
"""


def test_rounds_of_drawing_and_training(space, tmp_path):
  file, out = tmp_path / "own.py", tmp_path / "out"
  file.write_text(REWARD.format(run=space.run, data=space.data))
  before = (space.run / "codec" / "latents.json").read_text()
  call = [
    "reward", f"--config={file}", f"--workdir={out}", "--rounds=2",
    "--prompts=6", "--draws=2",
  ]  # fmt: skip
  wrong = command(*call, check=False)  # an untrained run draws nothing right
  assert wrong.returncode == 1
  assert "none of the drawings is rewarded 1" in wrong.stderr
  assert not (out / "drawn_1").exists()
  said = command(*call, "--least=0").stdout
  for number in (1, 2):
    table = (out / f"drawn_{number}" / "metadata.jsonl").read_text()
    assert len(table.splitlines()) == 6
    assert (out / f"drawn_{number}_encoded").exists()
    steps = rows(out / f"round_{number}" / "metrics.jsonl")
    assert steps[-1]["step"] == 2
  first, second = (
    [json.loads(row)["text"] for row in
     (out / f"drawn_{n}" / "metadata.jsonl").read_text().splitlines()]
    for n in (1, 2)
  )  # fmt: skip
  assert first != second
  assert f"decoder, head, image, projector, vit from {out}/round_1" in said
  assert "tokenizer/psnr" in said and (out / "round_2/report.html").exists()
  # Statistics of latents stay those of the run that it goes on from.
  assert (space.run / "codec" / "latents.json").read_text() == before
  copied = json.loads((out / "round_2" / "codec" / "latents.json").read_text())
  assert copied["scale"] == json.loads(before)["scale"]


def test_policy_gradients_on_what_a_run_draws(space, tmp_path):
  """They resume as any training does: a step draws what it would have."""
  file = tmp_path / "own.py"
  text = REWARD.format(run=space.run, data=space.data)
  source = text[text.index("  c.data.train.rewarded") : text.index("  c.eval")]
  policy = """
  c.policy.update(prompts=2, draws=4)
  c.optim.schedule = "constant"
"""
  file.write_text(text.replace(source, policy))

  def train(name, *more):
    command("main", f"--config={file}", f"--workdir={tmp_path / name}", *more)
    found = rows(tmp_path / name / "metrics.jsonl")
    return {row["step"]: row for row in found}

  whole = train("whole")
  assert 0 <= whole[2]["reward"] <= 1 and "reward_told_apart" in whole[2]
  train("parts", "--config.steps=1")
  parts = train("parts")
  for name in ("loss", "reward", "loss_visual"):
    assert parts[2][name] == whole[2][name], name


def test_a_run_without_drawings_is_refused(tmp_path):
  wrong = command("reward", "--config=debug", f"--workdir={tmp_path}/out",
                  check=False)  # fmt: skip
  assert wrong.returncode == 1
  assert "config.data.train.rewarded: set both" in wrong.stderr
  remote = command("best_of", "--workdir=nowhere", "--to=gs://bucket/drawn",
                   check=False)  # fmt: skip
  assert "must lie on a local disk" in remote.stderr
  assert "change --to" in remote.stderr
  assert not (tmp_path / "out").exists()
