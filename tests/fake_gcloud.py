"""Stands in for gcloud: two workers, which are folders with a HOME each.

Every call is written down and its flags are checked against those that
gcloud's reference names. States of the request come from a list, one a look.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

EVERYWHERE = {"zone", "project"}
FLAGS = {
  "create": {"node-id", "accelerator-type", "runtime-version", "spot",
             "reserved", "network"},
  "describe": {"format"},
  "delete": {"force", "quiet"},
  "scp": {"worker", "internal-ip"},
  "ssh": {"worker", "command", "internal-ip"},
}  # fmt: skip


ERRORS = {
  "ABSENT": "ERROR: NOT_FOUND: no such resource",
  "FORBIDDEN": "ERROR: PERMISSION_DENIED: no permission",
}


class Cloud:
  """A folder that outlives the calls."""

  def __init__(self, root):
    self.root = root

  def home(self, worker):
    return self.root / f"worker{worker}"

  def states(self):
    return json.loads((self.root / "states").read_text())

  def be(self, *states):
    """What the next looks see; the last one stays."""
    (self.root / "states").write_text(json.dumps(states))

  def calls(self):
    lines = (self.root / "calls").read_text().splitlines()
    return [json.loads(line) for line in lines]

  def started(self, worker):
    """Arguments of every `python -m` of a job on a worker."""
    file = self.home(worker) / "started"
    lines = file.read_text().splitlines() if file.exists() else []
    return [json.loads(line) for line in lines]

  def answer(self, argv):
    with (self.root / "calls").open("a") as calls:
      calls.write(json.dumps(argv) + "\n")
    assert argv[:2] == ["compute", "tpus"], argv
    group, verb, name, *rest = argv[2:]
    assert group == ("tpu-vm" if verb in ("ssh", "scp") else "queued-resources")
    flags = dict(x[2:].partition("=")[::2] for x in rest if x.startswith("--"))
    unknown = set(flags) - FLAGS[verb] - EVERYWHERE
    assert not unknown, unknown
    if verb in ("ssh", "scp"):
      count = 2 if flags["worker"] == "all" else None
      workers = range(2) if count else [int(flags["worker"])]
    if verb == "create":
      for worker in range(2):
        self.home(worker).mkdir()
      self.be(*json.loads(os.environ.get("STATES", '["CREATING","ACTIVE"]')))
    elif verb == "delete":
      for worker in range(2):
        shutil.rmtree(self.home(worker), ignore_errors=True)
      self.be("ABSENT")
    elif verb == "describe":
      first, *later = self.states()
      self.be(*(later or [first]))
      if first in ERRORS:
        return ERRORS[first]
      whole = f"name: {name}\nstate:\n  state: {first}"
      print(first if flags.get("format") == "value(state.state)" else whole)
    elif verb == "scp":
      for worker in workers:
        shutil.copy(name, self.home(worker))
    elif verb == "ssh":
      return self.ssh(workers, flags["command"])
    return 0

  def ssh(self, workers, command):
    """The command in bash on every worker; the first status that is not 0."""
    path = f"{self.root}/bin:{os.environ['WORKER_PATH']}"
    runs = [
      subprocess.Popen(
        ["bash", "-c", command], cwd=self.home(worker),
        env={"HOME": str(self.home(worker)), "PATH": path,
             "WORKER": str(worker)},
      )
      for worker in workers
    ]  # fmt: skip
    return next((x for x in [run.wait() for run in runs] if x), 0)


if __name__ == "__main__":
  sys.exit(Cloud(Path(os.environ["FAKE_CLOUD"])).answer(sys.argv[1:]))
