#!/usr/bin/env bash
set -euo pipefail

usage() {
  cat <<'TEXT'
Trains, evaluates, encodes and prepares on TPU slices of a GKE cluster, as a
JobSet (jobset.x-k8s.io/v1alpha2).

  launch/gke.sh COMMAND [FLAGS] [-- ARGUMENTS]

  image     builds launch/Dockerfile as --image and pushes it
  train     starts python -m unifluid_jax.main ARGUMENTS in a pod per host, then
            leaves; the same command goes on where a run was interrupted
  evaluate, encode, prepare
            the same for unifluid_jax.evaluate, .encode and .prepare
  status    of the JobSet and its pods
  log       of one pod
  stop      deletes the JobSet; SIGTERM: training saves a checkpoint and leaves

  --name=NAME      of the JobSet
  --image=IMAGE    image, and what starts a job: REGISTRY/NAME:TAG
  --type=TYPE      v4, v5e, v5p, v6e or v7x
  --topology=AxB   of a slice: 16x16, 4x4x8, ...
  --slices=N       default 1; train is told --config.mesh.slices=N
  --chips=N        of a host (default 4)
  --spot           nodes that may be taken away at any time
  --restarts=N     how often the JobSet may start again (default 10)
  --volume=CLAIM:PATH
                   a PersistentVolumeClaim that all pods share; encode and
                   prepare need one, for config.data.root
  --queue=NAME     of Kueue
  --namespace=NAME default: kubectl's own
  --print          what starts a job: prints the manifest, starts nothing
  --xpk=CLUSTER    what starts a job: prints the command of XPK instead, for
                   clusters that XPK has made
  --slice=N, --worker=N, --follow
                   log: of which pod (default 0 and 0); goes on

  launch/gke.sh image --image=REGISTRY/unifluid_jax:1
  launch/gke.sh train --name=train --image=REGISTRY/unifluid_jax:1 \
      --type=v6e --topology=16x16 --slices=2 -- \
      --config=configs/unified_2b.py --workdir=gs://BUCKET/run

The cluster needs JobSet and a node pool per slice. Manifests are checked
against the schema of JobSet; not yet run on a cluster by us.
TEXT
}

say() { echo "$*" >&2; }

die() { say "error: $1" && exit "${2:-1}"; }

wrong() { die "$1; launch/gke.sh --help lists all" 2; }

number() { [[ $2 =~ ^[1-9][0-9]*$ ]] || wrong "--$1=$2: a number from 1"; }

# A scalar of YAML. Kubernetes would put variables in place of $(NAME).
quoted() {
  [[ $1 != *[[:cntrl:]]* ]] || die "control characters in $(printf '%q' "$1")"
  printf "'%s'" "${1//\'/\'\'}"
}

argument() { quoted "${1//\$(/\$\$(}"; }

# Sets accelerator, xpk_type and hosts of a slice.
describe() {
  local size chips=1 dimensions=3 per=1
  case $type in
    v4) accelerator=tpu-v4-podslice xpk_type=v4 per=2 ;;
    v5e) accelerator=tpu-v5-lite-podslice xpk_type=v5litepod dimensions=2 ;;
    v5p) accelerator=tpu-v5p-slice xpk_type=v5p per=2 ;;
    v6e) accelerator=tpu-v6e-slice xpk_type=v6e dimensions=2 ;;
    v7x) # which XPK names in ways that we could not check
      [[ -z $xpk ]] || wrong "--xpk knows v4, v5e, v5p and v6e"
      accelerator=tpu7x xpk_type='' ;;
    *) wrong "--type=$type: v4, v5e, v5p, v6e or v7x" ;;
  esac
  [[ $topology =~ ^[1-9][0-9]*(x[1-9][0-9]*){$((dimensions - 1))}$ ]] ||
    wrong "--topology=$topology: $type has $dimensions dimensions, as in \
$([[ $dimensions == 2 ]] && echo 4x4 || echo 2x2x2)"
  for size in ${topology//x/ }; do chips=$((chips * size)); done
  ((chips % per_host == 0)) ||
    wrong "--topology=$topology: $chips chips are no multiple of --chips=$per_host"
  hosts=$((chips / per_host))
  xpk_type+=-$((chips * per)) # v4 and v5p count cores
}

manifest() { # MODULE ARGUMENTS...
  local word
  echo 'apiVersion: jobset.x-k8s.io/v1alpha2'
  echo 'kind: JobSet'
  echo 'metadata:'
  echo "  name: $(quoted "$name")"
  [[ -z $namespace ]] || echo "  namespace: $(quoted "$namespace")"
  [[ -z $queue ]] || printf '  labels:\n    %s: %s\n' \
    kueue.x-k8s.io/queue-name "$(quoted "$queue")"
  # A slice is a node pool: no two of them share one.
  cat <<TEXT
  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: $restarts
  replicatedJobs:
  - name: slice
    replicas: $slices
    template:
      spec:
        parallelism: $hosts
        completions: $hosts
        completionMode: Indexed
        backoffLimit: 0
        template:
          spec:
            hostNetwork: true
            dnsPolicy: ClusterFirstWithHostNet
            restartPolicy: Never
            terminationGracePeriodSeconds: 600
            nodeSelector:
              cloud.google.com/gke-tpu-accelerator: $accelerator
              cloud.google.com/gke-tpu-topology: $topology
TEXT
  [[ -z $spot ]] || cat <<'TEXT'
              cloud.google.com/gke-spot: 'true'
            tolerations:
            - key: cloud.google.com/gke-spot
              operator: Equal
              value: 'true'
              effect: NoSchedule
TEXT
  [[ -z $volume ]] || cat <<TEXT
            volumes:
            - name: shared
              persistentVolumeClaim:
                claimName: $(quoted "${volume%%:*}")
TEXT
  cat <<TEXT
            containers:
            - name: job
              image: $(quoted "$image")
              resources:
                limits:
                  google.com/tpu: $per_host
TEXT
  [[ -z $volume ]] || cat <<TEXT
              volumeMounts:
              - name: shared
                mountPath: $(quoted "${volume#*:}")
TEXT
  echo '              args:'
  for word in "$@"; do echo "              - $(argument "$word")"; done
}

