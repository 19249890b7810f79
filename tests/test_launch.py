"""The launch scripts, against a stand-in for gcloud and for the job."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import fake_gcloud

REPO = Path(__file__).parent.parent
SCRIPTS = sorted(
  p for where in ("launch", "benchmarks") for p in (REPO / where).glob("*.sh")
)
ODD = (
  "--config=configs/debug.py:lambda=0.1", "--config.eval.metrics=('a','b')",
  "--x=two words", "--y=$HOME `id` \"quoted\" it's; *", "--z=",
)  # fmt: skip
WORKDIR = "--workdir=gs://bucket/run"

# Python of a worker: makes the environment, notes what is installed and
# started. A job waits for SIGTERM, unless it is told how to leave.
PYTHON = r"""#!/usr/bin/env bash
set -e
case "$*" in
  "-c "*) [[ ! -e $HOME/old_python ]] ;;
  "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  "-m uv venv "*) mkdir -p "${*: -1}/bin" && cp "$0" "${*: -1}/bin/python"
    echo "$*" >>"$HOME/pip" ;;
  "-m pip --version") ;;
  "-m pip "*) echo "$*" >>"$HOME/pip" ;;
  "-m unifluid_jax."*)
    "$REAL" -c 'import json, sys; print(json.dumps(sys.argv[1:]))' "${@:2}" \
      >>"$HOME/started"
    all="$* "
    [[ $all != *--leave=* ]] || { all=${all##*--leave=}; exit "${all%% *}"; }
    count=$(wc -l <"$HOME/started")
    [[ $all != *--steps=5* ]] ||
      { echo train "$count/5"; exit "$((5 - count))"; }
    trap 'sleep .2; echo told to stop; exit 0' TERM
    echo train 1/10
    for _ in {1..600}; do sleep .05; done ;;
  *) echo "unknown: $*" >&2; exit 9 ;;
esac
"""


def script(path, text):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text)
  path.chmod(0o755)


def wait_for(condition, seconds=60):
  deadline = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.02)


class Place(fake_gcloud.Cloud):
  """A committed checkout, the stand-ins, an environment."""

  def __init__(self, root):
    super().__init__(root)
    real = f"REAL={sys.executable}\n"
    script(root / "bin" / "python3", PYTHON.replace("set -e\n", real))
    script(root / "bin" / "hostname", '#!/bin/sh\necho "worker $WORKER"\n')
    fake = f'#!/bin/sh\nexec {sys.executable} -m tests.fake_gcloud "$@"\n'
    script(root / "path" / "gcloud", fake)
    self.checkout = root / "checkout"
    shutil.copytree(REPO / "launch", self.checkout / "launch")
    (self.checkout / "requirements.lock").write_text("")
    self.git("init", "--quiet")
    self.commit()
    path = os.environ["PATH"]
    self.env = {
      "PATH": f"{root}/path:{path}", "WORKER_PATH": path, "HOME": str(root),
      "PYTHONPATH": str(REPO), "FAKE_CLOUD": str(root), "POLL_SECONDS": "0.05",
      "ZONE": "z-1", "TPU_NAME": "slice",
    }  # fmt: skip
    self.be("ABSENT")

  def git(self, *args):
    who = ["-c", "user.name=n", "-c", "user.email=e@x"]
    return subprocess.run(
      ["git", *who, *args], cwd=self.checkout, check=True, text=True,
      capture_output=True,
    ).stdout.strip()  # fmt: skip

  def commit(self):
    self.git("add", ".")
    self.git("commit", "--quiet", "--message=x")

  def start(self, *args, **env):
    return subprocess.Popen(
      ["bash", self.checkout / "launch" / "tpu.sh", *args],
      env=self.env | env, text=True, cwd=self.root,
      stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip

  def run(self, *args, status=0, **env):
    process = self.start(*args, **env)
    out, err = process.communicate(timeout=60)
    assert process.returncode == status, out + err
    return out + err

  def ready(self):
    """A slice with the code on it."""
    self.run("create", "--type=v5p-16")
    self.run("setup")

  def state(self, worker):
    return (self.jobs(worker) / "state").read_text().strip()

  def jobs(self, worker):
    return self.home(worker) / "unifluid_jax" / "runs" / "launch"

  def trains(self, worker):
    """Whether a job waits for a signal."""
    return (self.jobs(worker) / "log").read_text().endswith("train 1/10\n")

  def lose(self, worker):
    """kill -9 of the whole job, as when the host goes."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
      os.killpg(int((self.jobs(worker) / "group").read_text()), signal.SIGKILL)


@pytest.fixture
def place(tmp_path):
  it = Place(tmp_path)
  yield it
  for worker in range(2):
    it.lose(worker)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.name)
