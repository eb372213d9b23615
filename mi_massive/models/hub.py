"""A model of the Hugging Face hub, in the cache that transformers uses too.

The cache is asked first, without a call to the hub, whatever the offline variables say; only a
model that is not there completely is downloaded, and then only what is needed to load it. Variables
such as HF_HOME, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE mean what they always mean.
"""

import errno
from fnmatch import fnmatch
from pathlib import Path

import httpx
from huggingface_hub import (
    HfApi,
    snapshot_download,  # pyright: ignore[reportUnknownVariableType]
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from mi_massive.models.folder import no_weights_error, require_model_folder

_WEIGHTS = ("model.safetensors", "model-*.safetensors")
_WANTED = (*_WEIGHTS, "*.json", "*.model", "*.txt", "*.jinja")
# Subfolders hold other formats of the same weights (onnx, original), never what transformers loads.
_UNWANTED = ("*/*",)


class HubModelNotFoundError(ValueError):
    """The hub answered, and it shows no model of that name."""


def hub_folder(repo_id: str, *, revision: str | None, trust_remote_code: bool) -> Path:
    """Return the snapshot folder of a hub model; its name is the commit hash.

    Args:
        repo_id: `owner/name`, or a bare name for the few old models that have no owner.
        revision: Branch, tag or commit; None is the main branch, as the cache last saw it.
        trust_remote_code: Whether to fetch the model's own Python files as well.

    Raises:
        ValueError: If there is no such model or revision, or access to it must be asked for.
        ConnectionError: If it is not in the cache and the hub cannot be reached.
    """
    cached = _cached_snapshot(repo_id, revision=revision)
    lacking = "nothing of it"
    if cached is not None:
        problem = _problem(cached, trust_remote_code=trust_remote_code)
        if problem is None:
            return cached
        lacking = f"an incomplete copy ({problem})"
    folder = _download(
        repo_id, revision=revision, trust_remote_code=trust_remote_code, lacking=lacking
    )
    require_model_folder(folder, trust_remote_code=trust_remote_code)
    return folder


def _cached_snapshot(repo_id: str, *, revision: str | None) -> Path | None:
    """The snapshot that the cache holds, complete or not, found without a call to the hub.

    Differs: not `snapshot_download(local_files_only=True)`, which refuses what transformers itself
    downloaded file by file when another file of the repository was never needed.
    """
    config = try_to_load_from_cache(repo_id, "config.json", revision=revision)
    return Path(config).parent if isinstance(config, str) else None


def _problem(folder: Path, *, trust_remote_code: bool) -> str | None:
    """What is missing in a snapshot, or None where it can be loaded."""
    try:
        require_model_folder(folder, trust_remote_code=trust_remote_code)
    except ValueError as error:
        return str(error)
    return None


def _download(repo_id: str, *, revision: str | None, trust_remote_code: bool, lacking: str) -> Path:
    """Download what is needed to load the model; every failure is one sentence."""
    code = ["*.py"] if trust_remote_code else []
    at = "" if revision is None else f" at revision {revision!r}"
    try:
        # Asked first because snapshot_download answers an unreachable hub with what it has.
        files = _file_names(repo_id, revision)
        if not any(fnmatch(name, pattern) for name in files for pattern in _WEIGHTS):
            raise no_weights_error(
                f"hub model {repo_id}", files, load=repo_id, save=f"./{repo_id.split('/')[-1]}"
            )
        folder = snapshot_download(
            repo_id,
            revision=revision,
            allow_patterns=[*_WANTED, *code],
            ignore_patterns=list(_UNWANTED),
        )
    except GatedRepoError as error:
        raise ValueError(
            f"hub model {repo_id!r} must be open to you, got a gated model; accept its terms at "
            f"https://huggingface.co/{repo_id}, then run `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise HubModelNotFoundError(
            f"hub model {repo_id!r} must exist, got none of that name that you can see; check the "
            "spelling, and run `hf auth login` if it is private"
        ) from error
    except RevisionNotFoundError as error:
        raise ValueError(
            f"revision of hub model {repo_id!r} must be a branch, tag or commit of it, got "
            f"{revision!r}; see https://huggingface.co/{repo_id}/commits/main"
        ) from error
    except OfflineModeIsEnabled as error:
        raise _unreachable(repo_id + at, lacking, "HF_HUB_OFFLINE is set") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, httpx.HTTPError) as error:
        cause = error.__cause__ or error
        reason = str(cause).splitlines()[0] if str(cause) else type(cause).__name__
        raise _unreachable(repo_id + at, lacking, reason) from error
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise OSError(
            errno.ENOSPC,
            f"the hub cache must have room for {repo_id}, got a full disk; free some space, or set "
            "HF_HOME to a folder on a larger disk",
        ) from error
    return Path(folder)


def _file_names(repo_id: str, revision: str | None) -> list[str]:
    """The files of a hub model, asked of the hub itself."""
    return [
        file.rfilename for file in HfApi().model_info(repo_id, revision=revision).siblings or ()
    ]


def _unreachable(model: str, lacking: str, reason: str) -> ConnectionError:
    return ConnectionError(
        f"hub model {model} must be in the cache or on a hub that can be reached, got {lacking} in "
        f"the cache and no hub ({reason}); connect, or give the path of a local folder"
    )
