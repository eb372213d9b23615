"""The command line: what it prints, to whom, with which exit status, and every bad input."""

import errno
import io
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import safetensors.torch
import torch
from conftest import Answer, Run
from rich.console import Console
from safetensors import SafetensorError
from tiny_models import FAMILIES, llama, save_model

from mi_massive import _terminal, capture, cli, load_result
from mi_massive.models.wheel import DEFAULT_MODEL
from mi_massive.report.folder import PAGE, SUMMARY

COMMANDS = (
    *("report", "concentration", "bands", "symmetry", "disrupt", "conflict", "patch"),
    *("surgery", "quantize", "twins", "lm-eval", "tasks", "presets", "models", "doctor"),
)
ANALYSES = ("concentration", "bands", "symmetry")
WORDS = "\n\n".join(" ".join(f"t{(7 * i + j * j) % 61}" for j in range(9 + i)) for i in range(6))


@pytest.fixture(scope="module", name="tiny")
def fixture_tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama, saved."""
    return llama().save(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module", name="control")
def fixture_control(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny GPT-2, which does not rotate, saved."""
    return FAMILIES["gpt2"].save(tmp_path_factory.mktemp("models") / "gpt2")


@pytest.fixture(scope="module", name="texts")
def fixture_texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six prompts of words that the tiny models know."""
    path = tmp_path_factory.mktemp("texts") / "words.txt"
    path.write_text(WORDS)
    return path


@pytest.fixture(name="loading_forbidden")
def fixture_loading_forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where a model would be loaded: what is refused must be refused before."""
    import mi_massive.models.load

    def refuse(*args: object, **kw: object) -> None:
        raise AssertionError("the model was loaded first")

    monkeypatch.setattr(mi_massive.models.load, "load_model", refuse)


def refused(answer: Answer) -> str:
    """The sentence of a refusal: one line on the error stream, nothing on the output."""
    assert answer.status == 1
    assert answer.out == ""
    assert answer.err.startswith("error: ")
    assert answer.err.count("\n") == 1
    assert "Traceback" not in answer.err
    return answer.err.removeprefix("error: ").strip()


