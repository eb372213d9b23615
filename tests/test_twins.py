"""Twins start equal, see the same windows, reproduce, resume, and differ in positions alone."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mi_massive import _twin_corpora, _twin_folders, _twin_training, twins
from mi_massive._twin_corpora import ABILITIES, N_VALUES, load_corpus
from mi_massive.capture import capture_norms
from mi_massive.interventions import disrupt
from mi_massive.models import UnsupportedModelError
from mi_massive.models.twins import build_twin, hold_twin
from mi_massive.presets import preset
from mi_massive.records import load_result, save_result
from mi_massive.twin_arms import TWIN_ARMS, TwinArm, TwinShape
from mi_massive.twin_runs import TwinsConfig
from mi_massive.twins import held_out_prompts, load_twin, train_twins

SHAPE = TwinShape(n_layers=2, n_heads=2, d_head=16, context=48)
CONFIG = TwinsConfig(
    arms=("rope", "none"),
    n_seeds=1,
    corpus="mixture",
    shape=SHAPE,
    n_steps=6,
    batch_size=4,
    n_measured=3,
    n_windows=4,
)
ROTATING = [arm for arm, twin in TWIN_ARMS.items() if twin.rotates]


def some_ids(length: int = 24) -> Tensor:
    return torch.randint(257, (2, length), generator=torch.Generator().manual_seed(3))


def built(arm: str, seed: int = 0) -> Any:
    return build_twin(TWIN_ARMS[arm], SHAPE, seed=seed).eval()


def weights_of(model: Any) -> dict[str, Tensor]:
    """Under a Llama's names, joined matrices taken apart by their rows."""
    found: dict[str, Tensor] = {}
    for name, weight in model.state_dict().items():
        if "qkv_proj" in name:
            for part, rows in zip(("q_proj", "k_proj", "v_proj"), weight.chunk(3), strict=True):
                found[name.replace("qkv_proj", part)] = rows
        elif "gate_up_proj" in name:
            for part, rows in zip(("gate_proj", "up_proj"), weight.chunk(2), strict=True):
                found[name.replace("gate_up_proj", part)] = rows
        else:
            found[name] = weight
    return found


@pytest.mark.parametrize("arm", TWIN_ARMS)
def test_all_twins_of_a_seed_start_from_the_same_weights(arm: str) -> None:
    common, weights = weights_of(built("rope")), weights_of(built(arm))
    assert set(common) <= set(weights)
    assert all(torch.equal(weights[name], weight) for name, weight in common.items())
    own = {name.rpartition(".")[0].rpartition(".")[2] for name in set(weights) - set(common)}
    expected = {"learned": {"position_embedding"}, "qk_norm": {"q_norm", "k_norm"}}
    assert own == expected.get(arm, set())


def test_another_seed_starts_from_other_weights() -> None:
    first, second = built("rope").state_dict(), built("rope", seed=1).state_dict()
    assert not torch.equal(first["lm_head.weight"], second["lm_head.weight"])


@torch.no_grad()
@pytest.mark.parametrize("arm", TWIN_ARMS)
def test_a_constant_shift_of_positions_changes_learned_positions_alone(arm: str) -> None:
    model, ids = built(arm), some_ids()
    places = torch.arange(24)[None].expand(2, -1)
    plain = model(input_ids=ids, position_ids=places).logits
    moved = model(input_ids=ids, position_ids=places + 7).logits
    assert torch.allclose(plain, moved, atol=1e-5) == (arm != "learned")


@torch.no_grad()
@pytest.mark.parametrize("arm", TWIN_ARMS)
def test_exchanged_tokens_are_noticed_by_every_encoding_but_none(arm: str) -> None:
    """The last token of a one-layer model without positions sees a set of tokens, not an order."""
    shape = dataclasses.replace(SHAPE, n_layers=1)
    model: Any = build_twin(TWIN_ARMS[arm], shape, seed=0).eval()
    for name, weight in model.named_parameters():
        if "proj" in name:
            weight.mul_(20)  # random weights of 0.02 would attend evenly
    ids = some_ids()
    exchanged = ids.clone()
    exchanged[:, [3, 11]] = ids[:, [11, 3]]
    last = [model(input_ids=x).logits[:, -1] for x in (ids, exchanged)]
    assert torch.allclose(*last, atol=1e-5) == (arm == "none")


