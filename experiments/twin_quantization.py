"""Does what quantization needs to protect hang on weights that were 4-bit before? (C7, a check).

The default model's weights come from a 4-bit file. Twins trained here with RoPE hold float32
weights that were never rounded; their largest channels are smaller, so that massive means above
1.75 times the head's mean.
Question: do the largest channels, kept exact in quantized queries and keys or in rounded rows of
W_Q and W_K, save more than equally many others here too?
Refuted by: a saving no larger than that of random channels.
Cost: three minutes on two cores, after `twins.py` has trained the twins into the same cells.
Command: python experiments/twin_quantization.py
"""

import argparse
from pathlib import Path

from mi_massive import (
    EvaluationConfig,
    StateQuantizationConfig,
    StateQuantizationResult,
    capture_norms,
    held_out_prompts,
    load_result,
    load_twin,
    run_state_quantization,
    save_result,
)
from mi_massive.weight_protection import (
    WeightProtectionConfig,
    WeightProtectionResult,
    run_weight_protection,
)

HERE = Path(__file__).parent


def main() -> None:
    """Measure every seed's twin, record it and print the gains."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--twins", type=Path, default=HERE / "records/twins_stdlib_small.json")
    options.add_argument("--arm", default="rope")
    options.add_argument("--ratio", type=float, default=1.75, help="massive: times the head's mean")
    options.add_argument("--windows", type=int, default=32, help="of held-out text")
    options.add_argument("--cells", type=Path, default=HERE.parent / "cells")
    options.add_argument("--out", type=Path, default=HERE / "records")
    given = options.parse_args()
    trained = load_result(given.twins).config
    text = held_out_prompts(trained, n=given.windows)
    for seed in range(trained.n_seeds):
        twin = load_twin(trained, given.arm, seed, folder=given.cells)
        states = run_state_quantization(
            twin,
            [],
            passages=text,
            config=StateQuantizationConfig(ratio=given.ratio, n_neutral=given.windows),
        )
        rows = run_weight_protection(
            twin,
            [],
            text,
            capture_norms(twin, text),
            config=WeightProtectionConfig(bits=(4, 3, 2), group=32, ratio=given.ratio),
            evaluation=EvaluationConfig(),
        )
        for kind, result in (("state_quantization", states), ("weight_rows", rows)):
            show(f"{kind} seed {seed}", result)
            save_result(result, given.out / f"{kind}_twin_{given.arm}_{seed}.json")


def show(what: str, result: StateQuantizationResult | WeightProtectionResult) -> None:
    """What the massive channels save beyond others, without the first token's help."""
    print(f"{what}: massive channels of a head {result.massive_per_head}")
    for gain in result.gains:
        if gain.by == "massive" and not gain.first_kept:
            print(
                f"  {gain.bits} bits against {gain.against:12} {gain.measure:13} "
                f"{gain.gain.effect:+.4f} [{gain.gain.low:+.4f}, {gain.gain.high:+.4f}] "
                f"n={gain.gain.n} p={gain.gain.p_value:.2g}"
            )


if __name__ == "__main__":
    main()
