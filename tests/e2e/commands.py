"""Commands as a user types them, and one small run that tests share."""

import json
import os
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).parent.parent.parent
# As in tests/conftest.py: what both compute is compared bit by bit.
FLAGS = (
  "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false "
)
ENV = dict(
  os.environ, JAX_PLATFORMS="cpu", XLA_FLAGS=FLAGS, PYTHONPATH=str(REPO)
)


def command(module, *args, devices=1, check=True, of="unifluid_jax", **env):
  flags = FLAGS + f"--xla_force_host_platform_device_count={devices}"
  done = subprocess.run(
    [sys.executable, "-m", f"{of}.{module}", *args],
    cwd=REPO, env=dict(ENV, XLA_FLAGS=flags, **env),
    capture_output=True, text=True, check=False,
  )  # fmt: skip
  if check:
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
  return done


class Workspace:
  """One prepared data set and one trained run, shared by the tests."""

  def __init__(self, root):
    self.root, self.run, self.vae = root, root / "run", root / "vae"
    self.data = root / "data"

  def config(self, arg="", **changes):
    flags = [
      f"--config={REPO}/configs/debug.py" + (f":{arg}" if arg else ""),
      f"--config.data.root={self.data}",
      f"--config.text.tokenizer={self.data}/tokenizer.model",
    ]
    if arg != "vae":
      flags.append(f"--config.model.vae_path={self.vae}")
    return flags + [f"--config.{k}={v}" for k, v in changes.items()]


def rows(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def losses(workdir):
  return {r["step"]: r["loss"] for r in rows(workdir / "metrics.jsonl")}
