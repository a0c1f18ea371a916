"""Finished folders to the hub: what can be refused is refused early, and a failed upload costs nothing."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from hf_heads.core.errors import HeadsError
from hf_heads.io.checkpoints.card import name_in_card
from hf_heads.io.checkpoints.contents import checkpoint_files

_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN, with a token that may write"
_LATER = "try again later, or leave out --push-to-hub"

# Weights of an earlier upload under other names would stand beside the new ones, and might be the ones that load; its
# code is of no use.
_STALE = ["model*.safetensors", "model.safetensors.index.json", "modeling_heads_*.py", "heads_remote.py"]


def check_push(repo_id: str, token: str | None = None) -> None:
    """Refuse what could not be uploaded, before the work that would make it; asks the hub who is logged in.

    Args:
        repo_id: `NAME` or `OWNER/NAME`.
        token: of the hub; the stored one when None.

    Raises:
        HeadsError: the id is not valid, nobody is logged in, the token may not write, or the hub cannot be reached.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise HeadsError(f"cannot push to '{repo_id}': {error}") from None
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        raise HeadsError(f"cannot push to '{repo_id}': HF_HUB_OFFLINE is set; unset it, or leave out --push-to-hub")
    if not (token or huggingface_hub.get_token()):
        raise HeadsError(f"cannot push to '{repo_id}': nobody is logged in; {_LOG_IN}")
    try:
        who = huggingface_hub.HfApi(token=token).whoami()
    except HfHubHTTPError as error:
        refused = error.response.status_code in (401, 403)
        reason = f"the hub refuses {'the token' if refused else 'to answer'} ({_first_line(error)})"
        raise HeadsError(f"cannot push to '{repo_id}': {reason}; {_LOG_IN if refused else _LATER}") from None
    except Exception as error:  # whatever the network layer raises
        reason = f"the hub cannot be reached ({type(error).__name__})"
        raise HeadsError(f"cannot push to '{repo_id}': {reason}; {_LATER}") from None
    if _role(who) == "read":
        raise HeadsError(f"cannot push to '{repo_id}': the token of '{who.get('name')}' may only read; {_LOG_IN}")


def _role(who: dict[str, Any]) -> str | None:
    return ((who.get("auth") or {}).get("accessToken") or {}).get("role")


def push_folder(
    folder: Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    message: str | None = None,
    token: str | None = None,
) -> str:
    """Upload a finished checkpoint folder to the hub, into a model repository that is made if it is not there.

    The folder's model card is told under which name it goes from then on. Weights of earlier uploads that this one
    does not overwrite are removed in the same commit. Files that do not belong to a checkpoint stay here.

    Args:
        folder: the checkpoint.
        repo_id: `NAME` or `OWNER/NAME`.
        private: make the repository private, if it is made.
        revision: a branch, made if it is not there; the main one when None.
        message: of the commit.
        token: of the hub; the stored one when None.

    Returns:
        The repository's address.

    Raises:
        HeadsError: the upload failed; says by which command to try again, since the folder stays as it is.
    """
    api = huggingface_hub.HfApi(token=token)
    try:
        url = api.create_repo(repo_id, repo_type="model", private=private, exist_ok=True)
        name_in_card(folder, url.repo_id)
        if revision is not None:
            api.create_branch(url.repo_id, branch=revision, exist_ok=True)
        api.upload_folder(
            repo_id=url.repo_id,
            folder_path=folder,
            allow_patterns=[str(path) for path in checkpoint_files(folder)],
            revision=revision,
            commit_message=message or "Upload a checkpoint converted by hf-heads",
            delete_patterns=_STALE,
        )
    except Exception as error:  # of the hub, the network or the disk: the folder is complete whatever it was
        raise HeadsError(
            f"the upload to '{repo_id}' failed ({type(error).__name__}: {_first_line(error)}); "
            + upload_later(folder, repo_id, private=private, revision=revision)
        ) from error
    return str(url)


def upload_later(folder: Path, repo_id: str, *, private: bool = False, revision: str | None = None) -> str:
    """What to say when a finished folder did not reach the hub."""
    command = ["hf", "upload", repo_id, str(folder), "."]
    command += ["--private"] * private + ([] if revision is None else ["--revision", revision])
    return f"'{folder}' is complete, upload it with `{shlex.join(command)}`"


def _first_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