def parsed(text: str) -> Any:
    """JSON as a strict parser reads it: NaN and Infinity are no JSON."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


LISTS = {"models": "built_in", "tasks": "tasks", "presets": "presets"}
"""Commands that run no model, and a key of what they print."""

# --- help and models


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_every_option(command: str, run: Run) -> None:
    answer = run(command, "--help")
    assert answer.status == 0
    options = {name: ["--json"] for name in ("models", "tasks", "presets")}
    options["conflict"] = ["--preset", "--k", "--seeds", "--layers", "--relations", "--legacy"]
    options["doctor"] = ["--device", "--dtype", "--save", "--json", "--quiet"]
    options["disrupt"] = ["--preset", "--k", "--seeds", "--layers", "--tasks", "--data", "--limit"]
    options["surgery"] = ["--tasks", "--limit", "--bands", "--seeds", "--cells", "--save", "--json"]
    options["quantize"] = ["--method", "--bits", "--group", "--calibration", "--seeds", "--save"]
    options["twins"] = ["--cells", "--arms", "--seeds", "--corpus", "--steps", "--dtype", "--json"]
    options["lm-eval"] = ["--model_args", "pretrained", "preset", "layers", "run --help"]
    options["patch"] = ["--site", "--granularity", "--groups", "--limit", "--cells", "--json"]
    common = [
        "--prompts",
        "--column",
        "--split",
        "--limit",
        "--chat",
        "--max-length",
        "--ratio",
        "--batch-size",
    ]
    own = {
        "report": [
            "--out",
            "--control",
            "--examples",
            "--disruption",
            "--conflict",
            "--fluency",
            "--patched",
            "--surgery",
        ],
        "bands": ["--bands"],
    }
    wanted = options.get(command, [*common, "--skip-first", *own.get(command, ["--save"])])
    assert [option for option in wanted if option not in answer.out] == []


def test_help_shows_the_defaults_of_the_config_classes(run: Run) -> None:
    text = " ".join(run("symmetry", "--help").out.split())
    assert "default: 5.0" in text
    assert "default: 2" in text
    assert "default: 8" in run("bands", "--help").out


@pytest.mark.parametrize("command", [*ANALYSES, "report", "doctor"])
def test_without_a_model_the_default_model_is_taken(
    command: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mi_massive.models.load

    def refuse(name: str, **kw: object) -> None:
        raise ValueError(f"asked for {name}")

    monkeypatch.setattr(mi_massive.models.load, "load_model", refuse)
    out = ["--out", tmp_path / "report"] if command == "report" else []
    assert refused(run(command, *out)) == f"asked for {DEFAULT_MODEL}"
    assert f"default: {DEFAULT_MODEL}" in " ".join(run(command, "--help").out.split())


def test_without_a_command_the_help_is_shown(run: Run) -> None:
    answer = run()
    assert all(command in answer.out + answer.err for command in COMMANDS)


def test_the_version_is_that_of_the_package(run: Run) -> None:
    status, out, err = run("--version")
    assert (status, err) == (0, "")
    assert out == f"mi-massive {version('mi-massive')}\n"


def test_models_lists_built_in_names_and_families(run: Run) -> None:
    listed = parsed(run("models", "--json").out)
    assert [row["name"] for row in listed["built_in"]] == [
        "smollm2-135m-instruct",
        "all-minilm-l6-v2",
    ]
    assert {row["state"] for row in listed["built_in"]} <= {"in the cache", "fetched at first use"}
    rotation = {row["model_type"]: row["rotation"] for row in listed["families"]}
    assert rotation["llama"] == "half_split"
    assert rotation["gptj"] == "interleaved"
    assert rotation["bert"] == "none"


@pytest.mark.parametrize(("command", "named"), LISTS.items())
def test_lists_load_neither_transformers_nor_statistics(command: str, named: str) -> None:
    script = (
        f"import sys; sys.argv = ['mi-massive', {command!r}, '--json']\n"
        "from mi_massive.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = ('transformers', 'transformer_lens', 'scipy.stats', 'statsmodels', 'plotly')\n"
        "print([name for name in heavy if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stderr.strip() == "[]"
    assert named in parsed(done.stdout)


def test_on_a_terminal_tables_fit_80_columns(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    terminal = Console(file=shown, force_terminal=True, width=80, no_color=True)
    monkeypatch.setattr(_terminal, "_output", terminal)
    assert run("models").status == 0
    for record in ("concentration", "bands", "symmetry"):
        path = Path(__file__).parent.parent / f"experiments/records/{record}_*.json"
        result = load_result(sorted(path.parent.glob(path.name))[-1])
        _terminal.print_result(result, {}, as_json=False)
    claims = Path(__file__).parent.parent / "experiments/records/claims_smollm2-135m-instruct.json"
    _terminal.print_claims(load_result(claims).claims)
    text = re.sub(r"\x1b\[[0-9;]*m", "", shown.getvalue())
    assert "smollm2-135m-instruct" in text
    assert "two_mirror_share" in text
    assert [line for line in text.splitlines() if len(line) > 80] == []


@pytest.mark.parametrize("plain", [False, True])
def test_on_a_terminal_with_colours_telling_words_have_one(
    plain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = io.StringIO()
    monkeypatch.setenv("TERM", "xterm-256color")
    if plain:
        monkeypatch.setenv("NO_COLOR", "1")
    else:
        monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(_terminal, "_output", Console(file=shown, force_terminal=True, width=80))
    rows = [
        {"verdict": "supported", "statement": "supported"},
        {"verdict": "not supported", "statement": "not supported"},
    ]
    _terminal.print_records("Claims", rows)
    green, red = "\x1b[32m", "\x1b[31m"
    assert (shown.getvalue().count(green), shown.getvalue().count(red)) == (
        (0, 0) if plain else (1, 1)
    )
    text = re.sub(r"\x1b\[[0-9;]*m", "", shown.getvalue())
    assert text.splitlines()[2:4] == [
        "supported      supported",
        "not supported  not supported",
    ]


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("doctor smol", ["smollm2-135m-instruct"]),
        ("disrupt --preset paper,sink_", ["paper,sink_preserving", "paper,sink_only"]),
        ("surgery --tasks passkey_128_6,passkey_1", ["passkey_128_6,passkey_1024_48"]),
        ("twins --arms rope,rope", ["rope,rope_1e2", "rope,rope_5e5"]),
        ("bands --dtype b", ["bfloat16"]),
    ],
)
def test_the_shell_is_offered_names(typed: str, offered: list[str]) -> None:
    words = f"mi-massive {typed}"
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; sys.argv = ['mi-massive']; from mi_massive.cli import main; main()",
        ],
        env=os.environ
        | {
            "_MI_MASSIVE_COMPLETE": "complete_bash",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split()) - 1),
        },
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == offered


def test_brackets_in_a_name_are_not_markup(capsys: pytest.CaptureFixture[str]) -> None:
    _terminal.print_records("[bold]x[/bold]", [{"name": "[red]", "text": ":smile: [/]"}])
    out = capsys.readouterr().out
    assert "[bold]x[/bold]" in out
    assert "[red]  :smile: [/]" in out


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        *[(float("nan"), "-"), (0.0, "0"), (-3e-19, "0"), (2.5, "2.5"), (-0.05523, "-0.055")],
        *[(5e-4, "5e-04"), (0.037482, "0.037"), (123.456, "123"), (0.9999, "1")],
    ],
)
def test_numbers_have_three_digits_or_decimals(value: float, shown: str) -> None:
    assert _terminal._number(value) == shown


# --- the analyses


@pytest.mark.parametrize("command", ANALYSES)
def test_an_analysis_prints_json_and_saves_its_result(
    command: str, tiny: Path, texts: Path, tmp_path: Path, run: Run
) -> None:
    save = tmp_path / "deep" / "result.json"
    answer = run(command, tiny, "--prompts", texts, "--json", "--save", save)
    assert answer.status == 0
    assert answer.err == ""  # not a terminal: neither progress nor a message
    document = parsed(answer.out)
    assert document["model"] == str(tiny)
    assert document["provenance"]["n_prompts"] == 6
    part = {"concentration": "contrast_q", "bands": "partial_cycle"}
    estimate = document["estimates"][part.get(command, "phase_offset_magnitude")]
    assert set(estimate) >= {"effect", "low", "high", "n", "n_of", "test", "p_value", "null"}
    result = load_result(save)
    assert result.config.ratio == 5.0
    assert result.provenance.model == str(tiny)


def test_options_reach_the_capture_and_the_analysis(
    tiny: Path, texts: Path, tmp_path: Path, run: Run
) -> None:
    save = tmp_path / "result.json"
    options = ["--limit", 2, "--max-length", 5, "--skip-first", "--ratio", 2, "--batch-size", 1]
    kind = ["--bands", 4, "--dtype", "bfloat16", "--save", save]
    answer = run("bands", tiny, "--prompts", texts, *options, *kind)
    assert answer.status == 0
    result = load_result(save)
    assert (result.config.ratio, result.config.n_bands) == (2.0, 4)
    assert (result.provenance.batch_size, result.provenance.n_prompts) == (1, 2)
    assert result.provenance.dtype == "bfloat16"
    assert "band_energy_q: [" in answer.out


def test_the_command_works_as_a_module_and_quiet_leaves_the_error_stream_empty(
    tiny: Path, texts: Path
) -> None:
    command = [sys.executable, "-m", "mi_massive", "concentration", str(tiny)]
    done = subprocess.run(
        [*command, "--prompts", str(texts), "--quiet"], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "contrast_q" in done.stdout
    assert "\x1b" not in done.stdout  # plain text where it is no terminal


@pytest.mark.parametrize("quiet", [False, True])
def test_progress_is_shown_on_a_terminal_unless_quiet(
    quiet: bool, tiny: Path, texts: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = io.StringIO()
    terminal = Console(file=shown, force_terminal=True, width=80)
    monkeypatch.setattr(_terminal, "_messages", terminal)
    flags = ["--quiet"] if quiet else []
    assert run("concentration", tiny, "--prompts", texts, *flags).status == 0
    assert ("6/6" in shown.getvalue()) != quiet
    assert ("loading" in shown.getvalue()) != quiet
    assert (shown.getvalue() == "") == quiet


def test_doctor_says_what_can_be_trusted(tiny: Path, tmp_path: Path, run: Run) -> None:
    answer = run("doctor", tiny, "--json", "--save", tmp_path / "checks.json")
    assert load_result(tmp_path / "checks.json").healthy
    assert answer.status == 0
    document = parsed(answer.out)
    assert document["healthy"] is True
    assert {check["outcome"] for check in document["checks"]} == {"ok"}
    source = document["provenance"]
    assert source["versions"].keys() >= {"torch", "mi-massive"}
    assert (source["device"], source["command"].split()[1]) == ("cpu", "doctor")


def test_doctor_exits_with_1_when_a_check_deviates(
    tiny: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mi_massive import doctor

    monkeypatch.setattr(doctor, "_difference", lambda *args, **kw: 0.5)
    answer = run("doctor", tiny)
    assert answer.status == 1
    assert "deviates" in answer.out
    assert "it cannot be said that" in answer.out


# --- the report


@pytest.fixture(scope="module", name="first_report")
def fixture_first_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the first test that needs a report leaves it for the others."""
    return tmp_path_factory.mktemp("first") / "report"


