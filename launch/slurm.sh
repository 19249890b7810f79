#!/usr/bin/env bash
# Trains on a GPU cluster under Slurm, a process a GPU:
#
#   sbatch --nodes=4 launch/slurm.sh --config=configs/unified_2b.py \
#       --config.model.attention=triton --workdir=DIR
#
# DIR is on a disk of all nodes. What sbatch says takes the place of what is
# said below (--ntasks-per-node and --gpus-per-node must agree). Evaluation:
#
#   sbatch --export=ALL,MODULE=unifluid_jax.evaluate launch/slurm.sh ...
#
# and so do unifluid_jax.encode and unifluid_jax.prepare, with data.root in DIR.
#
# Five minutes before the time limit, and when the job is preempted, every
# process gets a SIGTERM: training saves and leaves. A preempted job is queued
# again by itself, any other goes on where the same command is submitted again.
# PYTHON names the interpreter (default .venv/bin/python). Not yet run by us on
# a cluster.
#
#SBATCH --job-name=unifluid_jax
#SBATCH --nodes=1
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail

(($#)) || { echo "error: no arguments; the file itself tells how" >&2; exit 2; }
[[ -n ${SLURM_JOB_ID-} ]] ||
  { echo "error: not under Slurm: sbatch launch/slurm.sh ..." >&2; exit 1; }
# jax finds coordinator, index and GPU of a process in Slurm's environment.
exec srun --kill-on-bad-exit=1 "${PYTHON:-.venv/bin/python}" -m \
  "${MODULE:-unifluid_jax.main}" "$@" --coordinator=auto
