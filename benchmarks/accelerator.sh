#!/usr/bin/env bash
# What docs/results.md still has to learn of one GPU, in one call:
#
#   bash benchmarks/accelerator.sh [CONFIG [FLAG ...]] | tee accelerator.txt
#
# CONFIG defaults to configs/unified_2b.py. Weights and inputs are random; a
# program that does not fit says so, and the rest go on. A rehearsal on a CPU:
#
#   bash benchmarks/accelerator.sh configs/debug.py --config.model.head.width=128
#
# Goals on an H200: 32 + 32 examples at MFU .50; 64 rows of answers at 300 a
# second. Of drawing: seconds at 100 steps less those at 4, by 96 and by the
# tokens of an image, are those of a head step (45 us at 1 and 32 images, 120 at
# 256); what is left at 4 steps, by tokens, is the decoder's (2.2, 3, 10 ms).
set -euo pipefail

config=${1:-configs/unified_2b.py}
flags=("--config=$config" --config.mesh.fsdp=1 "${@:2}")
training=(--config.optim.mu_dtype=bfloat16 --config.model.remat=dots)
gpu='import jax; raise SystemExit(jax.default_backend() != "gpu")'
if python -c "$gpu"; then
  training+=(--config.model.attention=triton)
fi

failed=0
run() { python -m "$@" || failed=1; }

run benchmarks.device "${flags[@]}" "${training[@]}" --what=train \
  --calls=5 --variant=batch.t2i=32,batch.i2t=32
run benchmarks.device "${flags[@]}" --what=answer --rows=64 --calls=3
run benchmarks.generation "${flags[@]}" --steps=100,4 \
  --batches=1,32,256 --calls=1
run benchmarks.generation "${flags[@]}" --config.model.head.fused \
  --steps=100 --batches=1,256 --calls=1
exit $failed