@pytest.fixture(name="reported")
def fixture_reported(
    first_report: Path, tiny: Path, control: Path, texts: Path, tmp_path: Path, run: Run
) -> Path:
    """A finished report on the tiny Llama, this test's own."""
    if not first_report.exists():
        options = ["--control", control, "--prompts", texts, "--out", first_report]
        answer = run("report", "--examples", "0", tiny, *options, "--json")
        assert (answer.status, answer.err) == (0, "")
        assert parsed(answer.out)["model"] == str(tiny)
    return Path(shutil.copytree(first_report, tmp_path / "report"))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_report_is_replaced_by_one_on_the_same_folder_however_it_is_named(
    reported: Path, tiny: Path, control: Path, texts: Path, run: Run, monkeypatch: Any
) -> None:
    claims = json.loads((reported / SUMMARY).read_text())["claims"]
    assert next(claim for claim in claims if claim["id"] == "C3")["n"] > 0
    monkeypatch.chdir(tiny.parent)
    common = ["--prompts", texts, "--out", reported]
    answer = run("report", "--examples", "0", "./llama", "--control", "none", *common)
    assert answer.status == 0
    assert answer.out.endswith(f"report: {reported / PAGE}\n")
    assert "C1 " in answer.out
    assert json.loads((reported / SUMMARY).read_text())["model"] == str(tiny)

    other = refused(run("report", "--examples", "0", control, "--control", "none", *common))
    assert f"hold a report on '{control}', got a report on '{tiny}'" in other
    assert other.endswith("choose another folder or pass --overwrite")
    before = contents(reported)
    assert (
        run(
            "report", "--examples", "0", control, "--control", "none", *common, "--overwrite"
        ).status
        == 0
    )
    assert contents(reported).keys() < before.keys()  # bands and symmetry need RoPE