@torch.no_grad()
@pytest.mark.parametrize("arm", TWIN_ARMS)
def test_a_cache_and_padding_on_the_left_change_nothing(arm: str) -> None:
    model, ids = built(arm), some_ids()
    whole = model(input_ids=ids).logits
    start = model(input_ids=ids[:, :15], use_cache=True)
    rest = model(input_ids=ids[:, 15:], past_key_values=start.past_key_values, use_cache=True)
    assert torch.allclose(whole[:, 15:], rest.logits, atol=1e-5)
    padded = torch.cat([torch.zeros(2, 3, dtype=torch.long), ids], dim=1)
    mask = torch.ones_like(padded)
    mask[:, :3] = 0
    places = (mask.cumsum(dim=1) - 1).clamp_min(0)
    out = model(input_ids=padded, attention_mask=mask, position_ids=places).logits
    assert torch.allclose(whole, out[:, 3:], atol=1e-5)


@torch.no_grad()
def test_alibi_is_the_penalty_of_the_paper() -> None:
    """Scores and mask written out by hand for the first layer of a one-layer twin."""
    shape = dataclasses.replace(SHAPE, n_layers=1)
    model: Any = build_twin(TWIN_ARMS["alibi"], shape, seed=0).eval()
    seen: list[Tensor] = []
    model.set_attn_implementation("eager")
    module = model.model.layers[0].self_attn
    module.register_forward_hook(lambda m, args, out: seen.append(out[1]))
    states: list[Tensor] = []
    for projection in (module.q_proj, module.k_proj):
        projection.register_forward_hook(lambda m, args, out: states.append(out))
    model(input_ids=some_ids())
    q, k = (x.view(2, 24, 2, 16).transpose(1, 2) for x in states)
    distance = torch.arange(24)[:, None] - torch.arange(24)
    slopes = torch.tensor([2.0**-4, 2.0**-8])
    scores = q @ k.transpose(2, 3) / 4 - slopes[:, None, None] * distance
    expected = scores.masked_fill(distance < 0, -math.inf).softmax(dim=-1)
    assert torch.allclose(seen[0], expected, atol=1e-6)


@torch.no_grad()
def test_learned_positions_are_added_to_the_embedding() -> None:
    learned, none, ids = built("learned"), built("none"), some_ids()
    table = learned.model.layers[0].position_embedding.weight
    given = none.model.embed_tokens(ids) + table[: ids.shape[1]]
    expected = none(inputs_embeds=given).logits
    assert torch.allclose(learned(input_ids=ids).logits, expected, atol=1e-6)


@pytest.mark.parametrize("arm", TWIN_ARMS)
def test_the_measured_geometry_is_that_of_the_arm(arm: str) -> None:
    held = hold_twin(built(arm), name=arm, folder=Path("none"))
    layer = held.geometry.layers[0]
    if not TWIN_ARMS[arm].rotates:
        assert layer.rotary is None
        return
    rotary = layer.rotary
    assert rotary is not None
    assert rotary.layout == ("interleaved" if arm == "interleaved" else "half_split")
    assert rotary.n_pairs == {"partial_25": 2, "partial_50": 4}.get(arm, 8)
    moving = int((rotary.inv_freq > 0).sum())
    assert moving == {"partial_25": 2, "partial_50": 4, "p_rope": 6}.get(arm, 8)
    width = 2 * rotary.n_pairs
    expected = TWIN_ARMS[arm].theta ** (-torch.arange(0, 2 * moving, 2).double() / width)
    assert torch.allclose(rotary.inv_freq[:moving].double(), expected, rtol=1e-5)


def test_encodings_of_its_own_have_no_hook_points_and_say_so() -> None:
    for arm in ("alibi", "learned"):
        held = hold_twin(built(arm), name=f"twin {arm}", folder=Path("none"))
        with pytest.raises(UnsupportedModelError, match="must have an encoding that TransformerL"):
            _ = held.bridge


@torch.no_grad()
@pytest.mark.parametrize("arm", ["rope", "partial_25", "interleaved", "learned", "alibi"])
def test_captures_and_edits_work_on_twins(arm: str) -> None:
    held = hold_twin(built(arm), name=arm, folder=Path("none"))
    norms = capture_norms(held, some_ids().tolist())
    assert norms.q.shape == norms.v.shape == (2, 2, 16)
    plain = held.plain(input_ids=some_ids()).logits
    with disrupt(held, preset("paper", k=4)) as edits:
        edited = held.plain(input_ids=some_ids()).logits
    assert edits.total == 2 * 2 * 2 * 2 * 24 * 4  # layers, q and k, heads, rows, tokens, k
    assert not torch.equal(plain, edited)


