"""Uploads an exported folder to the Hugging Face Hub."""

from typing import Any

# Files of an earlier upload that an export may have under other names, or not
# at all: shards, parts for other libraries, licences of other data.
_REPLACED = (
  "*.safetensors", "*.safetensors.index.json", "tokenizer.model", "hf/*",
  "licenses/*",
)  # fmt: skip


def check(repository: str) -> None:
  """Whether an upload can begin: the package, the name and a login.

  Raises:
    ValueError: says what is missing.
  """
  owner, _, name = repository.partition("/")
  if not owner or not name or "/" in name:
    raise ValueError(f"--push={repository}: give OWNER/NAME")
  try:
    _api().whoami()
  except ImportError as error:
    raise ValueError(
      "--push needs the package huggingface_hub: "
      "pip install 'unifluid_jax[hub]'"
    ) from error
  except Exception as error:  # of whatever kind: the library is not ours
    raise ValueError(
      f"--push={repository}: the Hub does not know you "
      f"({_first_line(error)}): log in with `hf auth login`"
    ) from error


def push(folder: str, repository: str, private: bool = False) -> str:
  """Creates the repository if need be, and replaces the model that it holds.

  Args:
    folder: exported.
    repository: OWNER/NAME.
    private: whether one that is created is.

  Returns:
    Where it is now.

  Raises:
    ValueError: it failed; the folder is left as it is.
  """
  try:
    api = _api()
    made = api.create_repo(repository, private=private, exist_ok=True)
    api.upload_folder(
      folder_path=folder,
      repo_id=repository,
      commit_message="Exported by unifluid_jax",
      delete_patterns=list(_REPLACED),
    )
  except Exception as error:  # of whatever kind: the library is not ours
    raise ValueError(
      f"--push={repository} failed ({_first_line(error)}); {folder} is "
      f"written: try again with `hf upload {repository} {folder}`"
    ) from error
  return str(made)


def _api() -> Any:
  from huggingface_hub import HfApi

  return HfApi()


def _first_line(error: Exception) -> str:
  lines = str(error).strip().splitlines() or [""]
  return f"{type(error).__name__}: {lines[0][:200]}"