def test_syntax(path):
  subprocess.run(["bash", "-n", path], check=True)


@pytest.mark.parametrize("name", ["tpu.sh", "local.sh", "gke.sh"])
def test_help(name):
  done = subprocess.run(
    ["bash", REPO / "launch" / name, "--help"], check=True, text=True,
    capture_output=True,
  )  # fmt: skip
  assert f"launch/{name} train" in done.stdout and not done.stderr


@pytest.mark.parametrize(
  "args, status, words",
  [
    ("", 2, "no command"),
    ("make", 2, "unknown command make"),
    ("create --name= --type=v5p-8", 2, "no slice: --name=NAME"),
    ("create --zone= --type=v5p-8", 2, "no zone: --zone=ZONE"),
    ("create", 2, "no accelerator: --type=TYPE"),
    ("create --type=v9-8", 2, "no image is known for v9-8: --runtime=NAME"),
    ("status --verbose", 2, "unknown flag --verbose"),
    ("train --config=c", 2, "unknown flag --config=c (what is for Python"),
    ("train", 2, "train needs -- ARGUMENTS"),
    ("stop -- now", 2, "stop takes no ARGUMENTS"),
    ("train -- --config=c", 2, "--workdir=gs://BUCKET/RUN"),
    ("train -- --config=c --workdir=runs/a", 2, "--workdir=gs://BUCKET/RUN"),
    ("train --retry -- --workdir=/a", 2, "no accelerator"),
    ("encode -- --workdir=/a", 2, "--config.data.root=/FOLDER, mounted on"),
    ("stop", 3, "not set up"),
    ("log --lines=5", 3, "not set up: launch/tpu.sh setup"),
  ],
)
def test_wrong_calls_get_one_clear_error(place, args, status, words):
  for worker in range(2):
    place.home(worker).mkdir()
  said = place.run(*args.split(), status=status)
  assert words in said and set(said.split("\n")) == {said.split("\n")[0], ""}


def test_without_gcloud(place):
  bare = place.root / "bare"
  bare.mkdir()
  for tool in ("bash", "dirname"):
    (bare / tool).symlink_to(shutil.which(tool))
  said = place.run("status", status=1, PATH=str(bare))
  assert said == "error: no gcloud: install the Google Cloud CLI\n"


def test_what_gcloud_refuses_is_said(place):
  place.be("FORBIDDEN")
  assert "no permission" in place.run("status", status=1)


@pytest.mark.parametrize(
  "type_, image",
  [("v6e-256", "v2-alpha-tpuv6e"), ("v5p-128", "v2-alpha-tpuv5"),
   ("v5litepod-16", "v2-alpha-tpuv5-lite"), ("v4-32", "tpu-ubuntu2204-base")],
)  # fmt: skip
def test_create_waits_until_the_slice_is_there(place, type_, image):
  said = place.run(
    "create", "--project=p", f"--type={type_}", "--spot",
    STATES='["ACCEPTED", "ACCEPTED", "PROVISIONING", "ACTIVE"]',
    CREATE_FLAGS="--network=n",
  )  # fmt: skip
  first, *looks = place.calls()
  assert first == [
    "compute", "tpus", "queued-resources", "create", "slice",
    "--node-id=slice", "--spot", "--network=n", f"--accelerator-type={type_}",
    f"--runtime-version={image}", "--zone=z-1", "--project=p",
  ]  # fmt: skip
  assert len(looks) == 4 and said.count("slice: ACCEPTED\n") == 1


def test_create_says_that_a_request_failed(place):
  said = place.run("create", "--type=v5p-8", status=1,
                   STATES='["CREATING", "FAILED"]')  # fmt: skip
  assert "error: no slice: FAILED" in said


