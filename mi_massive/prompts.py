"""What a model is run on: texts from a file, a table or the package, and their exact token ids.

Answers: which token ids went into the model. Costs: one tokenizer call a prompt; a data set from
the hub is downloaded by `datasets`. The digest proves that two runs saw the same ids; it does not
show that the prompts represent any other text: the default set is small, English and written for
this package.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Final, Protocol, cast, runtime_checkable

from mi_massive._checks import require_not_empty, require_positive
from mi_massive._prompt_sources import PromptTable, entries

_PASSAGES: Final = Path(__file__).parent / "data" / "passages.jsonl"


@runtime_checkable
class Tokenizer(Protocol):
    """What is used of a transformers tokenizer."""

    @property
    def chat_template(self) -> Any:
        """Template of a conversation; None where the tokenizer has none."""
        ...

    def __call__(self, text: str, *, add_special_tokens: bool, verbose: bool) -> Mapping[str, Any]:
        """Return a mapping whose `input_ids` are the token ids of `text`."""
        ...

    def apply_chat_template(
        self, conversation: list[dict[str, str]], *, tokenize: bool, add_generation_prompt: bool
    ) -> Any:
        """Return the conversation as one text, special tokens written out."""
        ...

    def decode(self, token_ids: list[int]) -> Any:
        """Return the text of the token ids."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizedPrompts:
    """Prompts as the exact token ids that enter the model, without padding."""

    input_ids: tuple[tuple[int, ...], ...] = field(repr=False)
    """Token ids, one tuple a prompt, special tokens included."""

    texts: tuple[str, ...] = field(repr=False)
    """The whole text of each prompt before truncation; with a chat template, the rendered text."""

    n_truncated: int
    """How many prompts were longer than `max_length` and lost their end."""

    def __post_init__(self) -> None:
        """Refuse texts and ids that do not belong together."""
        if len(self.texts) != len(self.input_ids):
            raise ValueError(
                f"texts must have one entry a prompt ({len(self.input_ids)}), got {len(self.texts)}"
            )

    def __len__(self) -> int:
        """Return the number of prompts."""
        return len(self.input_ids)

    @property
    def n_tokens(self) -> int:
        """Number of tokens in all prompts together."""
        return sum(len(ids) for ids in self.input_ids)

    @property
    def digest(self) -> str:
        """SHA-256 in hexadecimal over the exact ids and their division into prompts."""
        listed = json.dumps(self.input_ids, separators=(",", ":"))
        return hashlib.sha256(listed.encode("ascii")).hexdigest()


def default_passages() -> tuple[str, ...]:
    """Return the 32 English passages written for this package, one kind of text each.

    Between 90 and 220 words each: report, recipe, dialogue, clause, code, poem, table, log, ...
    """
    return read_prompts(_PASSAGES)


def read_prompts(
    source: str | Path | PromptTable,
    *,
    column: str = "text",
    split: str = "train",
    limit: int | None = None,
) -> tuple[str, ...]:
    """Read prompts from a file, a data set or a table, in their order there.

    - `.txt`: one prompt a paragraph; blank lines divide, line breaks within a paragraph stay.
    - `.jsonl`, `.json`: one object (or plain string) a line, or a list of them.
    - `.csv`, `.parquet`: one row a prompt.
    - a folder: a data set saved by `datasets`, or data files that `datasets.load_dataset` reads.
    - any other name: a data set on the Hugging Face hub.
    - a `datasets.Dataset`, or any table with `column_names`.

    Args:
        source: File, folder, name of a data set on the hub, or table.
        column: Column or key that holds the prompt; not used for `.txt` and plain strings.
        split: Split of a data set; not used for files and tables.
        limit: Keep the first `limit` prompts; None keeps all.

    Returns:
        At least one prompt; texts are kept as they are, surrounding white space included.

    Raises:
        FileNotFoundError: If there is no such file, folder or data set.
        ValueError: If the column is missing, there is no prompt, a prompt is empty or no string,
            or the file is damaged; the place is named.
    """
    if limit is not None:
        require_positive("limit", limit)
    name = "the table" if isinstance(source, PromptTable) else str(source)
    found = islice(entries(source, column=column, split=split), limit)
    prompts = tuple(_text(value, where, name) for where, value in found)
    require_not_empty("prompts", prompts, remedy=f"{name} holds none")
    return prompts


