"""launch/gke.sh and its image, without a cluster and without Docker."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import pytest
import yaml

from tests.test_launch import script

REPO = Path(__file__).parent.parent
SCHEMA = json.loads((REPO / "tests" / "jobset_schema.json").read_text())
SLICE = ("--name=run", "--image=r/u:1", "--type=v6e", "--topology=4x4")
ODD = (
  "--config=configs/debug.py:lambda=0.1", "--x=it's \"two\" words: - #",
  "--y=$(HOME) $HOME `id`", "--z=",
)  # fmt: skip
WORKDIR = "--workdir=gs://bucket/run"


def gke(*args, status=0, **env):
  done = subprocess.run(
    ["bash", REPO / "launch" / "gke.sh", *args], text=True,
    capture_output=True, env=dict(os.environ, **env), check=False,
  )  # fmt: skip
  assert done.returncode == status, done.stdout + done.stderr
  return done.stderr if status else done.stdout


def manifest(*args):
  found = yaml.safe_load(gke(*args))
  jsonschema.validate(found, SCHEMA)
  return found


def parts(found):
  """The job of a slice, its pod and its container."""
  (slices,) = found["spec"]["replicatedJobs"]
  job = slices["template"]["spec"]
  pod = job["template"]["spec"]
  (container,) = pod["containers"]
  return slices, job, pod, container


def test_a_manifest_is_a_jobset_of_slices():
  flags = ("--slices=2", "--spot", "--queue=q", "--namespace=n", "--print")
  found = manifest("train", *SLICE, *flags, "--", *ODD, WORKDIR)
  slices, job, pod, container = parts(found)
  assert found["metadata"]["name"] == "run"
  assert found["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "q"}
  assert slices["replicas"] == 2
  assert job["parallelism"] == job["completions"] == 4  # hosts of 4 chips
  assert pod["nodeSelector"] == {
    "cloud.google.com/gke-tpu-accelerator": "tpu-v6e-slice",
    "cloud.google.com/gke-tpu-topology": "4x4",
    "cloud.google.com/gke-spot": "true",
  }
  assert container["resources"]["limits"] == {"google.com/tpu": 4}
  # Kubernetes makes $(HOME) of $$(HOME), and leaves $HOME alone.
  assert [word.replace("$$(", "$(") for word in container["args"]] == [
    "unifluid_jax.main", *ODD, WORKDIR, "--config.mesh.slices=2",
    "--coordinator=auto",
  ]  # fmt: skip
  assert "--y=$$(HOME) $HOME `id`" in container["args"]


@pytest.mark.parametrize(
  "type_, topology, label, hosts",
  [("v4", "2x2x4", "tpu-v4-podslice", 4),
   ("v5e", "16x16", "tpu-v5-lite-podslice", 64),
   ("v5p", "4x4x8", "tpu-v5p-slice", 32), ("v7x", "2x2x1", "tpu7x", 1)],
)  # fmt: skip
def test_hosts_of_a_slice(type_, topology, label, hosts):
  flags = (f"--type={type_}", f"--topology={topology}", "--print")
  found = manifest("evaluate", *SLICE, *flags, "--", WORKDIR)
  _, job, pod, container = parts(found)
  assert job["parallelism"] == job["completions"] == hosts
  assert label in pod["nodeSelector"].values()
  assert container["args"] == [
    "unifluid_jax.evaluate", WORKDIR, "--coordinator=auto",
  ]  # fmt: skip
  assert "volumes" not in pod and "tolerations" not in pod


def test_encoding_has_a_disk_that_all_pods_share():
  flags = ("--volume=claim:/data", "--print")
  found = manifest("encode", *SLICE, *flags, "--", "--config.data.root=/data")
  _, _, pod, container = parts(found)
  (volume,), (mount,) = pod["volumes"], container["volumeMounts"]
  assert volume["persistentVolumeClaim"] == {"claimName": "claim"}
  assert mount == {"name": volume["name"], "mountPath": "/data"}
  said = gke("encode", *SLICE, "--print", "--", "--x", status=2)
  assert "encode needs --volume=CLAIM:PATH" in said


def test_the_schema_refuses_what_kubernetes_would_drop_or_refuse():
  found = manifest("train", *SLICE, "--print", "--", WORKDIR)
  for change in (
    lambda f: f["spec"].pop("replicatedJobs") and f["spec"].update(jobs=[]),
    lambda f: parts(f)[0].update(replicas="2"),
    lambda f: parts(f)[1].update(paralellism=4),
    lambda f: parts(f)[3]["args"].append(1),
    lambda f: parts(f)[2]["nodeSelector"].update(spot=True),
  ):
    wrong = json.loads(json.dumps(found))
    change(wrong)
    with pytest.raises(jsonschema.ValidationError):
      jsonschema.validate(wrong, SCHEMA)


def test_xpk_is_told_the_same():
  flags = ("--type=v5p", "--topology=4x4x8", "--slices=2", "--xpk=c")
  words = shlex.split(gke("train", *SLICE, *flags, "--", *ODD, WORKDIR))
  assert words[:4] == ["xpk", "workload", "create", "--cluster=c"]
  assert {"--tpu-type=v5p-256", "--num-slices=2", "--docker-image=r/u:1",
          "--workload=run"} <= set(words)  # fmt: skip
  (inner,) = (w for w in words if w.startswith("--command="))
  assert shlex.split(inner.removeprefix("--command=")) == [
    "bash", "launch/pod.sh", "unifluid_jax.main", *ODD, WORKDIR,
    "--config.mesh.slices=2", "--coordinator=auto",
  ]  # fmt: skip


def test_what_kubectl_is_asked(tmp_path):
  fake = '#!/bin/bash\nprintf "%s\\n" "$@"\n[[ $* != *apply* ]] || cat\n'
  script(tmp_path / "kubectl", fake)
  env = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
  said = gke("train", *SLICE, "--namespace=n", "--", WORKDIR, **env)
  first, text = said.split("--filename=-\n")
  assert first.split() == ["--namespace=n", "apply"]
  printed = gke("train", *SLICE, "--namespace=n", "--print", "--", WORKDIR)
  assert text == printed
  log = gke("log", "--name=run", "--slice=1", "--worker=3", "--follow", **env)
  assert log.split() == [
    "logs", "--selector=jobset.sigs.k8s.io/jobset-name=run,"
    "jobset.sigs.k8s.io/job-index=1,"
    "batch.kubernetes.io/job-completion-index=3", "--tail=40", "--follow",
  ]  # fmt: skip
  said = gke("stop", "--name=run", **env)
  assert said.split() == ["delete", "jobset", "run", "--wait"]
  assert "get jobset run" in " ".join(
    gke("status", "--name=run", **env).split()
  )


@pytest.mark.parametrize(
  "args, words",
  [
    ("", "no command"),
    ("launch", "unknown command launch"),
    ("train --steps=1", "unknown flag --steps=1"),
    ("train --name=a", "train needs -- ARGUMENTS"),
    ("stop --name=a -- b", "stop takes no ARGUMENTS"),
    ("status", "--name=: at most 40 small letters"),
    ("train --name=A -- x", "--name=A: at most 40 small letters"),
    ("train --name=a -- --workdir=gs://b", "no image: --image="),
    ("train --name=a --slices=0 -- x", "--slices=0: a number from 1"),
    ("train --name=a --volume=x -- x", "--volume=x: CLAIM:PATH"),
    ("train {} --type=v3 -- x", "--type=v3: v4, v5e"),
    ("train {} --topology=4x4x4 -- x", "v6e has 2 dimensions, as in 4x4"),
    ("train {} --type=v7x --xpk=c -- x", "--xpk knows v4, v5e"),
    ("train {} --chips=5 -- x", "16 chips are no multiple of --chips=5"),
    ("train {} -- --config=x", "ARGUMENTS need --workdir=gs://"),
    ("train {} -- --workdir=/data/run", "--workdir=/... needs --volume"),
    ("train {} -- --workdir=gs://b --config.mesh.slices=2", "leave that out"),
  ],
)
def test_wrong_calls(args, words):
  args = args.replace("{}", " ".join(SLICE) + " --print").split()
  said = gke(*args, status=2)
  assert words in said and said.count("\n") == 1


# ------------------------------------------------------------------ the image


def instructions():
  """(keyword, words) of each instruction of the Dockerfile."""
  text = (REPO / "launch" / "Dockerfile").read_text()
  lines = re.sub(r"^#.*\n|\n\s*$", "", text, flags=re.MULTILINE)
  found = []
  for line in lines.replace("\\\n", " ").splitlines():
    keyword, _, rest = line.partition(" ")
    if keyword:
      found.append((keyword, rest.strip()))
  return found


def test_the_image_installs_what_it_copies(tmp_path):
  """What pip begins with, where nothing else is; the rest takes a network."""
  found = instructions()
  known = {"ARG", "FROM", "WORKDIR", "COPY", "RUN", "ENTRYPOINT", "CMD"}
  assert {keyword for keyword, _ in found} == known
  ignored = (REPO / "launch" / "Dockerfile.dockerignore").read_text().split()
  for keyword, rest in found:
    if keyword == "COPY":
      *sources, target = rest.split()
      for source in sources:
        assert f"!{source}" in ignored
        if (REPO / source).is_dir():
          assert target == f"./{source}"
          shutil.copytree(REPO / source, tmp_path / source)
        else:
          shutil.copy(REPO / source, tmp_path)
  (line,) = (rest for keyword, rest in found if keyword == "RUN")
  assert shlex.split(line) == [
    "python3", "-m", "pip", "install", "--no-cache-dir", "--constraint",
    "requirements.lock", "--editable", ".[${EXTRAS}]",
  ]  # fmt: skip
  done = subprocess.run(
    [sys.executable, "setup.py", "--quiet", "egg_info"],
    cwd=tmp_path, text=True, capture_output=True, check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  info = tmp_path / "unifluid_jax.egg-info"
  (extras,) = (r for k, r in found if k == "ARG" and r.startswith("EXTRAS="))
  for extra in extras.partition("=")[2].split(","):
    assert f"[{extra}]" in (info / "requires.txt").read_text()
  sources = (info / "SOURCES.txt").read_text()
  assert "unifluid_jax/main.py" in sources and "configs/base.py" in sources


def test_the_image_starts_modules():
  entry = dict(instructions())
  assert json.loads(entry["ENTRYPOINT"]) == ["bash", "launch/pod.sh"]
  assert json.loads(entry["CMD"])[0] == "unifluid_jax.main"


def pod(tmp_path, body):
  script(tmp_path / "python", f'#!/bin/bash\necho "$@"\n{body}\n')
  return subprocess.Popen(
    ["bash", REPO / "launch" / "pod.sh", "module", "a b"], text=True,
    env=dict(os.environ, PYTHON=str(tmp_path / "python")),
    stdout=subprocess.PIPE,
  )  # fmt: skip


@pytest.mark.parametrize("status", [0, 7])
def test_a_pod_ends_as_its_job_does(tmp_path, status):
  process = pod(tmp_path, f"exit {status}")
  assert process.communicate(timeout=60)[0] == "-m module a b\n"
  assert process.returncode == status


@pytest.mark.parametrize("leaves, status", [("exit 0", 143), ("exit 5", 5)])
def test_a_pod_that_had_to_go_is_started_again(tmp_path, leaves, status):
  """It waits until the job has saved."""
  saved = tmp_path / "saved"
  body = f"trap 'sleep .3; touch {saved}; {leaves}' TERM\necho begun\n"
  process = pod(tmp_path, body + "for _ in {1..600}; do sleep .05; done")
  assert process.stdout.readline() and process.stdout.readline() == "begun\n"
  time.sleep(0.05)
  process.send_signal(signal.SIGTERM)
  assert process.wait(timeout=60) == status
  assert saved.exists()
