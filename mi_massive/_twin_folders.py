"""Where a twin's checkpoint and curves lie: in a folder named by all that they depend on."""

import hashlib
import json
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import torch

from mi_massive._code import code_digest
from mi_massive._twin_corpora import Corpus
from mi_massive._twin_training import CHECKPOINT
from mi_massive.records import package_versions
from mi_massive.twin_arms import TWIN_ARMS
from mi_massive.twin_runs import TwinsConfig

_TRAINED_BY: Final = "mi_massive._twin_training"
"""Module whose code decides what a twin becomes, with all that it imports."""


def run_folder(
    folder: Path,
    config: TwinsConfig,
    arm: str,
    seed: int,
    corpus: Corpus,
    dtype: torch.dtype,
) -> Path:
    """Where a run is kept: named by everything that its numbers depend on but the machine."""
    recipe = asdict(config)
    for other_runs in ("arms", "n_seeds", "corpus"):
        del recipe[other_runs]
    others = {name: v for name, v in package_versions().items() if name != "mi-massive"}
    asked = _digest([recipe, asdict(TWIN_ARMS[arm]), seed, corpus.digest, str(dtype)])
    code = _digest([others, code_digest(_TRAINED_BY)])
    return folder / f"{corpus.name}-{arm}-{seed}-{asked}-{code}"


def trained_folder(
    folder: Path, config: TwinsConfig, arm: str, seed: int, corpus: Corpus, dtype: torch.dtype
) -> Path:
    """Where a checkpoint of this run lies: by the code that is here, else the newest by other code.

    Raises:
        FileNotFoundError: If there is none.
    """
    own = run_folder(folder, config, arm, seed, corpus, dtype)
    if (own / CHECKPOINT).exists():
        return own
    asked = own.name.rpartition("-")[0]
    others = [f for f in folder.glob("*") if f.name.rpartition("-")[0] == asked]
    kept = [f for f in others if (f / CHECKPOINT).exists()]
    if not kept:
        raise FileNotFoundError(
            f"{folder} must hold a twin {arm}, seed {seed}, trained with this config and dtype, "
            "got none; train it with train_twins"
        )
    newest = max(kept, key=lambda f: (f / CHECKPOINT).stat().st_mtime)
    warnings.warn(
        f"the twin in {newest} was trained by other code or versions than these; train_twins would "
        "train it anew",
        stacklevel=3,
    )
    return newest


def _digest(depends: list[Any]) -> str:
    return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:10]