def test_setup_installs_the_committed_state(place):
  place.ready()
  (place.checkout / "new.py").write_text("")
  said = place.run("setup", status=1)
  assert "not committed, workers would not get it: new.py" in said
  old = place.git("rev-parse", "HEAD")
  for worker in range(2):
    assert (place.jobs(worker) / "commit").read_text().strip() == old
    assert (
      "--constraint requirements.lock --editable .[tpu,gcs]"
      in (place.home(worker) / "pip").read_text()
    )
  place.commit()
  here = place.home(1) / "unifluid_jax"
  (here / ".venv" / "kept").touch()
  place.run("setup")
  assert (here / "new.py").exists() and (here / ".venv" / "kept").exists()
  place.git("rm", "--quiet", "new.py")
  place.commit()
  place.run("setup")
  assert not (here / "new.py").exists()


def test_setup_brings_a_python_where_it_is_too_old(place):
  place.run("create", "--type=v5p-16")
  (place.home(1) / "old_python").touch()
  place.run("setup")
  first, second, _ = (place.home(1) / "pip").read_text().splitlines()
  assert first.endswith("install --quiet --user uv")
  assert second == "-m uv venv --quiet --seed --python 3.11 .venv"
  assert "uv" not in (place.home(0) / "pip").read_text()


def test_a_job_is_detached_and_stops_by_sigterm(place):
  place.ready()
  place.run("train", "--", *ODD, WORKDIR)
  for worker in range(2):
    wait_for(lambda w=worker: place.started(w))
    assert place.started(worker) == [
      ["unifluid_jax.main", *ODD, WORKDIR, "--coordinator=auto"]
    ]
  wait_for(lambda: place.trains(0) and place.trains(1))
  assert "train 1/10" in place.run("log")
  said = place.run("status")
  assert said.count(": running, commit ") == 2 and "slice: ACTIVE" in said
  for command in ("train", "evaluate"):
    again = place.run(command, "--", WORKDIR, status=1)
    assert again.count("error: a job runs here; launch/tpu.sh stop") == 2
  assert "a job runs here" in place.run("setup", status=1)
  assert len(place.started(0)) == 1
  said = place.run("stop")
  assert said.count(": stopped") == 2
  assert [place.state(worker) for worker in range(2)] == ["stopped"] * 2
  assert "told to stop" in place.run("log", "--worker=1", "--lines=2")
  assert said != place.run("stop") and "no job runs" in place.run("stop")
  place.run("evaluate", "--", WORKDIR, "--leave=0")
  wait_for(lambda: place.state(1) == place.state(0) == "done")
  assert place.started(1)[1][0] == "unifluid_jax.evaluate"


def test_a_job_starts_on_all_workers_or_on_none(place):
  place.ready()
  place.run("train", "--", WORKDIR)
  wait_for(lambda: place.started(0))
  place.lose(0)
  said = place.run("train", "--", WORKDIR, status=1)
  assert said.count("a job runs here") == 1
  assert len(place.started(0)) == 1
  assert "worker 0: died" in place.run("status")


def test_the_state_tells_how_a_job_left(place):
  place.ready()
  place.run("train", "--", WORKDIR, "--leave=7")
  wait_for(lambda: place.state(0) == "failed 7")
  assert "worker 0: failed 7" in place.run("status")
  place.run("train", "--", WORKDIR)
  wait_for(lambda: place.trains(1))
  os.killpg(int((place.jobs(1) / "group").read_text()), signal.SIGTERM)
  wait_for(lambda: place.state(1) == "interrupted")
  assert "told to stop" in (place.jobs(1) / "log").read_text()


def test_retry_goes_on_on_a_new_slice(place):
  place.ready()
  flags = ("--type=v5p-16", "--spot", "--retry")
  watch = place.start("train", *flags, "--", *ODD, WORKDIR)
  wait_for(lambda: place.started(0) and place.started(1))
  place.lose(0)  # a host restarts
  wait_for(lambda: len(place.started(0)) == len(place.started(1)) == 2)
  commit = place.git("rev-parse", "HEAD")
  for worker in range(2):  # the hosts come back without their files
    place.lose(worker)
    shutil.rmtree(place.home(worker) / "unifluid_jax")
  wait_for(lambda: len(place.started(0)) == len(place.started(1)) == 3)
  (place.checkout / "later.py").write_text("")
  place.commit()
  for worker in range(2):
    place.lose(worker)
  place.be("SUSPENDING", "SUSPENDED")
  wait_for(lambda: len(place.started(0)) == len(place.started(1)) == 1)
  assert (place.jobs(0) / "commit").read_text().strip() == commit
  assert place.started(0) == [
    ["unifluid_jax.main", *ODD, WORKDIR, "--coordinator=auto"]
  ]
  assert watch.poll() is None
  place.run("stop")
  assert watch.wait(timeout=60) == 0
  assert "taken away" in watch.communicate()[1]
  made = [x for x in place.calls() if x[3] == "create"]
  assert len(made) == 2 and "--spot" in made[1]


