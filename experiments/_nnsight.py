"""The norms of rotated queries and keys and of values in nnsight, in an environment of its own.

This package does not need nnsight, so the Python of an environment that holds nnsight, accelerate
and torch runs this file: it loads the model, then does the same work each time that it is asked.
"""

import json
import subprocess
import sys
import tempfile
from typing import Any


class NnsightCapture:
    """A process of another environment that captures norms when it is called.

    Args:
        python: The interpreter of that environment.
        folder: The model, as a Hugging Face folder.
        ids: The batch, prompts of one length.
        n_threads: Threads of torch, as here.
    """

    def __init__(self, python: str, folder: str, ids: list[list[int]], n_threads: int) -> None:
        self._errors = tempfile.TemporaryFile(mode="w+")  # noqa: SIM115 (closed with the process)
        self._process = subprocess.Popen(
            [python, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self.versions = self._ask({"folder": folder, "ids": ids, "n_threads": n_threads})

    def __call__(self) -> None:
        """Capture once."""
        self._ask("capture")

    def norms(self) -> list[list[float]]:
        """Norms of q, k and v of each layer, each flat over head and dimension."""
        return self._ask("norms")

    def close(self) -> None:
        """End the process."""
        self._process.stdin.close()
        self._process.wait(timeout=60)

    def _ask(self, what: object) -> Any:
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()
        reply = self._process.stdout.readline()
        if not reply:
            self._process.wait()
            self._errors.seek(0)
            raise RuntimeError(f"nnsight must answer, got: {self._errors.read()[-600:]}")
        return json.loads(reply)


def serve() -> None:
    """What the process does: one line in, one line out."""
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries may print
    from importlib.metadata import version

    import nnsight
    import torch

    start = json.loads(sys.stdin.readline())
    torch.set_num_threads(start["n_threads"])
    model = nnsight.LanguageModel(
        start["folder"],
        device_map="cpu",
        dispatch=True,
        dtype=torch.float32,
        attn_implementation="sdpa",
    )
    ids = torch.tensor(start["ids"])

    # Before the first run: a forward pass that has begun shows no calls inside it.
    rotations = [layer.self_attn.source.apply_rotary_pos_emb_0 for layer in model.model.layers]

    def capture() -> list[Any]:
        with torch.no_grad(), model.trace({"input_ids": ids}, use_cache=False) as tracer:
            found = nnsight.save([])
            for layer, rotation in zip(model.model.layers, rotations, strict=True):
                value = layer.self_attn.v_proj.output
                query, key = rotation.output
                found.append(query.square().sum(dim=(0, 2)))
                found.append(key.square().sum(dim=(0, 2)))
                found.append(value.square().sum(dim=(0, 1)))
            tracer.stop()  # the vocabulary's head is not needed
        return found

    def reply(answer: object) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    names = ("nnsight", "torch", "transformers")
    reply({name: version(name) for name in names})
    for line in sys.stdin:
        sums = capture()
        wanted = json.loads(line) == "norms"  # else only the work is
        reply([total.sqrt().flatten().tolist() for total in sums] if wanted else len(sums))


if __name__ == "__main__":
    serve()
