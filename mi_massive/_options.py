"""Options that the subcommands share, and what they mean."""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from mi_massive._terminal import progress, waiting
from mi_massive.models.base import HookedModel
from mi_massive.norms import AttentionNorms

BATCH_SIZE, DEVICE, DTYPE = 8, "cpu", "float32"

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="Built-in name, hub id, folder or GGUF file.")
]
Prompts = Annotated[
    str | None,
    typer.Option(
        help="Text file (paragraphs), JSONL, JSON, CSV or Parquet file, or data set; "
        "default: the 32 passages of this package.",
    ),
]
Column = Annotated[str, typer.Option(help="Column of the prompts in a table or data set.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Use only the first prompts.")]
Chat = Annotated[bool, typer.Option("--chat", help="Wrap each prompt in the chat template.")]
MaxLength = Annotated[int | None, typer.Option(min=1, help="Truncate prompts to this many tokens.")]
SkipFirst = Annotated[
    bool, typer.Option("--skip-first", help="Leave out each prompt's first token.")
]
BatchSize = Annotated[int, typer.Option(min=1, help="Prompts of a forward pass.")]
Device = Annotated[str, typer.Option(help="Where to run: cpu, cuda, cuda:1, mps.")]
Dtype = Annotated[str, typer.Option(help="Type of the weights: float32, bfloat16, float16.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.")]
Trust = Annotated[bool, typer.Option("--trust-remote-code", help="Let the model's own code run.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no messages.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
Save = Annotated[
    Path | None, typer.Option(help="Save the full result: FILE.json and tensors beside it.")
]
Ratio = Annotated[
    float, typer.Option(help="Massive: norm above this multiple of the head's mean (lambda).")
]


@dataclasses.dataclass(frozen=True, slots=True)
class CaptureOptions:
    """The capture options that the analyses share."""

    prompts: str | None
    column: str
    limit: int | None
    chat: bool
    max_length: int | None
    skip_first: bool
    batch_size: int
    save: Path | None

    def __post_init__(self) -> None:
        if self.save is not None and self.save.suffix != ".json":
            raise ValueError(f"--save must end in .json, got {self.save}")

    def norms(self, model: HookedModel, *, quiet: bool) -> AttentionNorms:
        """Capture the norms that the options ask for, with a progress bar."""
        from mi_massive.capture import capture_norms
        from mi_massive.prompts import tokenize_prompts

        texts = read_texts(self.prompts, self.column, self.limit)
        if model.tokenizer is None:
            raise ValueError(f"the tokenizer of {model.name} must exist to run texts, got none")
        tokenized = tokenize_prompts(
            model.tokenizer,
            texts,
            chat=self.chat,
            max_length=self.max_length,
            context=model.geometry.training_context,
        )
        with progress(len(texts), quiet=quiet) as advance:
            return capture_norms(
                model,
                tokenized,
                batch_size=self.batch_size,
                skip_first=self.skip_first,
                on_progress=advance,
            )


def read_texts(source: str | None, column: str, limit: int | None) -> tuple[str, ...]:
    """Texts of a prompt source, or the default passages."""
    from mi_massive.prompts import default_passages, read_prompts

    if source is None:
        return default_passages()[:limit]
    return read_prompts(source, column=column, limit=limit)


def load(
    name: str, device: str, dtype: str, revision: str | None, trust_remote_code: bool, quiet: bool
) -> HookedModel:
    """Load a model, with a message while it takes."""
    from mi_massive.models.load import DTYPES, load_model

    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    with waiting(f"loading {name}", quiet=quiet):
        return load_model(
            name,
            device=device,
            dtype=DTYPES[dtype],
            revision=revision,
            trust_remote_code=trust_remote_code,
        )
