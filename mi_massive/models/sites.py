"""Names of the hook points, the bridge that carries them, and its dead rotary ones brought to life.

Names are TransformerLens' own: `blocks.{block}.attn.{hook}` with hook_q, hook_k, hook_v before
rotation (and before QK-norm) and hook_rot_q, hook_rot_k after it. Activations are `[batch, pos,
head, d_head]`, over key-value heads for k and v. On some architectures the bridge lists rotary
hook points that never fire; `revive_rotary_hooks` makes them fire where the rotated tensors can be
reached before, or in, the key-value cache.
"""

import re
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal, cast, get_args

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mi_massive.axes import Site
from mi_massive.models.errors import UnsupportedModelError

Hook = Literal["hook_q", "hook_k", "hook_v", "hook_rot_q", "hook_rot_k"]
HOOKS: Final[tuple[Hook, ...]] = get_args(Hook)

HookFunction = Callable[..., Any]
"""`function(activation, hook) -> Tensor | None`, as TransformerLens calls it: None leaves the
activation as it is."""

_NAME: Final = re.compile(r"blocks\.(\d+)\.attn\.(\w+)")


def site_name(block: int, hook: Hook) -> str:
    """Full name of a hook point, such as `blocks.9.attn.hook_rot_q`."""
    return f"blocks.{block}.attn.{hook}"


def patch_site_name(block: int, site: Site) -> str:
    """Full name of the hook point of a patch site, such as `blocks.9.attn.hook_z`."""
    return f"blocks.{block}.{'' if site == 'resid_pre' else 'attn.'}hook_{site}"


def attention_site_names(model: Any) -> list[str]:
    """Names of the q, k, v and rotary hook points that a model lists, firing or not."""
    found = ((name, _NAME.fullmatch(name)) for name in model.hook_dict)
    return [name for name, match in found if match and match.group(2) in HOOKS]


def fired_sites(model: Any, names: Iterable[str], run: Callable[[], object]) -> set[str]:
    """Names of the hook points that fire while `run` runs `model`."""
    fired: set[str] = set()

    def note(activation: Tensor, hook: Any) -> None:
        fired.add(hook.name)

    with model.hooks(fwd_hooks=[(name, note) for name in names]):
        run()
    return fired


def token_device(model: PreTrainedModel) -> torch.device:
    """Where token ids must be: with the embedding, or where its hook puts it while it runs."""
    place = next(iter(model.parameters())).device
    if place.type != "meta":
        return place
    hook: Any = cast(Any, model.get_input_embeddings())._hf_hook
    hooks = (one for one in getattr(hook, "hooks", (hook,)) if hasattr(one, "execution_device"))
    return torch.device(next(hooks).execution_device)


def boot_bridge(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, folder: Path
) -> Any:
    """Make a TransformerBridge in compatibility mode, with unprocessed weights.

    Raises:
        UnsupportedModelError: If TransformerLens does not know the architecture, or the model reads
            images: for such a one TransformerLens runs `pip install torchvision` where it is
            missing, which can replace torch under every program of the environment.
    """
    if getattr(model.config, "vision_config", None) is not None:
        raise UnsupportedModelError(
            f"a {type(model).__name__} must read no images to have hook points, got a model that "
            "does, for which TransformerLens installs packages; attention_inputs, capture_norms "
            "and disrupt need none"
        )
    from transformer_lens.model_bridge import TransformerBridge

    try:
        bridge = cast(Any, TransformerBridge).boot_transformers(
            str(folder),
            hf_model=model,
            tokenizer=tokenizer,
            device=token_device(model),
            dtype=model.dtype,
        )
    except (ValueError, NotImplementedError) as error:
        raise UnsupportedModelError(
            f"a {type(model).__name__} must be known to TransformerLens to have hook points, got "
            f"{str(error).split('.')[0]!r} from it; attention_inputs and capture_norms need none"
        ) from error
    bridge.enable_compatibility_mode(no_processing=True, disable_warnings=True)
    return bridge


def revive_rotary_hooks(bridge: Any) -> None:
    """Make dead rotary hook points of a TransformerBridge fire, where the architecture lets it.

    Two kinds of attention are served: those that rotate in a method of the bridge (GPT-NeoX,
    Phi-3: the hooks run on its output, before the cache) and those that call the model's own
    `_attn(query, key, value)` (GPT-J: the key there is the cache's storage, and an edit is written
    into it). Others (CodeGen) stay dead, and are not offered.
    """
    if not hasattr(bridge, "original_model"):
        return  # a HookedTransformer computes attention itself: its hook points all fire
    ids = torch.ones(1, 4, dtype=torch.long, device=token_device(bridge.original_model))
    listed = [name for name in attention_site_names(bridge) if "hook_rot" in name]
    dead = set(listed) - fired_sites(bridge, listed, lambda: bridge(ids, return_type=None))
    for block in sorted({int(match.group(1)) for name in dead if (match := _NAME.fullmatch(name))}):
        attention = bridge.blocks[block].attn
        if hasattr(attention, "_apply_rotary_pos_emb"):
            _hook_rotation(attention)
        elif callable(getattr(attention.original_component, "_attn", None)):
            _hook_attn_method(attention)


@contextmanager
def refusing_runs(bridge: Any, reason: str) -> Generator[None, None, None]:
    """Raise RuntimeError with `reason` if a bridge is run inside the context."""

    def refuse(module: Any, args: Any) -> None:
        raise RuntimeError(reason)

    handle = bridge.original_model.register_forward_pre_hook(refuse)
    try:
        yield
    finally:
        handle.remove()


def _hook_rotation(attention: Any) -> None:
    inner = attention._apply_rotary_pos_emb

    def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        q, k = inner(q, k, cos, sin)
        return attention.hook_rot_q(q), attention.hook_rot_k(k)

    attention._apply_rotary_pos_emb = rotate


def _hook_attn_method(attention: Any) -> None:
    inner = attention.original_component._attn

    def attend(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kw: Any) -> Any:
        query = attention.hook_rot_q(query)
        new = key[:, :, key.shape[2] - query.shape[2] :]
        edited = attention.hook_rot_k(new)
        if edited is not new and not torch.equal(edited, new):
            new.copy_(edited)  # in place: the cache holds this storage, and so keeps the edit
        return inner(query, key, value, *args, **kw)

    attention.original_component._attn = attend
