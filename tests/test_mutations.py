"""The table of mutations names lines that are there."""

from tests.mutations import MUTATIONS, ROOT, Mutation


def test_each_mutation_has_one_line_and_tests_that_exist():
  wrong = []
  for row in map(Mutation._make, MUTATIONS):
    text = (ROOT / "unifluid_jax" / row.file).read_text(encoding="utf-8")
    if text.count(row.old) != 1 or row.new == row.old:
      wrong.append(
        f"{row.file}: {row.old!r} occurs {text.count(row.old)} times"
      )
    for argument in row.tests.split():
      file = argument.partition("::")[0]
      if not argument.startswith("-") and not (ROOT / "tests" / file).exists():
        wrong.append(f"{row.file}: {row.old!r}: no tests/{file}")
  assert not wrong
