"""`mi-massive lm-eval`: the harness's own command line, which then knows the model `mi_massive`."""

from typing import Annotated, Final

import typer

CONTEXT: Final = {"ignore_unknown_options": True, "allow_interspersed_args": False}
"""Settings of the command: what it is given is the harness's, in its order."""


_ARGUMENTS: Final = """\b
--model mi_massive --model_args ARGUMENT=VALUE,...
  pretrained  built-in name, hub id, folder or GGUF file
  preset      arm, see `mi-massive presets`; without it nothing is edited
  k, seed     dimensions of each head; of presets that draw them
  layers      a block or a range such as 3-9; without it all
  dtype       float32 (without it), bfloat16 or float16
  device, revision, trust_remote_code, max_length, truncation,
  add_bos_token, prefix_token_id, chat_template_args, enable_thinking,
  think_end_token: as for its model `hf`"""
HELP: Final = "\n\n".join(
    (
        "Run tasks of EleutherAI's lm-evaluation-harness under an edit (extra `lm-eval`).",
        "All arguments are those of its own command `lm-eval` and are handed to it as they are; "
        "`mi-massive lm-eval run --help` lists them. That command alone does not find `--model "
        "mi_massive`: it takes models from a table of its own and has no entry points.",
        _ARGUMENTS,
        "What was edited stands in its results (--output_path) under config, mi_massive.",
    )
)
"""What `--help` says; the block of arguments keeps its lines."""


def harness_command(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="ARGUMENTS", help="As after `lm-eval`.", show_default=False),
    ] = None,
) -> None:
    """Hand the arguments to the harness's own command."""
    from mi_massive.harness import run_command  # late, as all that loads transformers

    run_command(arguments or [])
