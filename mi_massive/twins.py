"""Train small models that differ in their position encoding alone, and watch massive values appear.

Answers whether rotary position embeddings cause the concentration of queries and keys (C3), where
in the frequencies it lies (C8), and when in training and in which layer it appears (C9), with the
attention sink on the same axis. On the mixture of recall and memorized facts it also answers what
disrupting massive dimensions costs a model whose contextual and parametric abilities are known.
Costs minutes a twin on one core. Does not show that large models come to it in the same way.
"""

import threading
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, cast

import torch

from mi_massive._cells import kept_at
from mi_massive._checks import require_in_range
from mi_massive._cores import n_cores
from mi_massive._twin_corpora import Corpus, held_out_seed, load_corpus
from mi_massive._twin_folders import run_folder, trained_folder
from mi_massive._twin_training import CHECKPOINT, TwinProgress, train_twin
from mi_massive.axes import PROJECTIONS
from mi_massive.models.base import HookedModel
from mi_massive.models.load import require_device
from mi_massive.models.twins import build_twin, hold_twin
from mi_massive.prompts import TokenizedPrompts, tokenize_prompts
from mi_massive.records import (
    Provenance,
    command_line,
    load_tensors,
    package_versions,
)
from mi_massive.twin_arms import TWIN_ARMS
from mi_massive.twin_results import TwinsResult
from mi_massive.twin_runs import TwinRun, TwinsConfig, concentration_of

__all__ = [
    "TwinProgress",
    "TwinsConfig",
    "TwinsResult",
    "held_out_prompts",
    "load_twin",
    "train_twins",
]


def train_twins(
    config: TwinsConfig | None = None,
    *,
    folder: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    n_workers: int | None = None,
    on_progress: Callable[[TwinProgress], None] | None = None,
) -> TwinsResult:
    """Train every arm with every seed, on the same windows from the same weights.

    Args:
        config: Arms, seeds, corpus, size and recipe.
        folder: Where checkpoints and finished runs are kept; a killed training goes on from there.
        device: Where to train, such as `cpu` or `cuda`.
        dtype: Type of the training's matrix products; weights, losses and norms are float32.
        n_workers: Twins that train at once, each on one thread; the number of cores on a CPU
            without it, and one on a GPU. Changes no number.
        on_progress: Called after every step of every twin, from the thread that trains it, and
            once for a twin that the folder holds already.

    Returns:
        The curves of all runs. A run whose loss diverged is kept up to there, named in
        `failures`, and leaves NaN in the statistics of its arm.

    Raises:
        ValueError: If the corpus is missing or too small for the context, there is no such device,
            or `dtype` is float16, whose gradients vanish without scaling.
        UnsupportedModelError: If this transformers cannot build an arm.
        OSError: If the disk is full; the last checkpoint stays.
    """
    config = config or TwinsConfig()
    place = require_device(device)
    if n_workers is None:
        n_workers = n_cores() if place.type == "cpu" else 1
    require_in_range("n_workers", n_workers, low=1, high=4096, unit="twins")
    if dtype not in _DTYPES:
        raise ValueError(
            f"dtype must be one of {', '.join(map(str, _DTYPES))}, got {dtype}; twins are trained "
            "without a scaled loss"
        )
    corpus = _corpus(config)
    for arm in config.arms:  # one that cannot be built is found before any is trained
        build_twin(TWIN_ARMS[arm], config.shape, seed=0)
    wanted = [(arm, seed) for seed in range(config.n_seeds) for arm in config.arms]
    # Named here: threads that parse sources at once can break each other in Python 3.11.
    folders = {
        (arm, seed): run_folder(Path(folder), config, arm, seed, corpus, dtype)
        for arm, seed in wanted
    }
    trained: dict[tuple[str, int], TwinRun] = {}
    told = set[tuple[str, int]]()
    stopped = threading.Event()

    def report(progress: TwinProgress) -> None:
        if stopped.is_set():
            raise _StoppedError
        told.add((progress.arm, progress.seed))
        if on_progress is not None:
            on_progress(progress)

    def train(arm: str, seed: int) -> None:
        own = folders[arm, seed]
        run = partial(train_twin, config, arm, seed, corpus, folder=own, on_progress=report)
        # A damaged file is computed again from the checkpoint, which still has the curves.
        done = kept_at(own / _RUN, partial(run, device=place, dtype=dtype))
        trained[arm, seed] = done
        if (arm, seed) not in told:  # it was there
            report(_finished(done, config.n_steps))

    with _threads(n_workers, place) as pool:
        futures = [pool.submit(train, arm, seed) for arm, seed in wanted]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            stopped.set()  # the others stop at their next step; their checkpoints stay
            pool.shutdown(cancel_futures=True)
            raise
    return TwinsResult(
        runs=tuple(trained[arm, seed] for arm in config.arms for seed in range(config.n_seeds)),
        steps=config.steps,
        config=config,
        corpus_digest=corpus.digest,
        provenance=_provenance(config, corpus, place, dtype),
    )


