"""The loaded model as users hold it: hooks by name, wrapping, dtypes, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_models import BOS_ID, FAMILIES, PAD_ID, Family, save_model, token_ids
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from mi_massive.capture import capture_norms
from mi_massive.models import HookedModel, UnsupportedModelError, load_model
from mi_massive.models.attention import AttentionInputs
from mi_massive.norms import SiteSums

# Token ids: a TransformerBridge prepends BOS to texts, a plain tokenizer need not.
PROMPTS = [[1, 2, 3, 4, 5, 6, 7], [9, 8, 7], list(range(11, 21))]


@pytest.fixture(scope="module", name="folder")
def fixture_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return FAMILIES["qwen3"].save(tmp_path_factory.mktemp("qwen3"))


@pytest.fixture(scope="module", name="model")
def fixture_model(folder: Path) -> HookedModel:
    return load_model(folder)


def boot(family: Family, folder: Path, *, compatible: bool = True) -> Any:
    """A TransformerBridge as a user makes it."""
    bridge: Any = TransformerBridge.boot_transformers(
        str(folder),
        hf_model=getattr(transformers, family.model_class).from_pretrained(folder).eval(),
        tokenizer=transformers.AutoTokenizer.from_pretrained(folder),
        device="cpu",
        dtype=torch.float32,
    )
    if compatible:
        bridge.enable_compatibility_mode(no_processing=True, disable_warnings=True)
    return bridge


def drop(folder: Path, *names: str) -> None:
    """Take weights out of a saved checkpoint."""
    file = folder / "model.safetensors"
    weights = load_file(file)
    for name in names:
        del weights[name]
    save_file(weights, file, metadata={"format": "pt"})


class TestRunWithHooks:
    def test_a_name_that_does_not_exist_is_refused(self, model: HookedModel) -> None:
        with pytest.raises(ValueError, match=r"must name hook points .* got 'blocks.7.attn.hook_q"):
            model.run_with_hooks(token_ids(), fwd_hooks=[("blocks.7.attn.hook_q", print)])

    def test_a_listed_site_that_never_fires_is_refused(
        self, model: HookedModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        dead = "blocks.1.attn.hook_rot_q"
        monkeypatch.setitem(
            model.__dict__, "sites", tuple(name for name in model.sites if name != dead)
        )
        with pytest.raises(ValueError, match=f"got '{dead}'; see `model.sites`"):
            model.run_with_hooks(token_ids(), fwd_hooks=[(dead, lambda x, hook: None)])

    def test_a_hook_point_outside_the_sites_that_stays_silent_is_an_error(
        self, model: HookedModel
    ) -> None:
        silent = "blocks.0.attn.hook_hidden_states"  # listed by the bridge, and never called
        assert silent in model.bridge.hook_dict
        with pytest.raises(RuntimeError, match=f"every hook must fire, got none at {silent}"):
            model.run_with_hooks(token_ids(), fwd_hooks=[(silent, lambda x, hook: None)])

    def test_hooks_are_gone_after_an_error_inside_one(self, model: HookedModel) -> None:
        before = model.run_with_hooks(token_ids(), fwd_hooks=[])

        def broken(activation: Tensor, hook: Any) -> Tensor:
            raise KeyError("the user's own mistake")

        with pytest.raises(KeyError, match="own mistake"):
            model.run_with_hooks(token_ids(), fwd_hooks=[(model.sites[0], broken)])
        assert torch.equal(model.run_with_hooks(token_ids(), fwd_hooks=[]), before)

    def test_several_hooks_on_one_point_run_in_order(self, model: HookedModel) -> None:
        seen: list[float] = []

        def add_one(activation: Tensor, hook: Any) -> Tensor:
            seen.append(float(activation[0, 0, 0, 0]))
            return activation + 1

        model.run_with_hooks(token_ids(), fwd_hooks=[(model.sites[0], add_one)] * 2)
        assert seen[1] == pytest.approx(seen[0] + 1, rel=1e-6)

    def test_left_padding_with_a_mask_gives_the_logits_without_padding(
        self, model: HookedModel
    ) -> None:
        ids = token_ids(1, 9)
        padded = torch.cat([torch.full((1, 4), PAD_ID), ids], dim=1)
        mask = (padded != PAD_ID).long()
        alone = model.run_with_hooks(ids, fwd_hooks=[])
        with_padding = model.run_with_hooks(padded, fwd_hooks=[], attention_mask=mask)
        torch.testing.assert_close(with_padding[:, 4:], alone, atol=1e-4, rtol=0)

    def test_logits_carry_no_graph(self, model: HookedModel) -> None:
        assert not model.run_with_hooks(token_ids(), fwd_hooks=[]).requires_grad


class TestAttentionInputs:
    def test_an_error_in_the_visitor_leaves_nothing_behind(self, model: HookedModel) -> None:
        def broken(seen: AttentionInputs) -> None:
            raise KeyError("the user's own mistake")

        with pytest.raises(KeyError, match="own mistake"):
            model.attention_inputs(token_ids(), broken)
        with torch.no_grad():
            model.plain(token_ids())  # no visitor is called any more

    def test_a_visit_within_a_visit_sees_its_own_run(self, model: HookedModel) -> None:
        outer: list[int] = []
        inner: list[int] = []

        def visit(seen: AttentionInputs) -> None:
            outer.append(seen.block)
            if len(outer) == 1:
                model.attention_inputs(token_ids(), lambda s: inner.append(s.block))

        model.attention_inputs(token_ids(), visit)
        assert outer == inner == [0, 1]


def test_plain_model_and_bridge_share_every_weight(model: HookedModel) -> None:
    bridge_weights = {w.data_ptr() for w in model.bridge.original_model.parameters()}
    assert {w.data_ptr() for w in model.plain.parameters()} <= bridge_weights


class TestWrap:
    @pytest.mark.parametrize(
        "name",
        [name for name in FAMILIES if name not in ("opt", "bert_bare", "llama", "llama_linear")],
    )
    def test_capture_of_a_wrapped_bridge_equals_that_of_the_loaded_model(
        self, name: str, tmp_path: Path
    ) -> None:
        family = FAMILIES[name]
        folder = family.save(tmp_path)
        loaded, wrapped = load_model(folder), HookedModel.wrap(boot(family, folder))
        assert wrapped.is_causal == family.is_causal
        assert wrapped.geometry.blocks == family.blocks
        ours, theirs = (capture_norms(model, PROMPTS) for model in (loaded, wrapped))
        for stage in ("attention", "unrotated") if family.rotates else ("attention",):
            for projection in ("q", "k", "v"):
                assert_same_sums(theirs.sums(projection, stage), ours.sums(projection, stage))
        assert theirs.geometry.training_context == ours.geometry.training_context
        for mine, other in zip(ours.geometry.layers, theirs.geometry.layers, strict=True):
            assert (mine.rotary is None) == (other.rotary is None)
            if mine.rotary is not None and other.rotary is not None:
                assert mine.rotary.layout == other.rotary.layout
                torch.testing.assert_close(mine.rotary.inv_freq, other.rotary.inv_freq)

    def test_queries_of_opt_are_those_before_its_scaling_of_them(self, tmp_path: Path) -> None:
        folder = FAMILIES["opt"].save(tmp_path)
        ours = capture_norms(load_model(folder), PROMPTS)
        theirs = capture_norms(HookedModel.wrap(boot(FAMILIES["opt"], folder)), PROMPTS)
        torch.testing.assert_close(theirs.q, ours.q)
        torch.testing.assert_close(theirs.k, ours.k)

    @pytest.mark.parametrize("name", ["qwen3", "gpt2"])
    def test_a_bridge_outside_compatibility_mode_is_refused_with_the_call_that_helps(
        self, name: str, tmp_path: Path
    ) -> None:
        bridge = boot(FAMILIES[name], FAMILIES[name].save(tmp_path), compatible=False)
        with pytest.raises(UnsupportedModelError, match="call enable_compatibility_mode"):
            HookedModel.wrap(bridge)

    def test_a_replacement_by_the_visitor_is_refused(self, model: HookedModel) -> None:
        wrapped = HookedModel.wrap(model.bridge)
        with pytest.raises(UnsupportedModelError, match="visit must return None on a wrapped"):
            wrapped.attention_inputs(token_ids(), lambda seen: seen)

    def test_it_keeps_the_object_and_has_no_plain_model(self, folder: Path) -> None:
        bridge = boot(FAMILIES["qwen3"], folder)
        wrapped = HookedModel.wrap(bridge, name="mine")
        assert wrapped.bridge is bridge
        assert wrapped.name == "mine"
        with pytest.raises(UnsupportedModelError, match="a plain transformers model must exist"):
            _ = wrapped.plain

    def test_anything_else_is_refused(self, model: HookedModel) -> None:
        with pytest.raises(UnsupportedModelError, match="must be a TransformerBridge or a Hooked"):
            HookedModel.wrap(model.plain)

    def test_rotated_queries_that_no_hook_point_shows_are_refused(self, tmp_path: Path) -> None:
        config = transformers.CodeGenConfig(
            vocab_size=64, n_positions=64, n_embd=64, n_layer=1, n_head=4, rotary_dim=8
        )
        family = Family(
            name="codegen",
            config=config,
            model_class="CodeGenForCausalLM",
            projections=FAMILIES["gptj"].projections,
        )
        folder = family.save(tmp_path)
        loaded = load_model(folder)
        rotary = loaded.geometry.layers[0].rotary
        assert rotary is not None
        assert rotary.layout == "interleaved"
        assert loaded.sites == tuple(f"blocks.0.attn.hook_{role}" for role in "qkv")
        with pytest.raises(UnsupportedModelError, match="must fire hook_rot_q and hook_rot_k"):
            HookedModel.wrap(boot(family, folder))


def assert_same_sums(actual: SiteSums, expected: SiteSums) -> None:
    for name in ("squares", "total", "first"):
        torch.testing.assert_close(
            getattr(actual, name), getattr(expected, name), rtol=1e-4, atol=1e-3
        )
    if expected.phasors is not None:
        assert actual.phasors is not None
        torch.testing.assert_close(
            actual.phasors, expected.phasors, rtol=0, atol=1e-3, equal_nan=True
        )


class TestDtypes:
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_low_precision_loads_and_stays_near_float32(
        self, dtype: torch.dtype, folder: Path, model: HookedModel
    ) -> None:
        low = load_model(folder, dtype=dtype)
        assert low.dtype == dtype
        assert {w.dtype for w in low.plain.parameters()} == {dtype}
        norms, exact = capture_norms(low, PROMPTS), capture_norms(model, PROMPTS)
        assert norms.provenance.dtype == str(dtype).removeprefix("torch.")
        for projection in ("q", "k", "v"):
            sums = norms.sums(projection)
            assert sums.squares.dtype == torch.float32
            ours, theirs = getattr(norms, projection), getattr(exact, projection)
            assert float((ours - theirs).norm() / theirs.norm()) < 0.03
        logits = low.run_with_hooks(token_ids(), fwd_hooks=[])
        with torch.no_grad():
            plain = low.plain(token_ids())[0]
        assert float((logits - plain).float().norm() / plain.float().norm()) < 0.05

    def test_sites_are_the_same_in_bfloat16(self, folder: Path, model: HookedModel) -> None:
        assert load_model(folder, dtype=torch.bfloat16).sites == model.sites


class TestCheckpoints:
    def test_a_missing_weight_of_the_body_is_refused_by_name(self, tmp_path: Path) -> None:
        folder = FAMILIES["mistral"].save(tmp_path)
        drop(folder, "model.layers.1.self_attn.k_proj.weight", "model.norm.weight")
        message = r"MistralForCausalLM, got none for model.layers.1.self_attn.k_proj.weight and 1 "
        with pytest.raises(UnsupportedModelError, match=message):
            load_model(folder)

    def test_without_a_head_captures_work_and_logits_are_refused(self, tmp_path: Path) -> None:
        folder = FAMILIES["mistral"].save(tmp_path)
        drop(folder, "lm_head.weight")
        headless = load_model(folder)
        assert not headless.has_head
        assert capture_norms(headless, PROMPTS).n_prompts == 3
        message = "must have a language-modelling head to give logits, got none; use attention_inp"
        with pytest.raises(UnsupportedModelError, match=message):
            headless.run_with_hooks(token_ids(), fwd_hooks=[])

    def test_an_encoder_decoder_is_refused(self, tmp_path: Path) -> None:
        config = transformers.T5Config(
            vocab_size=64,
            d_model=32,
            d_kv=8,
            d_ff=32,
            num_layers=1,
            num_heads=4,
            decoder_start_token_id=0,
        )
        save_model(transformers.T5ForConditionalGeneration(config), tmp_path)
        with pytest.raises(UnsupportedModelError, match="got the encoder-decoder t5"):
            load_model(tmp_path)

    def test_a_model_of_images_is_refused(self, tmp_path: Path) -> None:
        config = transformers.ViTConfig(
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=4,
            intermediate_size=32,
            image_size=16,
            patch_size=8,
        )
        save_model(transformers.ViTForImageClassification(config), tmp_path)
        with pytest.raises(UnsupportedModelError, match=r"must be a language model .* 'vit'"):
            load_model(tmp_path)

    def test_a_family_unknown_to_transformer_lens_is_captured_without_hook_points(
        self, tmp_path: Path
    ) -> None:
        config = transformers.DistilBertConfig(
            vocab_size=64, dim=32, n_layers=1, n_heads=4, hidden_dim=32, pad_token_id=PAD_ID
        )
        save_model(transformers.DistilBertForMaskedLM(config), tmp_path)
        loaded = load_model(tmp_path)
        assert capture_norms(loaded, PROMPTS).q.shape == (1, 4, 8)
        message = "a DistilBertForMaskedLM must be known to TransformerLens to have hook points"
        with pytest.raises(UnsupportedModelError, match=message):
            _ = loaded.sites

    def test_an_encoder_is_no_decoder_but_a_decoding_bert_is(self, tmp_path: Path) -> None:
        family = FAMILIES["bert"]
        assert not load_model(family.save(tmp_path / "encoder")).is_causal
        config = transformers.BertConfig(**{**family.config.to_dict(), "is_decoder": True})
        save_model(transformers.BertLMHeadModel(config), tmp_path / "decoder")
        assert load_model(tmp_path / "decoder").is_causal


def test_tokenizer_comes_with_the_folder(model: HookedModel) -> None:
    assert model.tokenizer is not None
    assert model.tokenizer("t3 t60 nothing")["input_ids"] == [3, 60, BOS_ID - 1]
