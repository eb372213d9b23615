"""What `speed.py` measures, one function each: it prints and returns a result."""

import argparse
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _nnsight import NnsightCapture
from transformers import LlamaConfig, LlamaForCausalLM

from mi_massive import (
    Estimate,
    HookedModel,
    capture_norms,
    conflict_pairs,
    load_conflicts,
    load_model,
)
from mi_massive.command_speed import measure_commands
from mi_massive.generation_speed import measure_generation_speed
from mi_massive.patch_speed import measure_patch_speed
from mi_massive.speed import measure_peak_memory, measure_speed, token_ids

HERE = Path(__file__).parent
SHAPES = {
    "llama-3-8b": LlamaConfig(
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=128256,
        max_position_embeddings=131072,
        rope_theta=500000.0,
    ),
    # The default model's widths in six layers, with a context that its own 8,192 tokens end before.
    "llama-long": LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=6,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=49152,
        max_position_embeddings=131072,
    ),
}


def model_of(given: argparse.Namespace) -> HookedModel:
    """The model that is asked for, or random weights of a shape behind that one's tokenizer."""
    dtype = getattr(torch, given.dtype)
    if given.shape is None:
        return load_model(given.model, device=given.device, dtype=dtype)
    torch.manual_seed(0)
    config = SHAPES[given.shape]
    with torch.device(given.device):
        model: Any = LlamaForCausalLM._from_config(config, dtype=dtype)
    folder = Path(tempfile.mkdtemp())  # read when hook points are first asked for
    tokenizer: Any = load_model(given.model).tokenizer
    for part in (config, tokenizer):
        part.save_pretrained(folder)
    return HookedModel.from_transformers(
        model.eval(), tokenizer, name=given.shape, folder=folder, weights_note="random weights"
    )


def capture(given: argparse.Namespace, n_prompts: int = 1, n_tokens: int = 1024) -> object:
    model, ids = model_of(given), token_ids(n_tokens, n_prompts)
    others: dict[str, Callable[[], object]] = {}
    if given.nnsight is not None:
        with tempfile.TemporaryDirectory() as folder:
            for part in (model.plain, model.tokenizer):
                part.save_pretrained(folder)
            nnsight = NnsightCapture(given.nnsight, folder, ids, torch.get_num_threads())
        require_equal(nnsight.norms(), capture_norms(model, ids, batch_size=n_prompts))
        print(f"the same norms by nnsight, {nnsight.versions}")
        others[f"nnsight {nnsight.versions['nnsight']}"] = nnsight
    result = measure_speed(
        model,
        n_prompts=n_prompts,
        n_tokens=n_tokens,
        n_rounds=given.rounds,
        others=others,
    )
    if given.nnsight is not None:
        nnsight.close()
    relative = zip(
        result.ways, result.ratios, result.ratios_to_body, result.ratios_to_capture, strict=True
    )
    for way, full, body, ours in relative:
        print(
            f"{way}: {said(full)} x the plain forward, {said(body)} x its body, {said(ours)} x the "
            "capture"
        )
    return result


def memory(given: argparse.Namespace) -> object:
    model = model_of(given)
    with tempfile.TemporaryDirectory() as folder:  # each way is measured in a process of its own
        if given.shape is not None and given.device == "cpu":
            for part in (model.plain, model.tokenizer):
                part.save_pretrained(folder)
        source = None if given.shape is None else folder
        result = measure_peak_memory(model, n_tokens=given.tokens, source=source)
    for way, peak in zip(result.ways, result.peak_mb, strict=True):
        print(f"{way}: peak {peak:.0f} MiB at {result.n_tokens} tokens")
    return result


def batch(given: argparse.Namespace) -> object:
    return capture(given, n_prompts=8, n_tokens=512)


def require_equal(theirs: list[list[float]], ours: Any) -> None:
    """What is timed must be the same work."""
    expected = [
        norms.flatten() for layer in zip(ours.q, ours.k, ours.v, strict=True) for norms in layer
    ]
    for found, norms in zip(theirs, expected, strict=True):
        np.testing.assert_allclose(found, norms, rtol=1e-3)


def generation(given: argparse.Namespace) -> object:
    result = measure_generation_speed(model_of(given), n_rounds=given.rounds)
    for way, relative in zip(result.ways, result.throughput, strict=True):
        print(f"{way}: {said(relative)} x the examples per second of plain generate")
    print(f"disrupted generate over the published way: {said(result.speedup)}")
    return result


def patching(given: argparse.Namespace, n_pairs: int = 2, n_rounds: int = 3) -> object:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model = model_of(given)
    found = load_conflicts(model).conflicts
    length = Counter(len(conflict.conflicting) for conflict in found).most_common(1)[0][0]
    chosen = [conflict for conflict in found if len(conflict.conflicting) == length]
    # The loop has no placebo: neither has `patch` here.
    pairs = [replace(pair, placebo=None) for pair in conflict_pairs(chosen[:n_pairs])]
    layers = model.geometry.blocks[1::3]
    result = measure_patch_speed(model, pairs, layers=layers, n_rounds=n_rounds)
    print(
        f"{said(result.ratio)} times as fast on {result.n_cells} cells, {result.n_pairs} pairs of "
        f"{result.n_tokens} tokens; largest difference {result.largest_difference:.2g} of the whole"
    )
    torch.set_num_threads(threads)
    return result


def imports(given: argparse.Namespace) -> object:
    """The package alone, what it takes to load a model, and what both are divided by."""
    statements = (
        *("import mi_massive", "from mi_massive import load_model"),
        "import transformer_lens",
    )
    result = measure_commands(
        {statement: [sys.executable, "-c", statement] for statement in statements},
        n_rounds=given.rounds,
    )
    for statement, ratio in zip(statements, result.ratios, strict=True):
        print(f"{statement}: {said(ratio)} x {statements[-1]}")
    return result


def report(given: argparse.Namespace) -> object:
    """One run, as `make report` does it: with every section."""
    os.chdir(HERE.parent)
    make = ["make", "--silent", "report", f"MODEL={given.model}"]
    result = measure_commands({"make report": make}, n_rounds=1, warm_up=False)
    print(f"make report: {float(result.seconds):.0f} s on {result.n_cores} cores")
    return result


def said(ratio: Estimate) -> str:
    return f"{ratio.effect:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"


MEASURED = {
    "capture": capture,
    "batch": batch,
    "memory": memory,
    "generation": generation,
    "patching": patching,
    "imports": imports,
    "report": report,
}