def test_a_report_with_chat_gives_the_control_plain_texts(
    control: Path, texts: Path, tmp_path: Path, run: Run
) -> None:
    folder = llama().save(tmp_path / "chat")
    template = "{{ bos_token }} t1 {{ messages[0]['content'] }} t2"
    (folder / "chat_template.jinja").write_text(template)
    out = tmp_path / "report"
    common = ["--prompts", texts, "--limit", 2, "--control", control, "--out", out]
    assert run("report", "--examples", "0", folder, "--chat", *common).status == 0
    tokens = pd.read_parquet(out / "patterns.parquet").token
    assert list(tokens[:3]) == ["<s>", "t1", "t0"]
    sentence = refused(run("concentration", control, "--prompts", texts, "--chat"))
    assert sentence.endswith("use an instruction-tuned model or leave out --chat")


@pytest.mark.parametrize("moment", ["capture", "write"])
def test_an_interrupt_leaves_the_old_report_as_it_was(
    moment: str, reported: Path, tiny: Path, texts: Path, run: Run, monkeypatch: Any
) -> None:
    def interrupt(*args: object, **kw: object) -> None:
        raise KeyboardInterrupt

    if moment == "capture":
        monkeypatch.setattr(capture, "_capture_batch", interrupt)
    else:
        monkeypatch.setattr(pd.DataFrame, "to_parquet", interrupt)
    before = contents(reported)
    answer = run(
        "report",
        "--examples",
        "0",
        tiny,
        "--control",
        "none",
        "--prompts",
        texts,
        "--out",
        reported,
    )
    assert answer == (130, "", "error: interrupted; nothing half-written was left behind\n")
    assert contents(reported) == before
    assert [path.name for path in reported.parent.iterdir()] == [reported.name]