def tokenize_prompts(
    tokenizer: Tokenizer | None,
    prompts: Sequence[str | Sequence[int]],
    *,
    chat: bool = False,
    max_length: int | None = None,
    context: int | None = None,
) -> TokenizedPrompts:
    """Turn prompts into the exact token ids that enter the model.

    Special tokens are those that the tokenizer adds by default. A chat template writes its own,
    so nothing is added to a rendered conversation and BOS never stands there twice.

    Args:
        tokenizer: A transformers tokenizer, for instance of a loaded model; None where all prompts
            are token ids, whose texts are then empty.
        prompts: Texts, or token ids that are used as they are.
        chat: Wrap each text as one user message and open the assistant's turn.
        max_length: Keep the first `max_length` tokens of each prompt; what is cut includes a
            closing token such as BERT's [SEP] or the opening of the assistant's turn.
        context: Training context of the model in tokens; None does not check.

    Returns:
        The ids in the order of `prompts`.

    Raises:
        ValueError: If `prompts` is empty, one string or texts without a tokenizer, a prompt is
            empty or longer than `context`, an id is negative, or `chat` is asked for token ids or
            without a chat template.
    """
    if isinstance(prompts, str):
        raise ValueError("prompts must be a list of texts, got one string; put it into a list")
    require_not_empty("prompts", prompts, remedy="give at least one text")
    if chat and (tokenizer is None or tokenizer.chat_template is None):
        raise ValueError(
            "chat must be False for a tokenizer without a chat template, got True; "
            "use an instruction-tuned model or pass chat=False"
        )
    made = [
        _tokenize(tokenizer, prompt, chat=chat, where=f"prompts[{i}]")
        for i, prompt in enumerate(prompts)
    ]
    whole = TokenizedPrompts(
        input_ids=tuple(ids for _, ids in made),
        texts=tuple(text for text, _ in made),
        n_truncated=0,
    )
    return truncate_prompts(whole, max_length=max_length, context=context)


def truncate_prompts(
    prompts: TokenizedPrompts, *, max_length: int | None = None, context: int | None = None
) -> TokenizedPrompts:
    """Keep the first `max_length` tokens of each prompt.

    Args:
        prompts: Prompts, whose texts stay whole.
        max_length: Tokens to keep; None keeps all.
        context: Training context of the model in tokens; None does not check.

    Raises:
        ValueError: If a prompt is still longer than `context`.
    """
    if max_length is not None:
        require_positive("max_length", max_length)
    rows = tuple(ids[:max_length] for ids in prompts.input_ids)
    for i, ids in enumerate(rows):
        if context is not None and len(ids) > context:
            raise ValueError(
                f"prompts[{i}] must fit the model's context of {context} tokens, got {len(ids)} "
                f"tokens; pass max_length={context} to keep only its beginning"
            )
    cut = sum(len(row) < len(ids) for row, ids in zip(rows, prompts.input_ids, strict=True))
    return replace(prompts, input_ids=rows, n_truncated=max(cut, prompts.n_truncated))


def _tokenize(
    tokenizer: Tokenizer | None, prompt: str | Sequence[int], *, chat: bool, where: str
) -> tuple[str, tuple[int, ...]]:
    if not isinstance(prompt, str):
        ids = tuple(prompt)
        if chat:
            raise ValueError(
                f"chat must be False for token ids, got True with ids at {where}; give texts"
            )
        _require_ids(ids, where)
        return "" if tokenizer is None else cast(str, tokenizer.decode(list(ids))), ids
    if not prompt.strip():
        raise ValueError(f"{where} must not be empty; remove it")
    if tokenizer is None:
        raise ValueError(
            f"{where} must be token ids for a model without a tokenizer, got a text; a twin has "
            "windows of its corpus in held_out_prompts"
        )
    if chat:
        messages = [{"role": "user", "content": prompt}]
        text = cast(
            str,
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True),
        )
    else:
        text = prompt
    # verbose=False: a prompt that is too long is reported by us, after truncation.
    encoding = tokenizer(text, add_special_tokens=not chat, verbose=False)
    ids = tuple(cast("list[int]", encoding["input_ids"]))
    _require_ids(ids, where)
    return text, ids


def _require_ids(ids: tuple[int, ...], where: str) -> None:
    if len(ids) == 0:
        raise ValueError(f"{where} must have at least one token, got none; remove it")
    if min(ids) < 0:
        raise ValueError(f"{where} must hold token ids of at least 0, got {min(ids)}")


def _text(value: object, where: str, name: str) -> str:
    if not isinstance(value, str):
        raise ValueError(
            f"prompts must be strings, got {value!r} ({type(value).__name__}) at {where} of {name}"
        )
    if not value.strip():
        raise ValueError(f"prompts must not be empty, got {value!r} at {where} of {name}")
    return value
