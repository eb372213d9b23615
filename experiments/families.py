"""Do models with RoPE concentrate their queries and keys, and models without it not? (C3, C8).

Question: of many models on the same texts, in which do q and k hold massive values that v does not,
and where do these lie on the frequencies?
Refuted by: a model with RoPE whose q and k are no more concentrated than its v, or a model without
RoPE whose are.
Cost: three minutes on two idle cores for the default: the two built-in models, and a tiny model
with random weights of each family as a check of shapes, which says nothing about its numbers.
Models of the hub need memory for their weights, which `--list` states, and a fifth more.
Command: python experiments/families.py
         python experiments/families.py --list --dtype bfloat16
         python experiments/families.py --seeds --dtype bfloat16 --device cuda:0 --shard 1/4
         python experiments/families.py --models openai-community/gpt2 ./my-model --shapes
"""

import argparse
from pathlib import Path

import torch

from mi_massive import default_passages, measure_families, save_result
from mi_massive.families import SEEDS
from mi_massive.family_rows import FamilyRow
from mi_massive.models import SHAPES, build_shape

RECORDS = Path(__file__).parent / "records"
BUILT_IN = ("smollm2-135m-instruct", "all-minilm-l6-v2")


def main() -> None:
    """Measure every model of the list, print a line for each, record the table."""
    given = read_options()
    dtype = getattr(torch, given.dtype)
    if given.list:
        for name, n_weights in SEEDS.items():
            print(f"{name}: {n_weights * dtype.itemsize / 1e9:.1f} GB in {given.dtype}")
        return
    asked = [*given.models, *(SEEDS if given.seeds else ()), *(f"{s} (tiny)" for s in given.shapes)]
    part, n_parts = given.shard
    mine = asked[part - 1 :: n_parts]
    if not mine:
        raise SystemExit(f"--shard: there is no model for part {part} of {n_parts}")
    tiny = {f"{family} (tiny)": family for family in given.shapes}
    result = measure_families(
        [build_shape(tiny[name]) if name in tiny else name for name in mine],
        default_passages(),
        device=given.device,
        dtype=dtype,
        batch_size=given.batch_size,
        on_row=show,
    )
    name = "families" if n_parts == 1 else f"families_{part}of{n_parts}"
    print(f"record: {save_result(result, given.out / f'{name}.json')}")


def read_options() -> argparse.Namespace:
    """The command line."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument(
        "--models", nargs="*", default=[*BUILT_IN], help="built-in names, hub ids, folders"
    )
    options.add_argument("--seeds", action="store_true", help="the models that --list shows, too")
    options.add_argument(
        *("--shapes",),
        nargs="*",
        choices=[*SHAPES],
        default=[*SHAPES],
        help="families checked with random weights; none without a value",
    )
    options.add_argument("--list", action="store_true", help="memory of the hub's models; no run")
    options.add_argument("--shard", type=shard, default=(1, 1), help="i/n: every n-th model")
    options.add_argument("--device", default="cpu")
    options.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    options.add_argument("--batch-size", type=int, default=8)
    options.add_argument("--out", type=Path, default=RECORDS)
    return options.parse_args()


def shard(text: str) -> tuple[int, int]:
    """`2/4` is the second part of four."""
    part, _, n_parts = text.partition("/")
    if not (part.isdecimal() and n_parts.isdecimal() and 1 <= int(part) <= int(n_parts)):
        raise argparse.ArgumentTypeError(f"must be i/n with 1 <= i <= n, got {text!r}")
    return int(part), int(n_parts)


def show(row: FamilyRow) -> None:
    """Print one model."""
    print(f"{row.model}: {row.status}, weights {row.memory:.3g} GB", flush=True)
    if row.heads is None:
        print(f"  {row.reason}")
        return
    heads = row.heads
    print(
        f"  {heads.layout or 'no rotation'}, {heads.n_layers} layers, "
        f"{heads.n_heads}/{heads.n_key_value_heads} heads of {heads.d_head}, "
        f"{heads.rotary_dim} rotated by {heads.n_position_axes} position axes"
    )
    for name, part in (("q", row.q), ("k", row.k), ("v", row.v)):
        print(
            f"  {name}: {part.massive_per_head:.2f} massive per head, "
            f"max/mean {part.max_over_mean:.2f}, slow half {part.slow_half.effect:.2f}, "
            f"halves {part.halves.effect:.2f}"
        )
    for name, ratio in (("q", row.contrast_q), ("k", row.contrast_k)):
        print(f"  {name} over v {ratio.effect:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]")
    print(f"  partial cycle {row.partial_cycle.effect:.2f}")


if __name__ == "__main__":
    main()
