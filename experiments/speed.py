"""What do captures, edits, patches, the import and the report cost beside other ways? (speed).

Question: is the capture of q, k and v norms within 1.10 times the time of the plain transformers
forward pass (SDPA) on 1 x 1024 and on 8 x 512 tokens, and within 1.2 times its peak memory at
32768? Is it faster than the bridge with hooks, run_with_cache then reduce, and nnsight? Does
disrupted generation in batches reach 0.9 times the examples per second of plain generate, and 4
times those of the published way? Is a grid of patches 4 times as fast as TransformerLens' loop,
with the same effects to 1e-5? Does the import take at most 1.05 times that of transformer_lens, and
the default report at most 8 minutes?
Refuted by: a median beyond these bounds.
Cost: on two cores and the default model an hour; timings want an idle machine, patches are counted
in CPU time. Memory is taken at 8192 tokens, where the default model's context ends, and at 32768 on
a model with random weights, about a quarter of an hour.
Command: python experiments/speed.py --nnsight OTHER_ENVIRONMENT/bin/python
         python experiments/speed.py --shape llama-long --what memory --tokens 32768
"""

import argparse
from pathlib import Path

import torch
from _options import short
from _speed import MEASURED, SHAPES

from mi_massive import save_result

RECORDS = Path(__file__).parent / "records"


def main() -> None:
    """Measure and record what is asked for."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--model", default="smollm2-135m-instruct")
    options.add_argument("--shape", choices=[*SHAPES], help="random weights instead of --model")
    options.add_argument("--device", default="cpu")
    options.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    options.add_argument("--what", nargs="+", choices=[*MEASURED], default=[*MEASURED])
    options.add_argument("--rounds", type=int, default=9)
    options.add_argument("--tokens", type=int, default=8192, help="of the prompt for memory")
    options.add_argument("--nnsight", metavar="PYTHON", help="of an environment with nnsight")
    options.add_argument("--out", type=Path, default=RECORDS)
    given = options.parse_args()
    if given.shape is not None and given.nnsight is not None:
        options.error("--nnsight reads the files of --model; leave out --shape")
    for what in given.what:
        result = MEASURED[what](given)
        name = short(given.shape or given.model)
        path = given.out / f"speed_{what}_{name}_{torch.device(given.device).type}.json"
        print(f"record: {save_result(result, path)}")


if __name__ == "__main__":
    main()
