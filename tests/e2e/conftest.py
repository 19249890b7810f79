"""One prepared data set and one trained run, made once a session."""

import pytest

from tests.e2e.commands import Workspace, command


@pytest.fixture(scope="session")
def space(tmp_path_factory):
  w = Workspace(tmp_path_factory.mktemp("space"))
  command("prepare", *w.config())
  command("main", *w.config("vae"), f"--workdir={w.vae}")
  command("encode", *w.config())
  w.said = command("main", *w.config(), f"--workdir={w.run}").stdout
  return w