def test_a_full_disk_is_one_sentence_and_keeps_what_was_there(
    reported: Path, tiny: Path, texts: Path, run: Run, monkeypatch: Any
) -> None:
    def fill_up(*args: object, **kw: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pd.DataFrame, "to_parquet", fill_up)
    before = contents(reported)
    options = ["--prompts", texts, "--limit", 2]
    answer = run(
        "report", "--examples", "0", tiny, "--control", "none", *options, "--out", reported
    )
    full = "the disk must have room, got 'No space left on device'; free some space or choose"
    assert refused(answer).startswith(full)
    assert contents(reported) == before

    def fill_up_rust(*args: object, **kw: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    save = reported.parent / "saved" / "result.json"
    monkeypatch.setattr(safetensors.torch, "save_file", fill_up_rust)
    answer = run("concentration", tiny, *options, "--save", save)
    assert answer.status == 1
    assert "contrast_q" in answer.out  # what was computed is still shown
    full = "error: the disk must have room, got 'I/O error: No space left on device"
    assert answer.err.startswith(full)
    assert list(save.parent.iterdir()) == []


# --- bad models


def test_an_unknown_name_is_refused(run: Run) -> None:
    sentence = refused(run("bands", "smollm2-135m-instruc"))
    assert "got 'smollm2-135m-instruc' (did you mean smollm2-135m-instruct?)" in sentence


def test_a_missing_file_is_refused(run: Run, tmp_path: Path) -> None:
    sentence = refused(run("doctor", tmp_path / "gone.gguf"))
    assert f"nothing is at {tmp_path / 'gone.gguf'}" in sentence


@pytest.mark.parametrize("content", [b"GGUF", b"GGUF" + bytes(20), b"PK\x03\x04"])
def test_a_truncated_gguf_file_is_refused(content: bytes, run: Run, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    sentence = refused(run("concentration", path))
    assert str(path) in sentence
    assert sentence.endswith("download it again") or "must name its architecture" in sentence


def test_a_folder_without_safetensors_is_refused(run: Run, tiny: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "copy"))
    (folder / "model.safetensors").unlink()
    assert "must have model.safetensors" in refused(run("concentration", folder))
    (folder / "pytorch_model.bin").write_bytes(b"")
    assert "weights must be safetensors, got the pickle" in refused(run("concentration", folder))


def test_an_encoder_decoder_is_refused(run: Run, tiny: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "copy"))
    config = {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}
    (folder / "config.json").write_text(json.dumps(config | {"is_encoder_decoder": True}))
    sentence = refused(run("concentration", folder))
    assert "must be a decoder or an encoder, got the encoder-decoder t5" in sentence


@pytest.mark.parametrize("command", ["bands", "symmetry"])
def test_a_model_without_rope_has_no_frequencies(
    command: str, run: Run, control: Path, texts: Path
) -> None:
    sentence = refused(run(command, control, "--prompts", texts))
    assert "rotary position embeddings" in sentence


