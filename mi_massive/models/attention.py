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

OPT scales its queries by 1 / sqrt(d_head) before it hands them over: they are shown as scaled here,
and unscaled at hook_q.
"""

import copy
import re
import sys
from collections.abc import Callable, Generator
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
them."""

_visitor: ContextVar[Callable[[nn.Module, AttentionInputs], AttentionInputs | None] | None] = (
    ContextVar("visitor", default=None)
)


@contextmanager
def visiting(visitor: Visitor) -> Generator[None, None, None]:
    """Show `visitor` the attention inputs of every tapped model that runs inside the context."""
    token = _visitor.set(lambda module, inputs: visitor(inputs))
    try:
        yield
    finally:
        _visitor.reset(token)


def attention_modules(run: Callable[[], object]) -> list[nn.Module]:
    """Modules of tapped models that call the attention while `run` runs, in order."""
    modules: list[nn.Module] = []
    token = _visitor.set(lambda module, inputs: modules.append(module))
    try:
        run()
    finally:
        _visitor.reset(token)
    return modules


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
        module.__dict__["_mi_massive_block"] = _block_index(name)
        if callable(getattr(module, "_attn", None)):
            _wrap_attn_method(cast(Any, module))
    kernel = attention_kernel(model)
    if not any(callable(getattr(module, "_attn", None)) for module in modules.values()):
        twin.set_attn_implementation(_register(kernel))
    return twin.eval()


def attention_kernel(model: PreTrainedModel) -> str:
    """Name of the attention implementation that a model runs, such as `sdpa`."""
    return str(cast(Any, model.config)._attn_implementation or "eager").removeprefix(_PREFIX)


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
            q, k, v = _visit(module, q, k, v)
            return _implementation(module, kernel)(module, q, k, v, *args, **kw)

        AttentionInterface.register(name, attend)
        masks = cast(Any, ALL_MASK_ATTENTION_FUNCTIONS)
        AttentionMaskInterface.register(name, masks[kernel])
    return name


def _implementation(module: nn.Module, kernel: str) -> Callable[..., Any]:
    if kernel == "eager":
        return cast(Any, sys.modules[type(module).__module__]).eager_attention_forward
    return cast(Any, ALL_ATTENTION_FUNCTIONS)[kernel]


def _wrap_attn_method(module: Any) -> None:
    inner = module._attn

    def attend(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kw: Any) -> Any:
        return inner(*_visit(module, query, key, value), *args, **kw)

    module._attn = attend


def _visit(module: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    visitor = _visitor.get()
    if visitor is None:
        return q, k, v
    block = module.__dict__["_mi_massive_block"]
    replaced = visitor(module, AttentionInputs(block, q, k, v))
    return (q, k, v) if replaced is None else (replaced.query, replaced.key, replaced.value)