# --- training


def test_a_training_reproduces_bit_by_bit_whatever_the_workers(tmp_path: Path) -> None:
    first = train_twins(CONFIG, folder=tmp_path / "a", n_workers=1)
    second = train_twins(CONFIG, folder=tmp_path / "b", n_workers=2)
    for run, again in zip(first.runs, second.runs, strict=True):
        assert torch.equal(run.q, again.q)
        assert torch.equal(run.loss, again.loss)
        assert torch.equal(run.edited, again.edited)
    assert first.runs[0].loss[-1] < first.runs[0].loss[0]
    assert first.steps == (0, 6)


def test_every_encoding_is_trained_and_measured(tmp_path: Path) -> None:
    config = dataclasses.replace(
        CONFIG, arms=tuple(TWIN_ARMS), corpus="stdlib", n_steps=2, n_measured=2, n_windows=2
    )
    result = train_twins(config, folder=tmp_path, n_workers=1)
    assert result.failures == {}
    for run in result.runs:
        assert bool(torch.isfinite(run.loss).all())
        assert bool(torch.isfinite(run.q).all())
        assert bool(((run.sink > 0) & (run.sink < 1)).all())


def test_a_killed_training_goes_on_and_ends_with_the_same_bits(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, arms=("rope",), n_steps=40, n_measured=3)
    whole = train_twins(config, folder=tmp_path / "whole", n_workers=1)

    def kill(progress: Any) -> None:
        if progress.step == 33:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_twins(config, folder=tmp_path / "killed", n_workers=1, on_progress=kill)
    kept = list((tmp_path / "killed").iterdir())
    assert [path.name for path in kept[0].iterdir()] == ["checkpoint.safetensors"]
    steps: list[int] = []
    resumed = train_twins(
        config, folder=tmp_path / "killed", n_workers=1, on_progress=lambda p: steps.append(p.step)
    )
    assert steps[0] == config.steps[-2] == 28
    for name in ("loss", "q", "k", "v", "sink", "edited"):
        assert torch.equal(getattr(whole.runs[0], name), getattr(resumed.runs[0], name)), name


def test_a_finished_run_is_read_and_a_damaged_one_computed_again(tmp_path: Path) -> None:
    first = train_twins(CONFIG, folder=tmp_path, n_workers=1)
    steps: list[int] = []
    train_twins(CONFIG, folder=tmp_path, on_progress=lambda p: steps.append(p.step))
    assert steps == [CONFIG.n_steps] * 2  # told once, as finished
    for path in tmp_path.glob("*rope*/run.json"):
        path.write_text("{")
    steps.clear()
    again = train_twins(CONFIG, folder=tmp_path, on_progress=lambda p: steps.append(p.step))
    assert steps == [CONFIG.n_steps] * 2  # from the checkpoint of the last step
    assert torch.equal(first.runs[0].q, again.runs[0].q)


def test_a_damaged_checkpoint_is_trained_anew(tmp_path: Path) -> None:
    first = train_twins(CONFIG, folder=tmp_path)
    for folder in tmp_path.iterdir():
        (folder / "run.json").unlink()
        (folder / "checkpoint.safetensors").write_bytes(b"cut short")
    again = train_twins(CONFIG, folder=tmp_path)
    assert torch.equal(first.runs[0].loss, again.runs[0].loss)


def test_held_out_prompts_are_new_to_every_twin(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, corpus="stdlib")
    prompts = held_out_prompts(config, n=5)
    assert [len(ids) for ids in prompts.input_ids] == [SHAPE.context] * 5
    corpus: Any = load_corpus("stdlib", context=SHAPE.context)
    cut = len(corpus.text) - corpus.held_out_bytes
    trained, kept = (bytes(part.tolist()) for part in (corpus.text[:cut], corpus.text[cut:]))
    for ids in prompts.input_ids:
        assert ids[0] == _twin_corpora.BEGIN
        assert bytes(ids[1:]) in kept
        assert bytes(ids[1:]) not in trained
    assert held_out_prompts(config, n=5) == prompts
    assert held_out_prompts(config, n=5, seed=1) != prompts