def load_twin(
    config: TwinsConfig,
    arm: str,
    seed: int,
    *,
    folder: str | Path,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> HookedModel:
    """A twin as its last checkpoint left it, for every analysis of this package.

    It has no tokenizer: its prompts are token ids, such as those of `held_out_prompts`.

    Args:
        config: What it was trained with.
        arm: Name of its arm.
        seed: Its seed.
        folder: The folder that `train_twins` was given.
        device: Where to run it.
        dtype: The type that `train_twins` was given; the twin itself is held in float32.

    Raises:
        ValueError: If the arm or seed is none of the config's.
        FileNotFoundError: If the folder holds no checkpoint of it.

    Warns:
        UserWarning: If other code, or other versions of packages, trained the one that it holds.
    """
    if arm not in config.arms or not 0 <= seed < config.n_seeds:
        raise ValueError(
            f"arm and seed must be of the config ({', '.join(config.arms)}; 0 to "
            f"{config.n_seeds - 1}), got {arm!r} and {seed}"
        )
    corpus = _corpus(config)
    place = trained_folder(Path(folder), config, arm, seed, corpus, dtype)
    tensors = load_tensors(place / CHECKPOINT)
    model = build_twin(TWIN_ARMS[arm], config.shape, seed=seed)
    model.load_state_dict(
        {
            name.removeprefix("weights/"): tensor
            for name, tensor in tensors.items()
            if name.startswith("weights/")
        }
    )
    return hold_twin(
        cast(Any, model).to(device=require_device(device)), name=f"twin {arm}", folder=place
    )


def held_out_prompts(config: TwinsConfig, *, n: int = 32, seed: int = 0) -> TokenizedPrompts:
    """Windows of the corpus that no twin was trained on, for analyses of one of them.

    Args:
        config: What the twins were trained with.
        n: Windows of the twins' context.
        seed: Of their places; twins were measured on those of other seeds.

    Returns:
        Prompts of token ids, as every analysis takes them.

    Raises:
        ValueError: If the corpus is missing or too small for the context.
    """
    windows = _corpus(config).draw(
        n,
        context=config.shape.context,
        seed=held_out_seed(config.n_seeds + seed),
        held_out=True,
    )
    return tokenize_prompts(None, cast("list[list[int]]", windows.ids.tolist()))


def _finished(run: TwinRun, n_steps: int) -> TwinProgress:
    return TwinProgress(
        arm=run.arm,
        seed=run.seed,
        step=n_steps,
        loss=float(run.loss[-1]),
        concentration={p: float(concentration_of(run, p)[-1]) for p in PROJECTIONS},
    )


class _StoppedError(Exception):
    """Another run failed, or the user interrupted."""


@contextmanager
def _threads(n_workers: int, device: torch.device) -> Generator[ThreadPoolExecutor, None, None]:
    """Workers of one thread each on a CPU: small matrices gain nothing from more."""
    before = torch.get_num_threads()
    alone = device.type != "cpu" or n_workers == 1
    with ThreadPoolExecutor(
        n_workers, initializer=None if alone else partial(torch.set_num_threads, 1)
    ) as pool:
        try:
            yield pool
        finally:
            torch.set_num_threads(before)


def _corpus(config: TwinsConfig) -> Corpus:
    return load_corpus(config.corpus, context=config.shape.context)


def _provenance(
    config: TwinsConfig, corpus: Corpus, device: torch.device, dtype: torch.dtype
) -> Provenance:
    return Provenance(
        model=f"{len(config.arms)} twins, {config.n_seeds} seeds each",
        revision=None,
        weights_note="trained here from random weights",
        dtype=str(dtype).removeprefix("torch."),
        device=str(device),
        attention_kernel="sdpa",
        batch_size=config.batch_size,
        n_prompts=config.n_windows,
        prompts_digest=corpus.digest,
        seed=0,
        settings={"corpus": corpus.name, "n_steps": config.n_steps},
        versions=package_versions(),
        command=command_line(),
    )


_DTYPES: Final = (torch.float32, torch.bfloat16)
_RUN: Final = "run.json"
