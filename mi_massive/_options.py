"""Options that the subcommands share, and what they mean."""

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mi_massive import _completion as completion
from mi_massive._terminal import progress, waiting
from mi_massive.norms import AttentionNorms
from mi_massive.prompts import TokenizedPrompts, default_passages, read_prompts, tokenize_prompts

if TYPE_CHECKING:  # importing models loads transformers, which the help does not need
    from mi_massive.models import HookedModel

BATCH_SIZE, DEVICE, DTYPE = 8, "cpu", "float32"

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="Built-in name, hub id, folder or GGUF file.",
        autocompletion=completion.complete_models,
    ),
]
Prompts = Annotated[
    str | None,
    typer.Option(
        help="Text file (paragraphs), JSONL, JSON, CSV or Parquet file, or data set; "
        "default: the 32 passages of this package.",
    ),
]
Column = Annotated[
    str | None, typer.Option(help="Column of the prompts in a table or data set; default: text.")
]
Split = Annotated[
    str | None, typer.Option(help="Split of the data set that holds the prompts; default: train.")
]
Limit = Annotated[int | None, typer.Option(min=1, help="Use only the first prompts.")]
Chat = Annotated[bool, typer.Option("--chat", help="Wrap each prompt in the chat template.")]
MaxLength = Annotated[int | None, typer.Option(min=1, help="Truncate prompts to this many tokens.")]
SkipFirst = Annotated[
    bool, typer.Option("--skip-first", help="Leave out each prompt's first token.")
]
BatchSize = Annotated[int, typer.Option(min=1, help="Prompts of a forward pass.")]
Device = Annotated[
    str,
    typer.Option(
        autocompletion=completion.one_of(("cpu", "cuda", "mps", "auto")),
        help="Where to run: cpu, cuda, cuda:1, mps; auto: layers spread over GPUs.",
    ),
]
Dtype = Annotated[
    str,
    typer.Option(
        autocompletion=completion.one_of(("float32", "bfloat16", "float16")),
        help="Type of the weights: float32, bfloat16, float16.",
    ),
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.")]
Trust = Annotated[bool, typer.Option("--trust-remote-code", help="Let the model's own code run.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no messages.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
Save = Annotated[
    Path | None, typer.Option(help="Save the full result: FILE.json and tensors beside it.")
]
Cells = Annotated[
    Path | None,
    typer.Option(help="Folder that keeps finished cells; a killed run goes on from there."),
]
Ratio = Annotated[
    float, typer.Option(help="Massive: norm above this multiple of the head's mean (lambda).")
]


Layers = Annotated[
    str | None,
    typer.Option(help="Blocks that arms edit, with commas, also ranges such as 0-9; default: all."),
]


@dataclasses.dataclass(frozen=True, slots=True)
class CaptureOptions:
    """What the analyses capture, and how."""

    texts: tuple[str, ...]
    chat: bool
    max_length: int | None
    skip_first: bool
    batch_size: int

    def tokenize(
        self, model: "HookedModel", *, chat: bool, fitting: bool = True
    ) -> TokenizedPrompts:
        """The prompts as `model` reads them; `chat` wraps them in its chat template.

        Prompts beyond the model's context are refused, unless `fitting` is False.
        """
        if model.tokenizer is None:
            raise ValueError(f"the tokenizer of {model.name} must exist to run texts, got none")
        return tokenize_prompts(
            model.tokenizer,
            self.texts,
            chat=chat,
            max_length=self.max_length,
            context=model.geometry.training_context if fitting else None,
        )

    def norms(self, model: "HookedModel", *, quiet: bool) -> AttentionNorms:
        """Capture the norms that the options ask for, with a progress bar."""
        from mi_massive.capture import capture_norms

        tokenized = self.tokenize(model, chat=self.chat)
        with progress(len(tokenized), quiet=quiet) as advance:
            return capture_norms(
                model,
                tokenized,
                batch_size=self.batch_size,
                skip_first=self.skip_first,
                on_progress=advance,
            )


def read_texts(
    source: str | None,
    column: str | None,
    split: str | None,
    limit: int | None,
    *,
    option: str = "--prompts",
) -> tuple[str, ...]:
    """Texts of the source that `option` names, or the default passages.

    Raises:
        ValueError: If a column or a split is named that the source does not have, so that it would
            mean nothing; see also `read_prompts`.
        FileNotFoundError: If there is no such source.
    """
    for named, given in (("--column", column), ("--split", split)):
        if given is not None and source is None:
            raise ValueError(
                f"{named} must come with {option}, got {given!r} without; leave it out, or name "
                "what has it"
            )
    if source is None:
        return default_passages()[:limit]
    path = Path(source)
    if split is not None and (path.is_file() or (path / "state.json").is_file()):
        raise ValueError(
            f"--split must be left out for a source without splits, got {split!r} for {source}"
        )
    if column is not None and path.is_file() and path.suffix == ".txt":
        raise ValueError(
            f"--column must be left out for a text file, which has none, got {column!r} for "
            f"{source}"
        )
    return read_prompts(source, column=column or "text", split=split or "train", limit=limit)


def require_savable(save: Path | None) -> None:
    """Raise unless a result can be saved there: before any computing, not after it."""
    if save is None:
        return
    if save.suffix != ".json":
        raise ValueError(f"--save must end in .json, got {save}")
    if save.is_dir():
        raise ValueError(f"--save must be a file, got the folder {save}; add a file name")
    require_writable("--save", save)


def require_cells(cells: Path | None) -> None:
    """Raise unless finished cells can be kept in that folder, which need not be there yet."""
    if cells is None:
        return
    if cells.exists() and not cells.is_dir():
        raise ValueError(f"--cells must be a folder, got the file {cells}; choose another place")
    require_writable("--cells", cells / "cell")


def require_writable(option: str, path: Path) -> None:
    """Raise unless something can be made at `path`, whose folder may have to be made first."""
    folder = path.absolute().parent
    while not folder.exists():
        folder = folder.parent
    if not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
        what = "a folder that you may not write to" if folder.is_dir() else "no folder"
        raise ValueError(
            f"{option} must lie in a folder that can be written, got {path}, where {folder} is "
            f"{what}; choose another place"
        )


def model_name(typed: str) -> str:
    """The name as typed; a file or folder by its whole path, however it was typed.

    So the report on a folder is recognized when the same folder is named in another way, and not
    taken for that of another folder with the same relative path.
    """
    from mi_massive.models.wheel import BUILT_IN

    path = Path(typed).expanduser()
    return str(path.resolve()) if typed not in BUILT_IN and path.exists() else typed


def load(
    name: str, device: str, dtype: str, revision: str | None, trust_remote_code: bool, quiet: bool
) -> "HookedModel":
    """Load a model, with a message while it takes."""
    with waiting(f"loading {name}", quiet=quiet):
        from mi_massive.models import load_model

        return load_model(
            model_name(name),
            device=device,
            dtype=torch_dtype(dtype),
            revision=revision,
            trust_remote_code=trust_remote_code,
        )


def torch_dtype(name: str) -> Any:
    """The type that `--dtype` names."""
    from mi_massive.models.load import DTYPES

    if name not in DTYPES:
        raise ValueError(f"--dtype must be one of {', '.join(DTYPES)}, got {name!r}")
    return DTYPES[name]
