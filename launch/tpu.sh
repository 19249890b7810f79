#!/usr/bin/env bash
set -euo pipefail

usage() {
  cat <<'TEXT'
Trains and evaluates on a Cloud TPU slice, by gcloud.

  launch/tpu.sh COMMAND [FLAGS] [-- ARGUMENTS]

  create    requests the slice (a queued resource), waits until it is there
  setup     copies the committed state of this checkout to all workers and
            installs it there
  train     starts python -m unifluid_jax.main ARGUMENTS on all workers, then
            leaves; the same command goes on where a run was interrupted
  evaluate  the same for unifluid_jax.evaluate, on another slice than train's
  encode, prepare
            the same for unifluid_jax.encode and .prepare, with a data.root
            that is mounted on all workers
  status    of the slice, and of the job on every worker
  log       the job's last lines on one worker
  stop      SIGTERM: training saves a checkpoint and leaves
  delete    gives the slice back; what lies on its disks is lost

  --name=NAME      of the slice (or TPU_NAME)
  --zone=ZONE      (or ZONE)
  --project=ID     (or PROJECT_ID; default: gcloud's own setting)
  --type=TYPE      create, --retry: v6e-256, v5p-128, v5litepod-16, ... (or
                   ACCELERATOR_TYPE)
  --runtime=NAME   of the machines' image (or RUNTIME_VERSION; default by TYPE)
  --spot           create, --retry: may be taken away at any time, costs less
  --retry          what starts a job: stays, and starts again what failed or was
                   interrupted; recreates a slice that was taken away. Gives
                   up after three failures at the same step
  --worker=N       log: default 0
  --lines=N        log: default 40
  --follow         log: goes on
  --kill           stop: SIGKILL where a minute of SIGTERM did not do

More flags for gcloud: CREATE_FLAGS (--reserved, --network=NAME, ...) and
SSH_FLAGS (--internal-ip, ...). POLL_SECONDS (30) lie between two looks.

  export ZONE=us-east5-a PROJECT_ID=... BUCKET=...
  launch/tpu.sh create --name=train --type=v5p-128 --spot
  launch/tpu.sh setup --name=train
  launch/tpu.sh train --name=train --type=v5p-128 --spot --retry -- \
      --config=configs/unified_2b.py --workdir=gs://$BUCKET/run
and beside it, on a slice "eval" made in the same way,
  launch/tpu.sh evaluate --name=eval -- \
      --config=configs/unified_2b.py --workdir=gs://$BUCKET/run

Tested with a stand-in for gcloud; not yet run on a pod by us.
TEXT
}

say() { echo "$*" >&2; }

die() { say "error: $1" && exit "${2:-1}"; }

wrong() { die "$1; launch/tpu.sh --help lists all" 2; }

quiet_gcloud() { # GROUP VERB ...
  local words=(gcloud compute tpus "$@" "--zone=$zone")
  [[ -z $project ]] || words+=("--project=$project")
  "${words[@]}"
}

tell_gcloud() {
  say "+ gcloud compute tpus $(printf '%q ' "$@")"
  quiet_gcloud "$@"
}

# WORKER COMMAND...: what launch/worker.sh does there. Status 3: not set up.
on() {
  local worker=$1 command flags
  shift
  printf -v command '%q ' bash unifluid_jax/launch/worker.sh "$@"
  command="test -e unifluid_jax/runs/launch/commit || { echo 'error: not set\
 up: launch/tpu.sh setup' >&2; exit 3; }; $command"
  read -ra flags <<<"--worker=$worker ${SSH_FLAGS-}"
  quiet_gcloud tpu-vm ssh "$name" "${flags[@]}" "--command=$command"
}

# State of the request: ACTIVE is a slice that can be used.
slice() {
  local answer
  if answer=$(quiet_gcloud queued-resources describe "$name" \
    --format='value(state.state)' 2>&1); then
    tail -n 1 <<<"$answer"
  elif [[ $answer == *NOT_FOUND* ]]; then
    echo ABSENT
  else
    say "$answer"
    echo UNKNOWN
  fi
}

create() {
  local now last='' flags
  read -ra flags <<<"$tier ${CREATE_FLAGS-}"
  flags+=("--accelerator-type=$type" "--runtime-version=$runtime")
  tell_gcloud queued-resources create "$name" --node-id="$name" \
    "${flags[@]}" || return
  while now=$(slice); do
    [[ $now == "$last" ]] || say "$name: $now"
    last=$now
    case $now in
      ACTIVE) return ;;
      FAILED | SUSPENDED | ABSENT)
        say "error: no slice: $now; launch/tpu.sh delete, then create"
        return 1 ;;
    esac
    sleep "$poll"
  done
}

head_commit() {
  local changes
  changes=$(git -C "$root" status --porcelain) || die "$root: no git checkout"
  [[ -z $changes ]] || die "not committed, workers would not get it: \
$(awk '{ print $NF }' <<<"$changes" | paste -s -d ' ' -)"
  git -C "$root" rev-parse HEAD
}

