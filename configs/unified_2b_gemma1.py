"""UniFluid 2B on Gemma-1 2B: the backbone comparison of paper table 2.

Paper's results: COCO FID 9.73, GenEval 0.52, CIDEr 38.02. Hardware as
unified_2b.py. Not yet run by us.
"""

from configs import unified_2b


def get_config(arg: str = ""):
  """`arg`: t2i_only, i2t_only, raster, lambda=X."""
  c = unified_2b.get_config(arg)
  c.name = c.name.replace("unified_2b", "unified_2b_gemma1")
  c.model.decoder.preset = "gemma1_2b"
  c.init.decoder = "weights/gemma1_2b"
  c.text.tokenizer = "data/gemma_tokenizer.model"
  return c
