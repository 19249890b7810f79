"""UniFluid 2B: Gemma-2 2B, SigLIP So400m/14, SD f8 VAE, 256 x 256 images.

  python -m unifluid_jax.main --config=configs/unified_2b.py \
      --workdir=gs://BUCKET/run --coordinator=auto

Paper §4.1: batch 2048, 1M steps, lambda 0.005, random order to 300k,
annealed to raster at 600k. Hardware: a pod of at least 64 v5p or 256 v5e
chips (state 42 GB with fp32 moments). Paper's results: COCO FID 7.20, GenEval
0.59, CIDEr 40.91. Not trained by us: it needs WebLI-scale data, which is not
public; give your own as config.data.train. Its step, generation and answers
run on random inputs on one H200 (MFU .48, 3 images a second) and are
compiled for TPU slices: docs/results.md.
"""

from configs.base import ablate, base, source


def get_config(arg: str = ""):
  """`arg`: t2i_only, i2t_only, raster, lambda=X."""
  c = base()
  c.name = "unified_2b"
  coco = "coco/annotations/captions_val2014.json:coco/val2014"
  c.data.train = dict(pairs=source("pairs"))
  c.data.eval = dict(coco=source(coco, format="coco"))
  c.eval.split = "coco"
  c.text.tokenizer = "data/gemma2_tokenizer.model"
  # Open. Both tasks then take 384 positions, three tiles of a TPU: 128 + 256,
  # and 256 + 65 + the 63 tokens of an answer that are fed.
  c.text.update(prompt=128, prefix=65, suffix=64)
  # On other devices: plain, or triton on GPUs.
  c.model.attention = "mosaic"
  c.model.remat = "dots"
  c.model.vae_path = "weights/sd_f8_vae"
  # python -m unifluid_jax.weights --from=gemma:... --to=weights/gemma2_2b
  c.init.update(
    decoder="weights/gemma2_2b",
    vit="weights/siglip_so400m_14",
    **dict.fromkeys(("projector", "image", "head"), "new"),
  )
  # On 256 v5e or v6e chips fsdp=32 is faster: docs/results.md.
  c.mesh = dict(slices=1, data=-1, fsdp=16, tensor=1)
  ablate(c, arg)
  return c