def test_a_control_that_rotates_is_refused(
    run: Run, tiny: Path, texts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "report"
    answer = run(
        "report", "--examples", "0", tiny, "--control", tiny, "--prompts", texts, "--out", out
    )
    assert "control must be a model without rotary position embeddings" in refused(answer)
    assert not out.exists()


def test_activations_that_overflow_are_refused(run: Run, texts: Path, tmp_path: Path) -> None:
    model = llama().build()
    with torch.no_grad():
        embedding: Any = model.get_submodule("model.embed_tokens").weight
        weight: Any = model.get_submodule("model.layers.0.self_attn.k_proj").weight
        weight[3] = 1e4 * embedding[7] / embedding[7].norm()  # 80,000 for token 7 alone
    folder = save_model(model, tmp_path / "huge")
    sentence = refused(run("concentration", folder, "--prompts", texts, "--dtype", "float16"))
    assert sentence.startswith("activations must be finite, got ")
    assert sentence.endswith("with --dtype float32 or bfloat16 (float16 overflows above 65504)")


# --- bad options, refused before a model is loaded


@pytest.mark.parametrize("ratio", ["0", "-1", "nan", "inf"])
@pytest.mark.parametrize("command", [*ANALYSES, "report"])
def test_a_bad_ratio_is_refused(
    command: str, ratio: str, run: Run, tmp_path: Path, loading_forbidden: None
) -> None:
    out = ["--out", tmp_path / "report"] if command == "report" else []
    sentence = refused(run(command, "any", "--ratio", ratio, *out))
    assert re.match(r"ratio must be finite and positive, got (0.0|-1.0|nan|inf)$", sentence)


@pytest.mark.parametrize("command", ANALYSES)
def test_a_result_that_could_not_be_saved_is_refused(
    command: str, run: Run, tmp_path: Path, loading_forbidden: None
) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder.json").mkdir()
    for save, message in {
        "result.pt": f"--save must end in .json, got {tmp_path / 'result.pt'}",
        "file/result.json": f"where {tmp_path / 'file'} is no folder; choose another place",
        "folder.json": "--save must be a file, got the folder",
    }.items():
        assert message in refused(run(command, "any", "--save", tmp_path / save))


def test_a_folder_without_permission_is_refused(
    run: Run, tmp_path: Path, monkeypatch: Any, loading_forbidden: None
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    for option, command in (("--save", "bands"), ("--out", "report")):
        sentence = refused(run(command, "any", option, tmp_path / "new" / "x.json"))
        assert sentence.startswith(f"{option} must lie in a folder that can be written, got ")
        assert f"where {tmp_path} is a folder that you may not write to" in sentence


def test_an_output_that_is_something_else_is_refused(
    run: Run, tmp_path: Path, loading_forbidden: None
) -> None:
    (tmp_path / "file").write_text("x")
    for out in (tmp_path / "file", tmp_path, tmp_path / "file" / "report"):
        sentence = refused(run("report", "--examples", "0", "any", "--out", out))
        assert str(out) in sentence
        assert "must" in sentence


def test_a_split_of_a_data_set_is_chosen_by_its_name(run: Run, tiny: Path, tmp_path: Path) -> None:
    import datasets

    rows = datasets.Dataset.from_dict({"text": ["t1 t2 t3 t4", "t5 t6 t7"]})
    datasets.DatasetDict({"test": rows}).save_to_disk(tmp_path / "set")
    options = ["concentration", tiny, "--prompts", tmp_path / "set", "--json"]
    assert "split must be one of ['test'], got 'train'" in refused(run(*options))
    answer = run(*options, "--split", "test")
    assert answer.status == 0
    assert json.loads(answer.out)["provenance"]["n_prompts"] == 2


def test_one_example_is_refused_before_a_model_is_loaded(
    run: Run, tmp_path: Path, loading_forbidden: None
) -> None:
    out = tmp_path / "report"
    one = refused(run("report", "any", "--examples", "1", "--out", out))
    assert "--examples must be 0 or at least 2, got 1" in one


def test_a_battery_that_does_not_fit_the_model_says_how_to_report_without_it(
    run: Run, tiny: Path, texts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "report"
    options = ["--control", "none", "--prompts", texts, "--out", out]
    sentence = refused(run("report", tiny, "--examples", "2", *options))
    assert sentence.endswith("; or report without tasks: --examples 0")
    assert not out.exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.txt", None, "source must be an existing file or folder, got"),
        ("empty.txt", "\n \n", "prompts must not be empty; "),
        ("empty.jsonl", '{"text": " "}', "prompts must not be empty, got ' ' at line 1"),
        ("other.jsonl", '{"prompt": "x"}', "column must be one of ['prompt'], got 'text'"),
        ("broken.jsonl", '{"text": ', "line 1 of "),
        ("table.xlsx", "x", "source must end in one of .txt, .jsonl, .json, .csv, .parquet"),
    ],
)
def test_bad_prompts_are_refused(
    name: str, content: str | None, message: str, run: Run, tmp_path: Path, loading_forbidden: None
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    for command, more in (("concentration", []), ("report", ["--out", tmp_path / "report"])):
        assert message in refused(run(command, "any", "--prompts", path, *more))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--column", "body"], "--column must come with --prompts, got 'body' without"),
        (["--split", "test"], "--split must come with --prompts, got 'test' without"),
        (["--split", "test", "--prompts", "TEXTS"], "--split must be left out for a source with"),
        (["--column", "body", "--prompts", "TEXTS"], "--column must be left out for a text file"),
    ],
)
def test_a_column_or_split_that_would_be_ignored_is_refused(
    given: list[str], message: str, run: Run, texts: Path, tmp_path: Path, loading_forbidden: None
) -> None:
    options = [str(texts) if part == "TEXTS" else part for part in given]
    for command in ANALYSES:
        assert refused(run(command, "any", *options)).startswith(message)
    out = tmp_path / "report"
    assert refused(run("report", "any", "--out", out, *options)).startswith(message)


