#!/usr/bin/env bash
# What launch/tpu.sh has every worker of a slice do. One job at a time: the
# chips of a host belong to one process. The lock is held by the job itself,
# so that it ends with it, however it ends.
set -euo pipefail

root=$HOME/unifluid_jax
python=$root/.venv/bin/python
jobs=$root/runs/launch # commit, lock, log, state, pid, group, stopped

say() { echo "$(hostname): $*"; }

die() {
  say "error: $*" >&2
  exit 1
}

running() { [[ -e $jobs/lock ]] && ! flock --shared --nonblock "$jobs/lock" true; }

set_state() {
  echo "$*" >"$jobs/state.new"
  mv "$jobs/state.new" "$jobs/state"
}

# running; done; failed STATUS; stopped (by `stop`); interrupted (a SIGTERM of
# somebody else: the host goes); died (no word was left); none.
state() {
  local word=none
  [[ ! -e $jobs/state ]] || word=$(<"$jobs/state")
  [[ $word != running ]] || running || word=died
  echo "$word"
}

idle() { ! running || die "a job runs here; launch/tpu.sh stop ends it"; }

# The archive's files in place of the old ones, its packages.
install() {
  idle
  mkdir -p "$jobs"
  cd "$root"
  find . -mindepth 1 -maxdepth 1 ! -name .venv ! -name runs -exec rm -rf {} +
  tar -xzf "$HOME/unifluid_jax.tar.gz"
  "$python" -m pip --version >/dev/null 2>&1 || make_venv
  "$python" -m pip install --quiet --constraint requirements.lock \
    --editable ".[tpu,gcs]" </dev/null
  echo "$1" >"$jobs/commit"
  say "commit ${1:0:12} is installed"
}

make_venv() {
  if python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    python3 -m venv .venv
  else # the Python of a TPU's runtime image may be 3.10
    python3 -m pip install --quiet --user uv
    python3 -m uv venv --quiet --seed --python 3.11 .venv
  fi
}

# MODULE ARGUMENTS...: starts it, detached from this session.
start() {
  mkdir -p "$jobs"
  exec 9>"$jobs/lock"
  flock --timeout 2 9 || die "a job runs here; launch/tpu.sh stop ends it"
  rm -f "$jobs/stopped"
  set_state running
  echo "-- $(date -u +%FT%TZ), commit $(<"$jobs/commit"): $*" >>"$jobs/log"
  setsid bash "${BASH_SOURCE[0]}" run "$@" </dev/null >>"$jobs/log" 2>&1 &
  say "started $1"
}

# MODULE ARGUMENTS...: the job, and afterwards the state in which it left.
run() {
  local pid status interrupted=
  cd "$root"
  echo $$ >"$jobs/group"
  "$python" -m "$@" &
  pid=$!
  echo "$pid" >"$jobs/pid"
  trap 'interrupted=1; kill -TERM "$pid" 2>/dev/null || true' TERM
  while true; do # a trap ends `wait` before the job has ended
    wait "$pid" && status=0 || status=$?
    kill -0 "$pid" 2>/dev/null || break
  done
  if [[ -e $jobs/stopped ]]; then
    set_state stopped
  elif [[ $interrupted ]]; then
    set_state interrupted
  elif ((status)); then
    set_state failed "$status"
  else
    set_state done
  fi
}

# SECONDS [kill]: SIGTERM, on which training saves and leaves; then waits.
stop() {
  local second
  if ! running; then
    say "no job runs ($(state))"
    return
  fi
  touch "$jobs/stopped"
  kill -TERM "$(<"$jobs/pid")" 2>/dev/null || true
  for ((second = 0; second < $1; second++)); do
    if ! running; then
      say "stopped"
      return
    fi
    sleep 1
  done
  [[ ${2-} ]] || die "still runs after $1 s; stop --kill does not wait for it"
  kill -KILL -- "-$(<"$jobs/group")" 2>/dev/null || true
  set_state stopped
  say "killed"
}

status() {
  say "$(state), commit $(head -c 12 "$jobs/commit"): $(tail -n 1 "$jobs/log" \
    2>/dev/null)"
}

installed() { cat "$jobs/commit"; }

# The last step that the job spoke of.
reached() {
  grep --only-matching --extended-regexp '^(train|step) [0-9]+' "$jobs/log" |
    tail -n 1 || true
}

# LINES [-F]
log() { tail -n "$@" "$jobs/log"; }

"$@"
