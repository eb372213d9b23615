"""Queries, keys and values on their way into the attention of a plain transformers model.

transformers hands the rotated and normed query, the key and the value of every architecture that
uses its attention interface to one registered function. Ours shows them to a visitor and then
calls the kernel that the model would have used, so the logits are the model's own and no attention
pattern is materialized. Architectures from before that interface (GPT-J, CodeGen, GPT-Neo) compute
attention in a method `_attn(query, key, value, ...)`, which serves the same purpose. Every tensor
is `[batch, head, pos, d_head]`, keys and values over key-value heads.

By then keys and values are already in the key-value cache, and what the visitor sees is the
cache's own storage: edited in place they persist for later tokens, returned as a new tensor they
hold for this forward pass alone.

OPT scales its queries before it hands them over, where others scale the scores: they are shown
without that factor, as at hook_q, and get it back on their way into the kernel.
"""

import copy
import re
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final, cast

from jaxtyping import Float
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

_PREFIX: Final = "mi_massive_"
_BLOCK: Final = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class AttentionInputs:
    """What one layer's attention receives; cached tokens come first along `key_pos`."""

    block: int
    """0-based block index."""
    query: Float[Tensor, "batch head pos d_head"]
    key: Float[Tensor, "batch kv_head key_pos d_head"]
    value: Float[Tensor, "batch kv_head key_pos d_head"]


Visitor = Callable[[AttentionInputs], AttentionInputs | None]
"""Sees each layer's attention inputs in model order; returns replacements, or None to leave
them. Queries are replaced by returning them, never by writing into them."""

PatternVisitor = Callable[[int, Float[Tensor, "batch head pos key_pos"]], None]
"""Sees each layer's block index and attention weights, in model order."""


@dataclass(frozen=True, slots=True, eq=False)
class _Guest:
    """A visitor, and the tapped model that it came for."""

    visit: Callable[[nn.Module, AttentionInputs], AttentionInputs | None]
    model: PreTrainedModel


_guests: ContextVar[tuple[_Guest, ...]] = ContextVar("guests", default=())
_watchers: ContextVar[tuple[tuple[PatternVisitor, PreTrainedModel], ...]] = ContextVar(
    "watchers", default=()
)


@contextmanager
def visiting(model: PreTrainedModel, visitor: Visitor) -> Generator[None, None, None]:
    """Show `visitor` the attention inputs of a tapped model whenever it runs inside the context.

    Contexts within contexts add up: an inner visitor sees what the outer one left. A run that a
    visitor itself starts is shown to no one outside it.
    """
    with _appended(_guests, _Guest(lambda module, inputs: visitor(inputs), model)):
        yield


def has_visitors() -> bool:
    """True inside a context that sees or edits attention inputs."""
    return bool(_guests.get())


@contextmanager
def watching_patterns(
    model: PreTrainedModel, visitor: PatternVisitor
) -> Generator[None, None, None]:
    """Show `visitor` the attention weights of a tapped model whenever it runs inside the context.

    The model runs the eager kernel meanwhile, the one that has them; logits agree up to rounding.
    """
    kernel = attention_kernel(model)
    by_interface = cast(Any, model.config)._attn_implementation.startswith(_PREFIX)
    if by_interface:
        model.set_attn_implementation(_register("eager"))
    try:
        with _appended(_watchers, (visitor, model)):
            yield
    finally:
        if by_interface:
            model.set_attn_implementation(_register(kernel))


def attention_modules(model: PreTrainedModel, run: Callable[[], object]) -> list[nn.Module]:
    """Modules of a tapped model that call the attention while `run` runs, in order."""
    modules: list[nn.Module] = []
    with _appended(_guests, _Guest(lambda module, inputs: modules.append(module), model)):
        run()
    return modules


@contextmanager
def _appended(stack: ContextVar[Any], entry: Any) -> Generator[None, None, None]:
    token = stack.set((*stack.get(), entry))
    try:
        yield
    finally:
        stack.reset(token)


