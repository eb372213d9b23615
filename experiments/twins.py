"""Does RoPE cause massive values? Twins that differ in nothing else (C3, C8, C9).

Question: of small models with the same initial weights, data and recipe, do those with RoPE alone
concentrate their queries and keys, where on the frequencies, when in training, from which layer on,
and before or after the attention sink appears?
Refuted by: a max/mean of q and k that at equal loss is no larger with RoPE than without, or largest
dimensions that make full turns within the context.
Cost: about 25 minutes on two idle cores for the default (four encodings, three seeds, text);
`--scale medium` (25 M parameters) wants a GPU with 8 GB, minutes a twin. Finished twins are kept.
Command: python experiments/twins.py
         python experiments/twins.py --corpus mixture --context 64 --steps 500
         python experiments/twins.py --corpus mixture_unordered --context 64 --steps 500
         python experiments/twins.py --arms rope rope_1e2 rope_5e5 alibi \
             --record twins_stdlib_theta_small
         python experiments/twins.py --arms rope rope_1e2 --context 32 --batch-size 64 \
             --record twins_stdlib_window_32_small
         python experiments/twins.py --arms rope rope_1e2 --context 512 --batch-size 4 \
             --record twins_stdlib_window_512_small
         python experiments/twins.py --arms rope qk_norm p_rope partial_50 \
             --record twins_stdlib_variants_small
         python experiments/twins.py --arms rope interleaved --record twins_stdlib_interleaved_small
         python experiments/twins.py --scale medium --device cuda --dtype bfloat16 --workers 1
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from mi_massive import TwinsConfig, TwinShape, TwinsResult, save_result, train_twins
from mi_massive.twin_arms import TWIN_ARMS
from mi_massive.twins import TwinProgress

HERE = Path(__file__).parent
SCALES = {
    "small": (TwinShape(), 1000, 16, 3e-3),
    "medium": (TwinShape(n_layers=8, n_heads=8, d_head=64, context=512), 4000, 32, 1e-3),
}
"""Shape, steps, batch and learning rate. `small` fits a CPU."""


def main() -> None:
    """Train, record and print what was found."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--scale", choices=[*SCALES], default="small")
    options.add_argument("--arms", nargs="+", default=["rope", "partial_25", "learned", "none"])
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--corpus", default="stdlib", help="stdlib, mixture(_unordered), a file")
    options.add_argument("--steps", type=int, help="instead of the scale's")
    options.add_argument("--learning-rate", type=float, help="instead of the scale's")
    options.add_argument("--context", type=int, help="tokens of a window, instead of the scale's")
    options.add_argument("--batch-size", type=int, help="windows a step, instead of the scale's")
    options.add_argument("--workers", type=int, help="twins that train at once")
    options.add_argument("--device", default="cpu")
    options.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    options.add_argument("--cells", type=Path, default=HERE.parent / "cells")
    options.add_argument("--out", type=Path, default=HERE / "records")
    options.add_argument("--record", help="name of the record, instead of twins_CORPUS_SCALE")
    given = options.parse_args()
    shape, steps, batch_size, learning_rate = SCALES[given.scale]
    if given.context is not None:
        shape = replace(shape, context=given.context)
    config = TwinsConfig(
        arms=tuple(given.arms),
        n_seeds=given.seeds,
        corpus=given.corpus,
        shape=shape,
        n_steps=steps if given.steps is None else given.steps,
        batch_size=batch_size if given.batch_size is None else given.batch_size,
        learning_rate=learning_rate if given.learning_rate is None else given.learning_rate,
    )
    result = train_twins(
        config,
        folder=given.cells,
        device=given.device,
        dtype=getattr(torch, given.dtype),
        n_workers=given.workers,
        on_progress=say,
    )
    name = given.record or f"twins_{Path(given.corpus).stem}_{given.scale}"
    print(f"record: {save_result(result, given.out / f'{name}.json')}")
    show(result)


def say(twin: TwinProgress) -> None:
    """Show a twin now and then."""
    if twin.step % 100 == 0:
        ratios = " ".join(f"{name} {value:.2f}" for name, value in twin.concentration.items())
        print(
            f"{twin.arm} {twin.seed}: step {twin.step}, loss {twin.loss:.3f}, {ratios}", flush=True
        )


def show(result: TwinsResult) -> None:
    """Print each encoding, and the contrasts with those that do not rotate."""
    for arm in result.config.arms:
        loss, sink = result.final_loss(arm), result.sink(arm)
        q, k = result.excess("q", arm=arm), result.excess("k", arm=arm)
        print(
            f"{arm}: loss {loss.effect:.3f}, q over v {q.effect:.2f} [{q.low:.2f}, {q.high:.2f}], "
            f"k over v {k.effect:.2f} [{k.low:.2f}, {k.high:.2f}], first token {sink.effect:.3f}, "
            f"half-way q {result.halfway(arm, 'q')}, sink {result.halfway(arm, 'sink')}"
        )
        if TWIN_ARMS[arm].rotates:
            slowest = result.top_wavelength(arm, "k", partial=True)
            slow, wave = result.slow_share(arm, "k"), result.top_wavelength(arm, "k")
            print(
                f"  largest k without a full turn {slow.effect:.2f} (by chance {slow.null:.2f}), "
                f"median wavelength {wave.effect:.0f}, of those {slowest.effect:.0f} "
                f"[{slowest.low:.0f}, {slowest.high:.0f}]"
            )
            for other in result.config.arms:
                if not TWIN_ARMS[other].rotates:
                    for projection in ("q", "k", "v"):
                        ratio = result.contrast(projection, arm=arm, against=other)
                        print(
                            f"  {projection} over {other} at equal loss: {ratio.effect:.2f} "
                            f"[{ratio.low:.2f}, {ratio.high:.2f}]"
                        )
    for run, why in result.failures.items():
        print(f"stopped: {run}: {why}")


if __name__ == "__main__":
    main()
