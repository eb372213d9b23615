import json
import math
from pathlib import Path

import pandas as pd
import pytest
import sample_results as sample
import torch
from builders import build_geometry, build_norms, build_provenance
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from mi_massive.claims import Claim, ScoreboardResult
from mi_massive.disruption import DisruptionResult
from mi_massive.norms import AttentionNorms, SiteSums
from mi_massive.records import load_result, save_result, write_atomically
from mi_massive.stats import Estimate, Interval

ESTIMATE = Estimate(effect=1.5, low=math.nan, high=math.inf, n=3, n_of="prompts", test="none")


def norms() -> AttentionNorms:
    """Nested dataclasses, tuples, None, NaN tensors (first token skipped) and integer tensors."""
    q = torch.randn(2, 3, 2, 2, 8, generator=torch.Generator().manual_seed(0))
    return build_norms(q, q, q, geometry=build_geometry(2, 2, 8, n_pairs=2), skip_first=True)


def board(reading: str = "Nothing.") -> ScoreboardResult:
    claim = Claim(
        id="C1",
        statement="Values hold none.",
        verdict="inconclusive",
        estimate=ESTIMATE,
        quantity="ratio",
        reading=reading,
    )
    return ScoreboardResult(claims=(claim, claim), provenance=build_provenance())


def test_a_result_with_tensors_comes_back_bit_for_bit(tmp_path: Path) -> None:
    before = norms()
    path = save_result(before, tmp_path / "new" / "norms.json")
    after = load_result(path)
    assert isinstance(after, AttentionNorms)
    assert torch.equal(after.q, before.q)
    assert after.q_sums.first.isnan().all()
    assert after.v_sums.phasors is None
    assert after.n_tokens.dtype == torch.int64
    assert after.layers == (0, 1)
    assert after.geometry.layers[0].rotary.inv_freq.dtype == torch.float64
    assert after.provenance == before.provenance


def test_nan_and_infinity_in_plain_numbers_survive(tmp_path: Path) -> None:
    after = load_result(save_result(board(), tmp_path / "board.json"))
    estimate = after.claims[0].estimate
    assert math.isnan(estimate.low)
    assert estimate.high == math.inf
    assert math.isnan(estimate.p_value)
    assert isinstance(after.claims, tuple)


def test_an_experiment_with_tasks_comes_back_whole(tmp_path: Path) -> None:
    before = sample.disruption_result(ks=(4, 8))
    after = load_result(save_result(before, tmp_path / "disruption.json"))
    assert isinstance(after, DisruptionResult)
    pd.testing.assert_frame_equal(after.to_frame(), before.to_frame())
    pd.testing.assert_frame_equal(after.effects_frame(), before.effects_frame())
    assert after.to_frame()["lost_share"].isna().any()
    assert (after.arms, after.config) == (before.arms, before.config)
    assert torch.equal(after.effects.sink_mass, before.effects.sink_mass)
    assert after.effects.cross_entropy.isnan().any()
    assert repr(after.contrasts) == repr(before.contrasts)
    assert repr(after.cells) == repr(before.cells)


