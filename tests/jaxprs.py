"""Reading traced programs."""

import jax


def operations(jaxpr):
  """All lines of a program, those of its loops and branches included."""
  for line in jaxpr.eqns:
    yield line
    for value in jax.tree.leaves(list(line.params.values())):
      inner = getattr(value, "jaxpr", value)
      if hasattr(inner, "eqns"):
        yield from operations(inner)


def repeated(jaxpr):
  """The lines that some loop repeats."""
  for line in operations(jaxpr):
    if line.primitive.name == "scan":
      yield from operations(line.params["jaxpr"].jaxpr)
    if line.primitive.name == "while":
      yield from operations(line.params["body_jaxpr"].jaxpr)
