"""A flow head's run, distilled by commands."""

import jax
import numpy as np

from tests.e2e.commands import command, rows
from unifluid_jax import loading

DISTILL = """
from configs import debug

def get_config(arg=""):
  c = debug.get_config("t2i_only")
  c.model.head.kind = "flow"
  c.steps = c.checkpoint.every = 2
  if arg:
    c.steps = c.checkpoint.every = 3
    c.init.update(all="{run}", teacher="{run}#head")
    c.model.vae_path = "{run}/codec"
    c.optim.rates.update(decoder=0.0, vit=0.0, projector=0.0, image=0.0)
    c.loss.update(random_until=0, raster_from=0)
    c.loss.update(teacher_steps=2, teacher_cfg=2.0, draws=2)
    c.model.head.kind = "distilled"
    c.sampling.update(steps=1, cfg=1.0)
  return c
"""


def test_a_run_is_distilled_and_draws_in_one_step(space, tmp_path):
  file, run, out = tmp_path / "own.py", tmp_path / "flow", tmp_path / "out"
  file.write_text(DISTILL.format(run=run))
  data = space.config()[1:]
  command("main", f"--config={file}", *data, f"--workdir={run}")
  flags = [f"--config={file}:distill", *data[:-1]]
  said = command("main", *flags, f"--workdir={out}").stdout
  assert f"teacher: head from {run} step 2" in said
  assert "distillation" in rows(out / "metrics.jsonl")[-1]

  before, after = (
    jax.tree.map(np.asarray, loading.read(str(path), ema=False).params)
    for path in (run, out)
  )
  np.testing.assert_equal(after["teacher"], before["head"])
  for name in ("decoder", "vit", "projector", "image"):
    np.testing.assert_equal(after[name], before[name])
  moved = [
    np.abs(a - b).max()
    for a, b in zip(
      *map(jax.tree.leaves, (after["head"], before["head"])), strict=True
    )
  ]
  assert max(moved) > 0

  picture = tmp_path / "a.png"
  ask = ["generate", f"--workdir={out}", "--prompt=a red circle"]
  command(*ask, f"--out={picture}")
  assert picture.exists()
  for flag, words in (("--steps=4", "use steps=1"), ("--cfg=2", "use cfg=1")):
    wrong = command(*ask, flag, f"--out={tmp_path / 'b.png'}", check=False)
    assert wrong.returncode == 1 and words in wrong.stderr
  assert not (tmp_path / "b.png").exists()
