#!/usr/bin/env bash
# What a pod of launch/gke.sh does: python -m MODULE ARGUMENTS. After a SIGTERM
# training saves and leaves with status 0, which Kubernetes would take for its
# end; status 143 has the JobSet start it again, where it goes on.
set -euo pipefail

(($#)) || { echo "error: bash launch/pod.sh MODULE ARGUMENTS" >&2; exit 2; }
told=''
"${PYTHON:-python3}" -m "$@" &
child=$!
trap 'told=1; kill -TERM "$child" 2>/dev/null || true' TERM INT
wait "$child" && status=0 || status=$?
while kill -0 "$child" 2>/dev/null; do # a signal ends `wait` early
  wait "$child" && status=0 || status=$?
done
[[ -z $told ]] || ((status)) || status=143
exit "$status"
