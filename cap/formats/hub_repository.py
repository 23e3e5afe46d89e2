"""A repository on the Hugging Face Hub: who writes to it, who sees it, and one commit of a folder."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError

from cap.base.errors import InputError, RunError, first_line
from cap.base.network import HUB_ERROR, hub_is_reachable
from cap.runs.folder import EXPORT

log = logging.getLogger("cap.push")

_REFUSED = (401, 403)
# What a push of another format may have left beside the README.md; cap.load takes a folder with one model only.
_OF_A_MODEL = (".safetensors", ".onnx")
_OFFLINE_WAY = "dry_run=true writes the folder, to be uploaded elsewhere with `hf upload`"


def owner_of_token() -> str:
    """Ask the Hub whose token this is.

    Returns:
        The name of the user.

    Raises:
        InputError: If there is no token, the Hub does not know it, or the Hub cannot be reached.
    """
    if constants.HF_HUB_OFFLINE:
        raise InputError(f"a push needs the Hub, got HF_HUB_OFFLINE=1; unset it, or {_OFFLINE_WAY}")
    if get_token() is None:
        raise InputError(
            "a push needs a token that may write, got none; run `hf auth login`, or set HF_TOKEN to one from "
            f"{constants.ENDPOINT}/settings/tokens"
        )
    if not hub_is_reachable():
        raise InputError(
            f"a push needs the Hub, got no connection to {constants.ENDPOINT}; connect this machine, set HF_ENDPOINT "
            f"to where the Hub is, or {_OFFLINE_WAY}"
        )
    with _errors_of("the token"):
        return str(HfApi().whoami()["name"])


def upload(folder: Path, repository: str, *, private: bool, message: str) -> str:
    """Make a folder the content of a repository, in one commit; what it lacks stays, but for another model's weights.

    Args:
        folder: What is uploaded.
        repository: ``owner/name``; made where there is none.
        private: Who may see a new one. One that is there already keeps what it has.
        message: Of the commit.

    Returns:
        The address of the repository.

    Raises:
        InputError: If the token may not write there, or the repository is public and ``private`` says otherwise.
        RunError: If the Hub, or the way to it, fails.
    """
    api = HfApi()
    with _errors_of(repository):
        address = api.create_repo(repository, private=private, exist_ok=True)
        is_private = bool(api.repo_info(repository).private)
        if private and not is_private:
            raise InputError(
                f"private=true pushes where only its owners see it, got {address}, which is public; give private=false "
                "to push there all the same, or another repo"
            )
        if is_private and not private:
            log.info("%s is private and stays so; its settings on the Hub make it public", address)
        new = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        left = [name for name in api.list_repo_files(repository) if _is_of_a_model(name) and name not in new]
        commit = api.upload_folder(
            repo_id=repository, folder_path=folder, commit_message=message, delete_patterns=left or None
        )
    if left:
        log.info("removed from it, of an earlier push: %s", ", ".join(left))
    log.info("pushed %d files to %s (%s), commit %s", len(new), address, _visible(is_private), commit.oid[:8])
    return str(address)


def _visible(is_private: bool) -> str:
    return "private" if is_private else "public"


def _is_of_a_model(name: str) -> bool:
    return "/" not in name and (name == EXPORT or name.endswith(_OF_A_MODEL))


@contextmanager
def _errors_of(what: str) -> Iterator[None]:
    """Turn what the Hub answers into what is required and what to do."""
    try:
        yield
    except HfHubHTTPError as error:
        status, reason = error.response.status_code, first_line(error)
        if status in _REFUSED:
            raise InputError(
                f"a push needs a token that may write to the repository, got one that the Hub refuses for {what} "
                f"({reason}); make one with the role write at {constants.ENDPOINT}/settings/tokens"
            ) from error
        raise RunError(f"the Hub answered {status} for {what} ({reason}); nothing was lost here, push again") from error
    except HUB_ERROR as error:
        raise RunError(
            f"the connection to {constants.ENDPOINT} broke ({first_line(error)}); nothing was lost here, push again"
        ) from error


__all__ = ["owner_of_token", "upload"]