setup() { # COMMIT
  local folder flags
  folder=$(mktemp -d)
  git -C "$root" archive --format=tar.gz --output="$folder/unifluid_jax.tar.gz" \
    "$1" || return
  read -ra flags <<<"--worker=all ${SSH_FLAGS-}"
  tell_gcloud tpu-vm scp "$folder/unifluid_jax.tar.gz" "$name:" \
    "${flags[@]}" || return
  rm -r "$folder"
  # The worker's part of this script comes out of the archive itself.
  tell_gcloud tpu-vm ssh "$name" "${flags[@]}" "--command=tar -xzOf \
unifluid_jax.tar.gz launch/worker.sh >worker.sh && bash worker.sh install $1"
}

start() { # MODULE ARGUMENTS...: on all workers or on none
  on all idle && on all start "$@" --coordinator=auto
}

job() { # MODULE ARGUMENTS...
  case $command:" $* " in # the workers share no disk
    encode:*" --config.data.root=/"* | prepare:*" --config.data.root=/"*) ;;
    encode:* | prepare:*) wrong "ARGUMENTS need --config.data.root=/FOLDER, \
mounted on all workers" ;;
    *" --workdir=gs://"* | *" --workdir=/"*) ;;
    *) wrong "ARGUMENTS need --workdir=gs://BUCKET/RUN, or a folder that is \
mounted on all workers" ;;
  esac
  start "$@"
  say "started; launch/tpu.sh log --name=$name --follow shows how it goes"
  [[ -z $retry ]] || keep "$@"
}

# Watches a started job; starts it again until it is done, stopped or broken.
keep() { # MODULE ARGUMENTS...
  local commit word reached last=never same=0
  commit=$(on 0 installed)
  while sleep "$poll"; do
    case $(slice) in
      ACTIVE) ;;
      SUSPENDED | FAILED | ABSENT)
        say "$name was taken away; requesting it again"
        delete || true # ABSENT
        create && setup "$commit" && start "$@" || say "again in $poll s"
        continue ;;
      *) continue ;;
    esac
    word=$(on 0 state) || { (($? == 3)) && word=none || continue; }
    case $word in
      running) continue ;;
      done | stopped)
        say "$name: $word"
        return ;;
      failed*)
        reached=$(on 0 reached) || continue
        [[ $reached == "$last" ]] && ((++same)) || same=0
        ((same < 2)) || die "$name: $word, thrice here; see launch/tpu.sh log"
        last=$reached ;;
    esac
    say "$name: $word; starting again"
    [[ $word != none ]] || setup "$commit" || continue
    # Other workers may still wait for one that is gone.
    on all stop 60 kill && start "$@" || say "again in $poll s"
  done
}

status() {
  local now
  now=$(slice)
  [[ $now != UNKNOWN ]] || exit 1
  echo "$name: $now"
  [[ $now != ACTIVE ]] || on all status
}

delete() { tell_gcloud queued-resources delete "$name" --force --quiet; }

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
name=${TPU_NAME-} zone=${ZONE-} project=${PROJECT_ID-}
type=${ACCELERATOR_TYPE-} runtime=${RUNTIME_VERSION-} tier='' retry=''
worker=0 lines=40 follow='' patience=600 poll=${POLL_SECONDS:-30}

command=${1-}
case $command in
  '') wrong "no command" ;;
  -h | --help) usage && exit ;;
  create | setup | train | evaluate | encode | prepare) ;;
  status | log | stop | delete) ;;
  *) wrong "unknown command $command" ;;
esac
while shift && (($#)); do
  case $1 in
    --name=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --runtime=*) runtime=${1#*=} ;;
    --spot) tier=$1 ;;
    --retry) retry=1 ;;
    --worker=*) worker=${1#*=} ;;
    --lines=*) lines=${1#*=} ;;
    --follow) follow=-F ;;
    --kill) patience='60 kill' ;;
    -h | --help) usage && exit ;;
    --) break ;;
    *) wrong "unknown flag $1 (what is for Python comes after --)" ;;
  esac
done
case $command:${1-} in
  train:-- | evaluate:-- | encode:-- | prepare:--) shift ;;
  train:* | evaluate:* | encode:* | prepare:*)
    wrong "$command needs -- ARGUMENTS" ;;
  *:--) wrong "$command takes no ARGUMENTS" ;;
esac
[[ -n $name ]] || wrong "no slice: --name=NAME or TPU_NAME"
[[ -n $zone ]] || wrong "no zone: --zone=ZONE or ZONE"
if [[ $command == create || -n $retry ]]; then
  [[ -n $type ]] || wrong "no accelerator: --type=TYPE or ACCELERATOR_TYPE"
  case $runtime:$type in
    :v6e-*) runtime=v2-alpha-tpuv6e ;;
    :v5p-*) runtime=v2-alpha-tpuv5 ;;
    :v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
    :v[234]-*) runtime=tpu-ubuntu2204-base ;;
    :*) wrong "no image is known for $type: --runtime=NAME" ;;
  esac
fi
command -v gcloud >/dev/null || die "no gcloud: install the Google Cloud CLI"

case $command in
  create | status | delete) "$command" ;;
  setup)
    commit=$(head_commit)
    setup "$commit" ;;
  train) job unifluid_jax.main "$@" ;;
  evaluate | encode | prepare) job "unifluid_jax.$command" "$@" ;;
  log) on "$worker" log "$lines" $follow ;;
  stop) on all stop $patience ;;
esac
