"""Prompts: what is read, where it is refused, and that the ids are exactly the model's."""

import hashlib
import json
import logging
from pathlib import Path

import pandas
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as FastTokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from mi_massive.prompts import (
    TokenizedPrompts,
    default_passages,
    read_prompts,
    tokenize_prompts,
)

TEMPLATE = (
    "<s> {% for m in messages %}[{{ m['role'] }}] {{ m['content'] }} </s> {% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
WORDS = ["<unk>", "<s>", "</s>", "[user]", "[assistant]", "a", "b", "c", "d"]
UNK, BOS, EOS, USER, ASSISTANT, A, B, C, D = range(9)


def word_tokenizer(*, bos: bool = True, template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """One id a word; adds BOS by default, as Llama's tokenizer does."""
    fast = FastTokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    fast.pre_tokenizer = WhitespaceSplit()
    if bos:
        fast.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=fast, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    tokenizer.chat_template = template
    return tokenizer


# --- the default set


def test_default_passages_are_32_different_texts_of_90_to_220_words():
    passages = default_passages()
    assert len(passages) == len(set(passages)) == 32
    assert all(90 <= len(text.split()) <= 220 for text in passages)


def test_each_default_passage_has_its_own_id_and_topic():
    import mi_massive.prompts as module

    path = Path(module.__file__).parent / "data" / "passages.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert all(set(row) == {"id", "topic", "text"} for row in rows)
    assert len({row["id"] for row in rows}) == len({row["topic"] for row in rows}) == 32


# --- reading: every format gives the same prompts

TEXTS = ("First prompt.", 'Second, with a comma, "quotes" and ümlaut.', "Third\nof two lines.")


def write_text(folder: Path) -> Path:
    path = folder / "prompts.txt"
    path.write_text("\n\n" + "\n\n \n".join(TEXTS) + "\n", encoding="utf-8")
    return path


def write_jsonl(folder: Path) -> Path:
    path = folder / "prompts.jsonl"
    lines = [json.dumps({"n": i, "text": text}) for i, text in enumerate(TEXTS)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_json(folder: Path) -> Path:
    path = folder / "prompts.json"
    path.write_text(json.dumps(list(TEXTS)), encoding="utf-8")
    return path


def write_csv(folder: Path) -> Path:
    path = folder / "prompts.csv"
    pandas.DataFrame({"n": [1, 2, 3], "text": TEXTS}).to_csv(path, index=False)
    return path


def write_parquet(folder: Path) -> Path:
    path = folder / "prompts.parquet"
    pandas.DataFrame({"n": [1, 2, 3], "text": TEXTS}).to_parquet(path)
    return path


def write_saved_dataset(folder: Path) -> Path:
    import datasets

    path = folder / "saved"
    datasets.Dataset.from_dict({"text": list(TEXTS)}).save_to_disk(path)
    return path


def write_saved_splits(folder: Path) -> Path:
    import datasets

    path = folder / "splits"
    table = datasets.Dataset.from_dict({"text": list(TEXTS)})
    datasets.DatasetDict({"train": table, "test": table.select([0])}).save_to_disk(path)
    return path


def write_data_files(folder: Path) -> Path:
    path = folder / "files"
    path.mkdir()
    write_jsonl(path)
    return path


WRITERS = [
    write_text,
    write_jsonl,
    write_json,
    write_csv,
    write_parquet,
    write_saved_dataset,
    write_saved_splits,
    write_data_files,
]


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_every_source_gives_the_same_prompts_in_order(tmp_path, write):
    path = write(tmp_path)
    assert read_prompts(path) == TEXTS
    assert read_prompts(str(path)) == TEXTS
    assert read_prompts(path, limit=2) == TEXTS[:2]
    assert read_prompts(path, limit=99) == TEXTS


def test_a_dataset_object_gives_its_column():
    import datasets

    table = datasets.Dataset.from_dict({"question": list(TEXTS), "n": [1, 2, 3]})
    assert read_prompts(table, column="question", limit=2) == TEXTS[:2]


def test_another_split_of_a_saved_dataset_is_read(tmp_path):
    assert read_prompts(write_saved_splits(tmp_path), split="test") == TEXTS[:1]


def test_line_separators_inside_a_json_string_do_not_divide_a_line(tmp_path):
    path = tmp_path / "odd.jsonl"
    text = "one\u2028prompt\x85still"
    path.write_text(json.dumps({"text": text}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert read_prompts(path) == (text,)


def test_a_byte_order_mark_is_no_part_of_the_first_prompt(tmp_path):
    for name in ("a.txt", "a.csv"):
        path = tmp_path / name
        path.write_text("text\n", encoding="utf-8-sig")
    assert read_prompts(tmp_path / "a.txt") == ("text",)
    (tmp_path / "a.csv").write_text("text\nhello\n", encoding="utf-8-sig")
    assert read_prompts(tmp_path / "a.csv") == ("hello",)


def test_words_that_look_like_missing_values_stay_texts_in_csv(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text\nNA\nnull\n12\n")
    assert read_prompts(path) == ("NA", "null", "12")


# --- reading: refusals

REFUSED = {
    "column missing": ("a.jsonl", '{"question": "x", "n": 1}\n', r"column must be one of "
                       r"\['question', 'n'\], got 'text' for line 1 of .*a\.jsonl"),
    "column missing in csv": ("a.csv", "question,n\nx,1\n", r"column must be one of "
                              r"\['question', 'n'\], got 'text' for .*a\.csv"),
    "empty text": ("a.txt", " \n\n", r"prompts must not be empty; .*a\.txt holds none"),
    "empty list": ("a.json", "[]", r"prompts must not be empty; .*a\.json holds none"),
    "header only": ("a.csv", "text\n", r"prompts must not be empty; .*a\.csv holds none"),
    "empty string": ("a.jsonl", '{"text": "x"}\n{"text": " "}\n',
                     r"prompts must not be empty, got ' ' at line 2 of .*a\.jsonl"),
    "empty cell": ("a.csv", 'text,n\nx,1\n"",2\n',
                   r"prompts must not be empty, got '' at row 2 of .*a\.csv"),
    "number": ("a.jsonl", '{"text": 7}\n',
               r"prompts must be strings, got 7 \(int\) at line 1 of .*a\.jsonl"),
    "null": ("a.json", '["x", null]',
             r"prompts must be strings, got None \(NoneType\) at item 2 of .*a\.json"),
    "blank line": ("a.jsonl", '{"text": "x"}\n\n{"text": "y"}\n',
                   r"line 2 of .*a\.jsonl must be JSON, got ''"),
    "object for list": ("a.json", '{"text": "x"}', r"a\.json must hold a list .* got dict; put it"),
    "not json": ("a.json", "hello", r"a\.json must be JSON, got 'hello'"),
    "damaged parquet": ("a.parquet", "no parquet", r"a\.parquet must be a whole \.parquet file"),
    "empty csv": ("a.csv", "", r"a\.csv must be a whole \.csv file"),
    "ragged csv": ("a.csv", "text,n\nx,1\ny,1,2\n", r"a\.csv must be a whole \.csv file.*line 3"),
    "suffix": ("a.docx", "x", r"source must end in one of \.txt, \.jsonl, .* got .*a\.docx"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_bad_sources_are_refused_with_the_place(tmp_path, case):
    name, content, message = REFUSED[case]
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_prompts(tmp_path / name)


def test_a_file_that_is_not_utf8_is_refused(tmp_path):
    (tmp_path / "a.txt").write_bytes("früh".encode("latin-1"))
    with pytest.raises(ValueError, match=r"a\.txt must be UTF-8 text, got other bytes at offset 2"):
        read_prompts(tmp_path / "a.txt")


@pytest.mark.parametrize("source", [Path("nowhere"), "nowhere.jsonl", "/nowhere"])
def test_a_missing_file_is_refused_without_asking_the_hub(source):
    with pytest.raises(FileNotFoundError, match="source must be an existing file or folder"):
        read_prompts(source)


def test_a_name_found_nowhere_says_where_it_was_looked_for(monkeypatch, capfd):
    import datasets

    def unreachable(name: str, *, split: str) -> None:
        logging.getLogger("huggingface_hub.utils").warning("Retrying in 1s")
        raise ConnectionError(f"cannot reach {name} ({split})")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    level = logging.getLogger("huggingface_hub").level
    message = (
        r"source must be a file, a folder or a data set on the hub, got 'owner/data'; .*"
        r"the hub answered: cannot reach owner/data \(test\)"
    )
    with pytest.raises(FileNotFoundError, match=message):
        read_prompts("owner/data", split="test")
    assert capfd.readouterr().err == ""  # one sentence, no notes of what was tried
    assert logging.getLogger("huggingface_hub").level == level


def test_a_name_on_the_hub_is_loaded_with_its_split(monkeypatch):
    import datasets

    asked = []

    def load(name: str, *, split: str) -> datasets.Dataset:
        asked.append((name, split))
        return datasets.Dataset.from_dict({"text": ["x"]})

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert read_prompts("owner/data", split="test") == ("x",)
    assert asked == [("owner/data", "test")]


def test_a_folder_without_data_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="source must hold data files"):
        read_prompts(tmp_path)


def test_an_unknown_split_names_those_there_are(tmp_path):
    path = write_saved_splits(tmp_path)
    with pytest.raises(ValueError, match=r"split must be one of \['test', 'train'\], got 'dev'"):
        read_prompts(path, split="dev")


def test_a_dataset_with_several_splits_is_refused():
    import datasets

    table = datasets.Dataset.from_dict({"text": ["x"]})
    both = datasets.DatasetDict({"train": table, "test": table})
    with pytest.raises(ValueError, match=r"must be one split, got .*\['test', 'train'\]"):
        read_prompts(both)


def test_a_limit_below_one_is_refused(tmp_path):
    with pytest.raises(ValueError, match="limit must be finite and positive, got 0"):
        read_prompts(write_text(tmp_path), limit=0)


# --- token ids


def test_ids_are_the_tokenizers_own_with_its_default_special_tokens():
    found = tokenize_prompts(word_tokenizer(), ["a b", "c"])
    assert found.input_ids == ((BOS, A, B), (BOS, C))
    assert found.texts == ("a b", "c")
    assert (len(found), found.n_tokens, found.n_truncated) == (2, 5, 0)
    assert tokenize_prompts(word_tokenizer(bos=False), ["a b"]).input_ids == ((A, B),)


def test_a_chat_template_writes_bos_once_and_opens_the_assistants_turn():
    found = tokenize_prompts(word_tokenizer(), ["a b"], chat=True)
    assert found.input_ids == ((BOS, USER, A, B, EOS, ASSISTANT),)
    assert found.texts == ("<s> [user] a b </s> [assistant]",)


def test_token_ids_are_used_as_they_are():
    found = tokenize_prompts(word_tokenizer(), [[A, B], "a b", (C,)])
    assert found.input_ids == ((A, B), (BOS, A, B), (C,))
    assert found.texts == ("a b", "a b", "c")


def test_max_length_keeps_the_beginning_and_counts_what_it_cut():
    found = tokenize_prompts(word_tokenizer(), ["a b c d", "a b", "a"], max_length=3)
    assert found.input_ids == ((BOS, A, B), (BOS, A, B), (BOS, A))
    assert found.texts == ("a b c d", "a b", "a")
    assert found.n_truncated == 1


def test_a_prompt_of_exactly_the_context_passes_and_one_more_token_is_refused():
    tokenizer = word_tokenizer()
    assert tokenize_prompts(tokenizer, ["a b c"], context=4).n_tokens == 4
    message = (
        r"prompts\[1\] must fit the model's context of 4 tokens, got 5 tokens; pass max_length=4"
    )
    with pytest.raises(ValueError, match=message):
        tokenize_prompts(tokenizer, ["a", "a b c d"], context=4)
    assert tokenize_prompts(tokenizer, ["a b c d"], context=4, max_length=4).n_truncated == 1
    with pytest.raises(ValueError, match=r"context of 3 tokens, got 4 tokens"):
        tokenize_prompts(tokenizer, ["a b c d"], context=3, max_length=4)


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([], {}, r"prompts must not be empty; give at least one text"),
        ("a b", {}, r"prompts must be a list of texts, got one string; put it into a list"),
        (["a", " "], {}, r"prompts\[1\] must not be empty; remove it"),
        ([[]], {}, r"prompts\[0\] must have at least one token, got none"),
        ([[A, -100]], {}, r"prompts\[0\] must hold token ids of at least 0, got -100"),
        ([[A]], {"chat": True}, r"chat must be False for token ids, got True with ids at prompts"),
        (["a"], {"max_length": 0}, r"max_length must be finite and positive, got 0"),
    ],
)
def test_bad_prompts_are_refused_with_their_index(prompts, options, message):
    with pytest.raises(ValueError, match=message):
        tokenize_prompts(word_tokenizer(), prompts, **options)


def test_chat_without_a_template_is_refused():
    with pytest.raises(ValueError, match=r"chat must be False for a tokenizer without a chat temp"):
        tokenize_prompts(word_tokenizer(template=None), ["a"], chat=True)


def test_ids_without_texts_are_refused():
    with pytest.raises(ValueError, match=r"texts must have one entry a prompt \(2\), got 1"):
        TokenizedPrompts(input_ids=((A,), (B,)), texts=("a",), n_truncated=0)


# --- the digest

rows = st.lists(st.lists(st.integers(0, 10**6), min_size=1, max_size=5).map(tuple), max_size=4)


def digest(ids: list[tuple[int, ...]], text: str = "") -> str:
    given_ids = tuple(ids)
    return TokenizedPrompts(
        input_ids=given_ids, texts=(text,) * len(given_ids), n_truncated=0
    ).digest


def test_the_digest_is_sha256_of_the_ids_as_compact_json():
    assert digest([(1, 2), (3,)]) == hashlib.sha256(b"[[1,2],[3]]").hexdigest()


@given(rows, rows)
def test_digests_are_equal_exactly_when_the_ids_are(left, right):
    assert (digest(left, "x") == digest(right, "y")) == (left == right)


def test_the_division_into_prompts_enters_the_digest():
    assert len({digest([(1, 2, 3)]), digest([(1, 2), (3,)]), digest([(1,), (2, 3)])}) == 3