def test_retry_gives_up_what_fails_at_the_same_step(place):
  place.ready()
  said = place.run("train", "--type=v5p-16", "--retry", "--", WORKDIR,
                   "--leave=5", status=1)  # fmt: skip
  assert "error: slice: failed 5, thrice here; see launch/tpu.sh log" in said
  assert len(place.started(0)) == 3


def test_retry_goes_on_while_there_is_progress(place):
  place.ready()
  said = place.run("train", "--type=v5p-16", "--retry", "--", WORKDIR,
                   "--steps=5")  # fmt: skip
  assert "slice: done" in said and len(place.started(0)) == 5


def local(tmp_path, *args, **env):
  code = "import json, os, sys; a = sys.argv; open(a[-1][-1], 'w').write(\
json.dumps([a[1:], os.environ.get('CUDA_VISIBLE_DEVICES')])); \
sys.exit(a[-1] == a[1])"
  fake = f'#!/bin/bash\n[[ $1 == -m ]] || exec {sys.executable} "$@"\n'
  fake += f'exec {sys.executable} -c "$CODE" "${{@:3}}"\n'
  script(tmp_path / "python", fake)
  return subprocess.run(
    ["bash", REPO / "launch" / "local.sh", *args], cwd=tmp_path, text=True,
    env=dict(os.environ, PYTHON=str(tmp_path / "python"), CODE=code, **env),
    capture_output=True, check=False,
  )  # fmt: skip


def test_local_processes_share_the_gpus(tmp_path):
  done = local(tmp_path, "train", "--processes=3", "--", "a b",
               CUDA_VISIBLE_DEVICES="0,1,2,5,6,7")  # fmt: skip
  assert done.returncode == 0, done.stderr
  said = [json.loads((tmp_path / f"{i}").read_text()) for i in range(3)]
  assert [gpus for _, gpus in said] == ["0,1", "2,5", "6,7"]
  first = said[0][0]
  assert first[0] == "a b" and first[1].startswith("--coordinator=localhost:")
  for i, (args, _) in enumerate(said):
    assert args == [*first[:2], "--num_processes=3", f"--process_id={i}"]


def test_local_ends_with_the_status_of_what_failed(tmp_path):
  done = local(tmp_path, "train", "--", "--process_id=1",
               CUDA_VISIBLE_DEVICES="0,1")  # fmt: skip
  assert done.returncode == 1


@pytest.mark.parametrize(
  "args, words",
  [
    ("run", "unknown command run"),
    ("train --steps=1", "unknown flag --steps=1"),
    ("train", "no -- ARGUMENTS"),
    ("train --processes=0 --", "--processes=0: a number"),
    ("train --processes=4 -- a", "--processes=4 do not divide 3 GPUs"),
  ],
)
def test_local_wrong_calls(tmp_path, args, words):
  done = local(tmp_path, *args.split(), CUDA_VISIBLE_DEVICES="0,1,2")
  assert done.returncode == 2
  assert words in done.stderr and done.stderr.count("\n") == 1


def test_slurm_starts_a_process_a_gpu(tmp_path):
  script(tmp_path / "srun", '#!/bin/bash\nprintf "%s\\n" "$@"\n')
  env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHON": "py"}
  call = ["bash", REPO / "launch" / "slurm.sh", "--x=a b", "--workdir=d"]
  done = subprocess.run(call, env=env, capture_output=True, text=True)
  assert done.returncode == 1 and "not under Slurm" in done.stderr
  done = subprocess.run(
    call, env=env | {"SLURM_JOB_ID": "1"}, capture_output=True, text=True
  )
  assert done.stdout.splitlines() == [
    "--kill-on-bad-exit=1", "py", "-m", "unifluid_jax.main", "--x=a b",
    "--workdir=d", "--coordinator=auto",
  ]  # fmt: skip