@given(text=st.text(max_size=30))
@settings(deadline=None, max_examples=25)
def test_any_text_survives(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("text") / "board.json"
    after = load_result(save_result(board(text), path))
    assert after.claims[1].reading == text


def test_a_result_without_tensors_is_one_file_and_removes_stale_tensors(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    save_result(norms(), path)
    save_result(board(), path)
    assert [file.name for file in tmp_path.iterdir()] == ["result.json"]


def test_tensors_that_share_memory_or_are_views_are_saved_apart(tmp_path: Path) -> None:
    shared = torch.arange(12.0).reshape(3, 4)
    view = shared.T[:, :, None, None]
    before = SiteSums(squares=view, total=view, first=view, phasors=None)
    after = load_result(save_result(before, tmp_path / "sums.json"))
    assert torch.equal(after.squares, before.squares)
    assert torch.equal(after.first, view)


def test_another_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"path must end in \.json, got .*board\.txt"):
        save_result(board(), tmp_path / "board.txt")


@pytest.mark.parametrize("thing", [{"a": 1}, ESTIMATE.effect, AttentionNorms])
def test_only_instances_of_result_classes_are_saved(thing: object, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="result must be a dataclass of mi_massive, got"):
        save_result(thing, tmp_path / "thing.json")


def test_what_json_cannot_hold_is_refused_by_name_and_leaves_no_file(tmp_path: Path) -> None:
    import numpy as np

    interval = Interval(low=np.zeros(2), high=np.ones(2), method="BCa")
    with pytest.raises(
        ValueError, match="low must be a tensor, a dataclass of mi_massive or plain"
    ):
        save_result(interval, tmp_path / "interval.json")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("key", ["$tensor", "$type"])
def test_a_key_that_would_be_misread_is_refused(key: str, tmp_path: Path) -> None:
    result = build_provenance(versions={key: "1"})
    with pytest.raises(ValueError, match=r"versions must have names without a leading \$ as keys"):
        save_result(result, tmp_path / "provenance.json")


def test_a_missing_json_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.json"):
        load_result(tmp_path / "absent.json")


def test_missing_tensors_are_named(tmp_path: Path) -> None:
    path = save_result(norms(), tmp_path / "norms.json")
    path.with_suffix(".safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"norms\.safetensors must lie beside its JSON"):
        load_result(path)


def test_one_missing_tensor_is_named(tmp_path: Path) -> None:
    path = save_result(norms(), tmp_path / "norms.json")
    tensors = load_file(path.with_suffix(".safetensors"))
    del tensors["q_sums.squares"]
    save_file(tensors, path.with_suffix(".safetensors"))
    with pytest.raises(ValueError, match=r"complete result, got no entry 'q_sums\.squares'"):
        load_result(path)


@pytest.mark.parametrize("keep", [0, 10, 200])
def test_truncated_tensors_are_refused(keep: int, tmp_path: Path) -> None:
    path = save_result(norms(), tmp_path / "norms.json")
    tensors = path.with_suffix(".safetensors")
    tensors.write_bytes(tensors.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"norms\.safetensors must hold tensors, got .*again"):
        load_result(path)


@pytest.mark.parametrize("content", [b"", b'{"$type": "mi_mass', b"\xff\xfe\x00"])
def test_truncated_json_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"result\.json must hold JSON, got"):
        load_result(path)


@pytest.mark.parametrize("content", ["[]", "3", "null", '{"a": 1}'])
def test_other_json_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="must hold a result written by save_result"):
        load_result(path)


@pytest.mark.parametrize(
    "qualified",
    [
        "os.system",
        "subprocess.Popen",
        "mi_massive.__main__.app",
        "mi_massive_evil.claims.Claim",
        "mi_massive.nowhere.Result",
        "mi_massive.records.load_result",
        "mi_massive.stats.np",
        "Claim",
    ],
)
def test_only_result_classes_of_this_package_are_built(qualified: str, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text(json.dumps({"$type": qualified}))
    with pytest.raises(ValueError, match=r"\$type must name a (result )?class of mi_massive, got"):
        load_result(path)


@pytest.mark.parametrize("change", [{"colour": "red"}, {"n": None}, {"n": "many"}])
def test_a_result_of_another_version_is_refused(change: dict, tmp_path: Path) -> None:
    path = save_result(ESTIMATE, tmp_path / "estimate.json")
    document = json.loads(path.read_text()) | change
    path.write_text(json.dumps({k: v for k, v in document.items() if v is not None}))
    with pytest.raises(ValueError, match=r"must hold the fields of mi_massive\.stats\.Estimate"):
        load_result(path)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")

    def fail(file: Path) -> None:
        file.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, fail)
    assert [file.name for file in tmp_path.iterdir()] == ["file.txt"]
    assert path.read_text() == "old"