def test_a_prompt_beyond_the_context_names_the_option(
    run: Run, tiny: Path, control: Path, tmp_path: Path
) -> None:
    path = tmp_path / "long.txt"
    path.write_text("t1 " * 129)
    message = "129 tokens; pass --max-length 128 to keep only its beginning"
    assert message in refused(run("concentration", tiny, "--prompts", path))
    options = ["--prompts", path, "--control", control, "--out", tmp_path / "report"]
    assert message in refused(run("report", "--examples", "0", tiny, *options))
    assert run("concentration", tiny, "--prompts", path, "--max-length", 128).status == 0


def test_a_prompt_beyond_the_context_of_the_control_alone_is_cut_and_that_is_said(
    run: Run, tiny: Path, tmp_path: Path
) -> None:
    model = FAMILIES["gpt2"].build()
    model.config.n_positions = 10
    model.get_submodule("transformer").wpe.weight = torch.nn.Parameter(torch.randn(10, 64))
    small, texts, out = tmp_path / "small", tmp_path / "texts.txt", tmp_path / "report"
    save_model(model, small)
    texts.write_text(WORDS)
    assert (
        run(
            "report", "--examples", "0", tiny, "--prompts", texts, "--control", small, "--out", out
        ).status
        == 0
    )
    note = f"4 of 6 prompts were cut to 10 tokens, the context of {small}."
    assert note in (out / PAGE).read_text(encoding="utf-8")


def test_a_prompt_with_one_token_names_the_option(run: Run, tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text("t1")
    sentence = refused(run("concentration", tiny, "--prompts", path, "--skip-first"))
    assert sentence.endswith("leave it out or leave out --skip-first")


def test_an_unknown_dtype_or_device_is_refused(run: Run, tiny: Path) -> None:
    sentence = refused(run("doctor", tiny, "--dtype", "int8"))
    assert sentence == "--dtype must be one of float32, bfloat16, float16, got 'int8'"
    sentence = refused(run("doctor", tiny, "--device", "gpu"))
    assert sentence.startswith("device must be one that torch knows, such as cpu, cuda")
    sentence = refused(run("doctor", tiny, "--device", "cuda:99"))
    assert sentence.endswith("in this build of torch, got 'cuda:99'; use cpu")


@pytest.mark.parametrize(
    "arguments",
    [["report"], ["nonsense"], ["bands", "x", "--limit", "0"], ["bands", "x", "--bands", "many"]],
)
def test_wrong_usage_exits_with_2_and_no_traceback(arguments: list[str], run: Run) -> None:
    answer = run(*arguments)
    assert answer.status == 2
    assert "Usage" in answer.err
    assert "Traceback" not in answer.err


def test_unforeseen_errors_are_not_hidden(run: Run, tiny: Path, monkeypatch: Any) -> None:
    import mi_massive.models.load

    def fail(*args: object, **kw: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(mi_massive.models.load, "load_model", fail)
    monkeypatch.setattr(sys, "argv", ["mi-massive", "doctor", str(tiny)])
    with pytest.raises(ZeroDivisionError):
        cli.main()


def test_a_report_without_tasks_refuses_answers_that_it_would_not_judge(
    run: Run, tmp_path: Path
) -> None:
    record = Path(__file__).parent.parent / "experiments/records"
    record /= f"figure3_{DEFAULT_MODEL}.json"
    out = tmp_path / "report"
    answer = run("report", "--out", out, "--examples", 0, "--fluency", record)
    assert refused(answer) == (
        "--fluency must come with --examples or --disruption, under whose edits C5b is judged"
    )
    assert not out.exists()
