"""What experiments on several models share: options, loading, a counter, the record."""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch

from mi_massive import HookedModel, load_model, save_result

HERE = Path(__file__).parent


def add_options(parser: argparse.ArgumentParser) -> None:
    """Which models, how they run, where finished cells and records lie."""
    parser.add_argument("--models", nargs="+", default=["smollm2-135m-instruct"])
    add_placement(parser)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--cells", type=Path, default=HERE.parent / "cells")
    parser.add_argument("--out", type=Path, default=HERE / "records")


def add_placement(parser: argparse.ArgumentParser) -> None:
    """Where a model runs, and with which type of weights."""
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])


def load(name: str, given: argparse.Namespace) -> HookedModel:
    """The model as the options ask for it."""
    return load_model(name, device=given.device, dtype=getattr(torch, given.dtype))


def counter(what: str, total: int | None = None) -> Callable[[int], None]:
    """Print how many pieces are finished, each time that some more are."""
    done, of = 0, "" if total is None else f"/{total}"

    def advance(n: int) -> None:
        nonlocal done
        done += n
        print(f"{done}{of} {what}", flush=True)

    return advance


def short(name: str) -> str:
    """What files call a model: the last part of its name, without capitals."""
    return Path(name).name.lower()


def record(result: object, beginning: str, name: str, given: argparse.Namespace) -> None:
    """Save a model's result and say where."""
    path = save_result(result, given.out / f"{beginning}_{short(name)}.json")
    print(f"record: {path}")
