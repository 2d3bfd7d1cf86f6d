"""Files of a model hub: from its local cache, else from the hub; never a pickle; quick to say that both are away."""

from __future__ import annotations

import json
import re
from typing import Any

from torch import Tensor

from vitcore import storage
from vitcore.errors import RequestError
from vitcore.models.pretrained import read_safetensors

_REPOSITORY = re.compile(r"[\w.-]+(/[\w.-]+)?")


def fetch(repository: str, file: str, otherwise: str) -> str:
    """Path of a file of a repository: in the local cache, put there from the hub where it is not.

    Args:
        repository: ``ORG/NAME``.
        file: its name in the repository.
        otherwise: what to do when it cannot be had, to end the error's sentence.
    Raises:
        RequestError: the repository has no such file, or neither the cache nor the hub can be asked.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    if not _REPOSITORY.fullmatch(repository):
        raise RequestError(f"{repository!r} is no repository of the hub; give ORG/NAME")
    try:
        return str(hf_hub_download(repository, file, local_files_only=True))
    except LocalEntryNotFoundError:
        pass
    try:
        get_hf_file_metadata(hf_hub_url(repository, file))  # does not retry, as the download does
        return str(hf_hub_download(repository, file))
    except EntryNotFoundError:
        raise RequestError(f"{repository} holds no {file}, and no pickle is read in its place; {otherwise}") from None
    except Exception as error:  # the hub's client passes on those of whatever HTTP library it is built on
        raise RequestError(
            f"{file} of {repository} is not in the hub's local cache and cannot be had from the hub "
            f"({type(error).__name__}); {otherwise}"
        ) from None


def fetch_tensors(repository: str, file: str, otherwise: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file of a repository; see `fetch`."""
    return read_safetensors(fetch(repository, file, otherwise))


def read_json(url: str) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        RequestError: there is no such file, or it holds something else.
    """
    try:
        tree = json.loads(storage.read(url))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise RequestError(f"there is no file {url}") from None
    except ValueError:
        raise RequestError(f"{url} is not JSON; copy it again") from None
    if not isinstance(tree, dict):
        raise RequestError(f"{url} does not hold an object; copy it again")
    return tree