def tapped_copy(model: PreTrainedModel) -> PreTrainedModel:
    """Copy a model's modules, share every weight, and let visitors see its attention inputs.

    The copy costs no memory for weights and computes the same logits as `model` with the same
    attention kernel.
    """
    memo: dict[int, Any] = {id(weight): weight for weight in model.parameters()}
    memo.update({id(buffer): buffer for buffer in model.buffers()})
    twin = copy.deepcopy(model, memo)
    modules: dict[str, nn.Module] = dict(cast(Any, twin).named_modules())
    for name, module in modules.items():
        module.__dict__["_mi_massive_tap"] = (_block_index(name), twin)
        if callable(getattr(module, "_attn", None)):
            _wrap_attn_method(cast(Any, module))
    kernel = attention_kernel(model)
    if not any(callable(getattr(module, "_attn", None)) for module in modules.values()):
        twin.set_attn_implementation(_register(kernel))
    return twin.eval()


def attention_kernel(model: PreTrainedModel) -> str:
    """Name of the attention implementation that a model runs, such as `sdpa`."""
    return str(cast(Any, model.config)._attn_implementation or "eager").removeprefix(_PREFIX)


def sliding_blocks(model: PreTrainedModel) -> frozenset[int]:
    """Blocks whose attention, and so whose cache, sees a window of the last tokens only."""
    config: Any = cast(Any, model.config).get_text_config()
    kinds: list[str] | None = getattr(config, "layer_types", None)
    if kinds is None:  # one kind throughout, as for Mistral
        sliding = getattr(config, "sliding_window", None) is not None
        return frozenset(range(config.num_hidden_layers) if sliding else ())
    return frozenset(block for block, kind in enumerate(kinds) if kind == "sliding_attention")


def _block_index(name: str) -> int | None:
    found = _BLOCK.search(f".{name}.")
    return int(found.group(1)) if found else None


def _register(kernel: str) -> str:
    """Register the tapped form of a kernel, with the mask that belongs to it."""
    name = _PREFIX + kernel
    if name not in cast(Any, ALL_ATTENTION_FUNCTIONS):

        def attend(
            module: nn.Module, q: Tensor, k: Tensor, v: Tensor, *args: Any, **kw: Any
        ) -> Any:
            q, k, v = _visit(module, q, k, v, scale=_query_scale(module, kw))
            return _watched(module, _implementation(module, kernel)(module, q, k, v, *args, **kw))

        AttentionInterface.register(name, attend)
        masks = cast(Any, ALL_MASK_ATTENTION_FUNCTIONS)
        AttentionMaskInterface.register(name, masks[kernel])
    return name


def _implementation(module: nn.Module, kernel: str) -> Callable[..., Any]:
    if kernel != "eager":
        return cast(Any, ALL_ATTENTION_FUNCTIONS)[kernel]
    homes = [sys.modules[kind.__module__] for kind in type(module).__mro__]
    return next(h.eager_attention_forward for h in homes if hasattr(h, "eager_attention_forward"))


def _wrap_attn_method(module: Any) -> None:
    inner = module._attn

    def attend(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kw: Any) -> Any:
        return _watched(module, inner(*_visit(module, query, key, value), *args, **kw))

    module._attn = attend


def _query_scale(module: nn.Module, kernel_arguments: Mapping[str, Any]) -> float:
    """Factor that the queries already carry: that of the scores, where the kernel is told 1."""
    if kernel_arguments.get("scaling") != 1.0:
        return 1.0
    return float(getattr(module, "scaling", 1.0))


def _visit(
    module: nn.Module, q: Tensor, k: Tensor, v: Tensor, *, scale: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    block, model = module.__dict__["_mi_massive_tap"]
    for guest in _guests.get():
        if guest.model is not model:
            continue
        query = q if scale == 1.0 else q / scale
        alone = _guests.set(())  # what a visitor runs itself is its own affair
        try:
            replaced = guest.visit(module, AttentionInputs(block, query, k, v))
        finally:
            _guests.reset(alone)
        if replaced is None:
            continue
        if replaced.query is not query:
            q = replaced.query if scale == 1.0 else replaced.query * scale
        k, v = replaced.key, replaced.value
    return q, k, v


def _watched(module: nn.Module, result: tuple[Tensor, Tensor | None]) -> Any:
    block, model = module.__dict__["_mi_massive_tap"]
    for watch, watched in _watchers.get():
        if watched is model:
            watch(block, cast(Tensor, result[1]))
    return result
