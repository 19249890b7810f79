"""UniFluid 0.7B, the size of the paper's lambda sweep (tables 1 and 3).

The paper does not give this model's shape. Ours: Gemma-2 blocks, 26 layers of
width 1152, MLP 6912, 4 query heads and 1 key/value head of 256: 0.698B
parameters without embeddings, from scratch. Paper's results: FID 8.39,
GenEval 0.52 (lambda 0.005). Hardware: 64 v5p or 128 v5e chips. Not yet run.
"""

from configs import unified_2b


def get_config(arg: str = ""):
  """`arg`: t2i_only, i2t_only, raster, lambda=X."""
  c = unified_2b.get_config(arg)
  c.name = c.name.replace("unified_2b", "unified_700m")
  c.model.decoder.preset = "gemma2_700m"
  # No published weights have this shape.
  c.init.decoder = "new"
  return c