xpk_command() { # MODULE ARGUMENTS...
  local inner
  printf -v inner '%q ' bash launch/pod.sh "$@"
  printf '%q ' xpk workload create "--cluster=$xpk" "--workload=$name" \
    "--tpu-type=$xpk_type" "--num-slices=$slices" "--docker-image=$image" \
    "--max-restarts=$restarts" "--command=${inner% }"
  echo
}

job() { # MODULE ARGUMENTS...
  local text
  case $command:" $* " in
    encode:* | prepare:*)
      [[ -n $volume$xpk ]] || wrong "$command needs --volume=CLAIM:PATH" ;;
    *" --workdir=gs://"*) ;;
    *" --workdir=/"*)
      [[ -n $volume$xpk ]] || wrong "--workdir=/... needs --volume" ;;
    *) wrong "ARGUMENTS need --workdir=gs://BUCKET/RUN, or one on --volume" ;;
  esac
  [[ " $*" != *" --config.mesh.slices"* ]] ||
    wrong "--slices=N says --config.mesh.slices=N too: leave that out"
  [[ $command != train || $slices == 1 ]] ||
    set -- "$@" "--config.mesh.slices=$slices"
  set -- "$@" --coordinator=auto
  if [[ -n $xpk ]]; then
    xpk_command "$@"
    return
  fi
  text=$(manifest "$@")
  if [[ -n $print ]]; then
    echo "$text"
    return
  fi
  "${kubectl[@]}" apply --filename=- <<<"$text"
  say "started; launch/gke.sh log --name=$name --follow shows how it goes"
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
name='' image='' type='' topology='' slices=1 per_host=4 spot='' restarts=10
volume='' queue='' namespace='' print='' xpk='' slice=0 worker=0 follow=''

command=${1-}
case $command in
  '') wrong "no command" ;;
  -h | --help) usage && exit ;;
  image | train | evaluate | encode | prepare | status | log | stop) ;;
  *) wrong "unknown command $command" ;;
esac
while shift && (($#)); do
  case $1 in
    --name=*) name=${1#*=} ;;
    --image=*) image=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --topology=*) topology=${1#*=} ;;
    --slices=*) slices=${1#*=} ;;
    --chips=*) per_host=${1#*=} ;;
    --spot) spot=1 ;;
    --restarts=*) restarts=${1#*=} ;;
    --volume=*) volume=${1#*=} ;;
    --queue=*) queue=${1#*=} ;;
    --namespace=*) namespace=${1#*=} ;;
    --print) print=1 ;;
    --xpk=*) xpk=${1#*=} ;;
    --slice=*) slice=${1#*=} ;;
    --worker=*) worker=${1#*=} ;;
    --follow) follow=--follow ;;
    -h | --help) usage && exit ;;
    --) break ;;
    *) wrong "unknown flag $1 (what is for Python comes after --)" ;;
  esac
done
case $command:${1-} in
  image:-- | status:-- | log:-- | stop:--) wrong "$command takes no ARGUMENTS" ;;
  image:* | status:* | log:* | stop:*) ;;
  *:--) shift ;;
  *) wrong "$command needs -- ARGUMENTS" ;;
esac
number slices "$slices"
number chips "$per_host"
number restarts "$restarts"
[[ -z $volume || $volume =~ ^[a-z0-9.-]+:/.+ ]] ||
  wrong "--volume=$volume: CLAIM:PATH, as in data:/data"
[[ $command == image || $name =~ ^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$ ]] ||
  wrong "--name=$name: at most 40 small letters, digits and dashes"
kubectl=(kubectl)
[[ -z $namespace ]] || kubectl+=("--namespace=$namespace")

case $command in
  image) tool=docker ;;
  *) tool=kubectl ;;
esac
[[ -n $print$xpk ]] || command -v "$tool" >/dev/null ||
  die "no $tool: install it"
pods=jobset.sigs.k8s.io/jobset-name=$name

case $command in
  train | evaluate | encode | prepare)
    [[ -n $image ]] || wrong "no image: --image=REGISTRY/NAME:TAG"
    describe
    module=$command
    [[ $command != train ]] || module=main
    job "unifluid_jax.$module" "$@" ;;
  image)
    [[ -n $image ]] || wrong "no image: --image=REGISTRY/NAME:TAG"
    docker build --file="$root/launch/Dockerfile" --tag="$image" "$root"
    docker push "$image" ;;
  status)
    "${kubectl[@]}" get jobset "$name"
    "${kubectl[@]}" get pods "--selector=$pods" --output=wide ;;
  log)
    pods+=,jobset.sigs.k8s.io/job-index=$slice
    pods+=,batch.kubernetes.io/job-completion-index=$worker
    "${kubectl[@]}" logs "--selector=$pods" --tail=40 $follow ;;
  stop) "${kubectl[@]}" delete jobset "$name" --wait ;;
esac