def test_the_arms_of_a_seed_see_the_same_windows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bytes] = []
    inner = _twin_training._loss

    def spy(model: Any, windows: Any, device: Any) -> Tensor:
        seen.append(windows.ids.numpy().tobytes())
        return inner(model, windows, device)

    monkeypatch.setattr(_twin_training, "_loss", spy)
    train_twins(CONFIG, folder=tmp_path, n_workers=1)
    half = len(seen) // 2
    assert seen[:half] == seen[half:]
    assert len(set(seen[:half])) == CONFIG.n_steps + 1  # every batch another, and the held-out ones


def test_a_diverged_run_is_named_and_stops_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = _twin_training._Training._train

    def train(self: Any, step: int) -> float:
        return math.nan if (self.arm, step) == ("none", 3) else inner(self, step)

    monkeypatch.setattr(_twin_training._Training, "_train", train)
    result = train_twins(CONFIG, folder=tmp_path, n_workers=1)
    assert result.failures == {
        "none, seed 0": "the loss became nan at step 3; train with a lower learning rate than 0.003"
    }
    assert bool(result.of("none")[0].loss[-1].isnan())
    assert bool(result.of("rope")[0].loss.isfinite().all())
    assert math.isnan(result.contrast("q").effect)
    assert result.contrast("q").n == 0
    assert math.isnan(result.final_loss("none").effect)


def test_a_real_divergence_is_found(tmp_path: Path) -> None:
    config = dataclasses.replace(
        CONFIG, arms=("rope",), learning_rate=1e30, n_steps=30, n_measured=2
    )
    result = train_twins(config, folder=tmp_path, n_workers=1)
    assert "the loss became nan at step" in result.failures["rope, seed 0"]


def test_a_divergence_in_a_measured_step_stops_that_arm_alone(tmp_path: Path) -> None:
    config = dataclasses.replace(
        CONFIG, arms=("rope",), n_seeds=1, learning_rate=1e33, n_steps=2, n_measured=2
    )
    result = train_twins(config, folder=tmp_path, n_workers=1)
    assert "held-out loss became nan at step 2" in result.failures["rope, seed 0"]
    assert "lower learning rate than 1e+33" in result.failures["rope, seed 0"]


