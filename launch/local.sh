#!/usr/bin/env bash
set -euo pipefail

usage() {
  cat <<'TEXT'
Trains, evaluates, encodes or prepares in several processes of this machine.

  launch/local.sh train|evaluate|encode|prepare [FLAGS] -- ARGUMENTS

  --processes=N    default 2
  --cpu_devices=K  each process has K CPU devices, whatever else there is

Without --cpu_devices, N processes share the NVIDIA GPUs of the machine (or
those of CUDA_VISIBLE_DEVICES) equally. One process uses all devices by itself
and needs no launcher.

SIGTERM or Ctrl-C: training saves a checkpoint and leaves; the same command
goes on. PYTHON names the interpreter (default .venv/bin/python, else python3).

  launch/local.sh train --processes=8 -- \
      --config=configs/unified_2b.py --workdir=runs/2b
TEXT
}

die() { # MESSAGE [STATUS]
  echo "error: $1" >&2
  exit "${2:-1}"
}

wrong() { die "$1; launch/local.sh --help lists all" 2; }

gpus() { # their ids in one line
  if [[ -n ${CUDA_VISIBLE_DEVICES-} ]]; then
    tr , ' ' <<<"$CUDA_VISIBLE_DEVICES"
  elif command -v nvidia-smi >/dev/null; then
    nvidia-smi --query-gpu=index --format=csv,noheader | paste -s -d ' ' -
  fi
}

# Gives process I of N its devices.
assign() {
  local ids share
  if [[ -n $cpus ]]; then
    export JAX_PLATFORMS=cpu
    export XLA_FLAGS="${XLA_FLAGS-} \
--xla_force_host_platform_device_count=$cpus"
  elif ((${#all[@]})); then
    share=$((${#all[@]} / processes))
    printf -v ids '%s,' "${all[@]:$1 * share:share}"
    export CUDA_VISIBLE_DEVICES=${ids%,}
  fi
}

# Until all have left; if one fails, the others cannot go on without it.
wait_for_all() {
  local status=0 code index grace=50
  while ((${#pids[@]})); do
    sleep .2
    for index in "${!pids[@]}"; do
      kill -0 "${pids[$index]}" 2>/dev/null && continue
      wait "${pids[$index]}" && code=0 || code=$?
      ((status)) || status=$code
      unset "pids[$index]"
    done
    if ((status && ${#pids[@]} && --grace == 0)); then
      kill -KILL "${pids[@]}"
    fi
  done
  return "$status"
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
[[ -n ${PYTHON-} || -x $python ]] || python=python3
processes=2 cpus=''

case ${1-} in
  -h | --help) usage && exit ;;
  train) module=unifluid_jax.main ;;
  evaluate | encode | prepare) module=unifluid_jax.$1 ;;
  *) wrong "unknown command ${1:-(none)}" ;;
esac
shift
while (($#)); do
  case $1 in
    --processes=*) processes=${1#*=} ;;
    --cpu_devices=*) cpus=${1#*=} ;;
    -h | --help) usage && exit ;;
    --) break ;;
    *) wrong "unknown flag $1 (what is for Python comes after --)" ;;
  esac
  shift
done
(($#)) || wrong "no -- ARGUMENTS"
shift
[[ $processes =~ ^[1-9][0-9]*$ ]] || wrong "--processes=$processes: a number"
[[ -z $cpus || $cpus =~ ^[1-9][0-9]*$ ]] || wrong "--cpu_devices=$cpus: a number"
all=()
[[ -n $cpus ]] || read -ra all <<<"$(gpus)"
((${#all[@]} % processes == 0)) ||
  wrong "--processes=$processes do not divide ${#all[@]} GPUs"
command -v "$python" >/dev/null || die "no $python: set PYTHON"

port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("", 0))
print(s.getsockname()[1])')
pids=()
trap 'kill -TERM "${pids[@]}" 2>/dev/null || true' TERM INT
for ((i = 0; i < processes; i++)); do
  (
    assign "$i"
    exec "$python" -m "$module" "$@" --coordinator="localhost:$port" \
      --num_processes="$processes" --process_id="$i"
  ) &
  pids+=($!)
done
wait_for_all