def test_a_full_disk_is_an_error_and_keeps_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(CONFIG, arms=("rope",), n_steps=40, n_measured=3)
    inner, calls = _twin_training.save_tensors, 0

    def save(tensors: Any, path: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            path.write_bytes(b"half of it")
            raise OSError(28, "No space left on device")
        inner(tensors, path)

    monkeypatch.setattr(_twin_training, "save_tensors", save)
    with pytest.raises(OSError, match="No space left"):
        train_twins(config, folder=tmp_path, n_workers=1)
    (folder,) = tmp_path.iterdir()
    assert [path.name for path in folder.iterdir()] == ["checkpoint.safetensors"]
    monkeypatch.setattr(_twin_training, "save_tensors", inner)
    steps: list[int] = []
    train_twins(config, folder=tmp_path, on_progress=lambda p: steps.append(p.step))
    assert steps[0] == config.steps[1]


def test_a_trained_twin_is_loaded_with_its_last_weights(tmp_path: Path) -> None:
    result = train_twins(CONFIG, folder=tmp_path)
    for arm in CONFIG.arms:
        held = load_twin(CONFIG, arm, 0, folder=tmp_path)
        windows = load_corpus("mixture", context=48).draw(4, context=48, seed=-1, held_out=True)
        norms = capture_norms(held, windows.ids.tolist())
        assert torch.equal(norms.q, result.of(arm)[0].q[-1])
    with pytest.raises(ValueError, match="arm and seed must be of the config"):
        load_twin(CONFIG, "alibi", 0, folder=tmp_path)


def test_a_twin_trained_in_bfloat16_is_found_by_its_type(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, arms=("rope",), n_steps=2, n_measured=2)
    train_twins(config, folder=tmp_path, dtype=torch.bfloat16)
    held = load_twin(config, "rope", 0, folder=tmp_path, dtype=torch.bfloat16)
    assert held.dtype == torch.float32
    with pytest.raises(FileNotFoundError, match="must hold a twin rope, seed 0, trained with"):
        load_twin(config, "rope", 0, folder=tmp_path)


def test_a_twin_of_other_code_is_loaded_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(CONFIG, arms=("rope",), n_steps=2, n_measured=2)
    train_twins(config, folder=tmp_path)
    before = load_twin(config, "rope", 0, folder=tmp_path).plain.state_dict()
    monkeypatch.setattr(_twin_folders, "code_digest", lambda module: "of a later version")
    with pytest.warns(UserWarning, match="was trained by other code or versions"):
        after = load_twin(config, "rope", 0, folder=tmp_path).plain.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    other = dataclasses.replace(config, learning_rate=1e-4)
    with pytest.raises(FileNotFoundError, match="train it with train_twins"):
        load_twin(other, "rope", 0, folder=tmp_path)


def test_what_cannot_be_trained_is_found_before_anything_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"dtype must be one of .* got torch.float16"):
        train_twins(CONFIG, folder=tmp_path, dtype=torch.float16)

    def refuse(arm: TwinArm, shape: TwinShape, *, seed: int) -> Any:
        if arm.encoding == "none":
            raise UnsupportedModelError("no such encoding")
        return build_twin(arm, shape, seed=seed)

    monkeypatch.setattr(twins, "build_twin", refuse)
    with pytest.raises(UnsupportedModelError, match="no such encoding"):
        train_twins(CONFIG, folder=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_long_way_between_measured_steps_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint between two measured steps, and the same numbers from there."""
    config = dataclasses.replace(CONFIG, arms=("rope",), n_steps=9, n_measured=2)
    whole = train_twins(config, folder=tmp_path / "whole", n_workers=1)
    monkeypatch.setattr(_twin_training, "_SAVED_EVERY", 0.0)

    def stop(progress: Any) -> None:
        if progress.step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_twins(config, folder=tmp_path / "cut", n_workers=1, on_progress=stop)
    steps: list[int] = []
    again = train_twins(
        config, folder=tmp_path / "cut", n_workers=1, on_progress=lambda p: steps.append(p.step)
    )
    assert config.steps == (0, 9)
    assert steps[0] == 5
    for name in ("loss", "q", "k", "v", "sink"):
        assert torch.equal(getattr(again.runs[0], name), getattr(whole.runs[0], name))


def test_disruptions_fit_the_head_and_the_encoding(tmp_path: Path) -> None:
    """Twins with frequencies have one more control; a head of 16 has no more than 8 to give."""
    result = train_twins(CONFIG, folder=tmp_path)
    rope, none = (result.of(arm)[0].edits for arm in CONFIG.arms)
    presets = ("paper", "sink_preserving", "norm_matched", "smallest", "random", "same_band")
    assert result.conditions == ("intact", *(f"{p} k={k}" for p in presets for k in (1, 2, 4, 8)))
    assert set(rope) - set(none) == {
        f"same_band k={k} seed={seed}" for k in (1, 2, 4, 8) for seed in range(5)
    }
    assert set(none) <= set(rope)
    narrow = _twin_training.disruptions("rope", d_head=8)
    assert {name.split()[1] for name in narrow} == {"k=1", "k=2", "k=4"}


# --- the mixture


def test_recall_is_answered_by_the_window_alone_and_facts_are_always_the_same() -> None:
    windows = load_corpus("mixture", context=64).draw(200, context=64, seed=5)
    known: dict[tuple[int, int], int] = {}
    other_values: dict[int, set[int]] = {}
    for ids, recall, facts in zip(
        windows.ids.tolist(), *(windows.asked[a] for a in ABILITIES), strict=True
    ):
        bound = {token // N_VALUES: token % N_VALUES for token in ids[1:9]}
        assert sorted(bound) == list(range(8))  # every name once
        for at in recall.nonzero().flatten().tolist():
            name, answer = ids[at - 1] - 8 * N_VALUES, ids[at]
            assert answer - _twin_corpora._VALUES == bound[name]
            other_values.setdefault(name, set()).add(answer)
        for at in facts.nonzero().flatten().tolist():
            pair = (ids[at - 2], ids[at - 1])
            assert known.setdefault(pair, ids[at]) == ids[at]
    assert all(len(values) == N_VALUES for values in other_values.values())  # nothing to memorize
    assert len(known) == 144
    for place in (0, 1):  # one symbol of a fact does not decide its value
        by_symbol: dict[int, set[int]] = {}
        for pair, value in known.items():
            by_symbol.setdefault(pair[place], set()).add(value)
        assert min(len(values) for values in by_symbol.values()) > 3


def test_unordered_facts_are_decided_by_the_subject_wherever_it_stands() -> None:
    windows = load_corpus("mixture_unordered", context=64).draw(300, context=64, seed=5)
    first, last = _twin_corpora._FIRST, _twin_corpora._SECOND
    known: dict[tuple[int, int], int] = {}
    places: set[int] = set()
    for ids, recall, facts in zip(
        windows.ids.tolist(), *(windows.asked[a] for a in ABILITIES), strict=True
    ):
        told = ids[1:10]
        (place,) = (i for i, token in enumerate(told) if first <= token < last)
        places.add(place)
        assert not any(first <= token < last for token in ids[10:])
        bound = {t // N_VALUES: t % N_VALUES for t in told if t < 8 * N_VALUES}
        assert sorted(bound) == list(range(8))
        for at in recall.nonzero().flatten().tolist():
            assert ids[at] - _twin_corpora._VALUES == bound[ids[at - 1] - 8 * N_VALUES]
        for at in facts.nonzero().flatten().tolist():
            pair = (told[place], ids[at - 1])
            assert known.setdefault(pair, ids[at]) == ids[at]
        before = torch.tensor(ids)[:-2][(recall | facts)[2:]]
        assert set(before.tolist()) == {_twin_corpora._REST}  # what comes first says nothing
    assert places == set(range(9))
    assert len(known) == 144
    mixture = load_corpus("mixture", context=64)
    assert mixture.digest != load_corpus("mixture_unordered", context=64).digest


def test_both_kinds_of_questions_begin_alike_and_answers_alone_are_scored() -> None:
    windows = load_corpus("mixture", context=64).draw(100, context=64, seed=6)
    asked = {ability: windows.asked[ability] for ability in ABILITIES}
    assert torch.equal(windows.scored, asked["recall"] | asked["facts"])
    assert windows.scored.sum(dim=1).tolist() == [18] * 100
    first = [set(windows.ids[:, :-2][marks[:, 2:]].tolist()) for marks in asked.values()]
    assert first[0] == first[1]
    share = float(asked["recall"].sum() / windows.scored.sum())
    assert 0.45 < share < 0.55


def test_results_survive_saving(tmp_path: Path) -> None:
    result = train_twins(CONFIG, folder=tmp_path / "cells")
    again = load_result(save_result(result, tmp_path / "twins.json"))
    assert again.config == result.config
    assert again.contrast("q") == result.contrast("q") or math.isnan(result.contrast("q").low)


# --- refusals


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"arms": ("rope", "sinus")}, "arms must be of rope, .* got sinus"),
        ({"arms": ()}, "arms must be of .* got none"),
        ({"arms": ("rope", "rope")}, "arms must differ"),
        ({"n_seeds": 0}, "n_seeds must be"),
        ({"learning_rate": 0.0}, "learning_rate must be"),
    ],
)
def test_configs_are_checked(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TwinsConfig(**changes)


def test_a_head_that_no_quarter_of_rotates_in_pairs_is_refused() -> None:
    with pytest.raises(ValueError, match="d_head must be a multiple of 8, got 12"):
        TwinShape(d_head=12)


def test_corpora_that_are_missing_or_too_small_are_refused(tmp_path: Path) -> None:
    small = tmp_path / "small.txt"
    small.write_text("a few words " * 100)
    config = dataclasses.replace(CONFIG, corpus=str(small))
    with pytest.raises(ValueError, match=r"corpus must hold at least 7680 bytes .* got 1200"):
        train_twins(config, folder=tmp_path / "cells")
    config = dataclasses.replace(CONFIG, corpus=str(tmp_path / "none.txt"))
    with pytest.raises(ValueError, match="corpus must be a readable text file"):
        train_twins(config, folder=tmp_path / "cells")
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1") * 10_000)
    config = dataclasses.replace(CONFIG, corpus=str(tmp_path / "latin.txt"))
    with pytest.raises(ValueError, match=r"corpus must be UTF-8 text, got latin.txt"):
        train_twins(config, folder=tmp_path / "cells")
    config = dataclasses.replace(CONFIG, shape=dataclasses.replace(SHAPE, context=12))
    with pytest.raises(ValueError, match=r"context must hold what the mixture tells .* 15 tokens"):
        train_twins(config, folder=tmp_path / "cells")
    with pytest.raises(ValueError, match="device must be"):
        train_twins(CONFIG, folder=tmp_path / "cells", device="cuda:7")
