"""Model families that the tests prove, with what is special about each."""

from dataclasses import dataclass
from typing import Final, Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """One architecture of transformers."""

    model_type: str
    """`model_type` of its configuration."""
    rotation: Literal["half_split", "interleaved", "none"]
    note: str
    hooks: Literal["own", "revived"] = "own"
    """`revived`: the rotary hook points of TransformerLens never fire there, ours do."""


FAMILIES: Final[tuple[Family, ...]] = (
    Family(
        model_type="llama", rotation="half_split", note="GQA; llama3, linear, dynamic, yarn scaling"
    ),
    Family(model_type="mistral", rotation="half_split", note="sliding window"),
    Family(model_type="qwen2", rotation="half_split", note="biased projections"),
    Family(model_type="qwen3", rotation="half_split", note="QK-norm"),
    Family(model_type="gemma2", rotation="half_split", note="soft cap: eager attention"),
    Family(model_type="gemma3_text", rotation="half_split", note="QK-norm; two thetas"),
    Family(model_type="phi", rotation="half_split", note="partial rotation"),
    Family(
        model_type="phi3",
        rotation="half_split",
        note="fused projections",
        hooks="revived",
    ),
    Family(
        model_type="gpt_neox",
        rotation="half_split",
        note="partial rotation",
        hooks="revived",
    ),
    Family(
        model_type="gptj",
        rotation="interleaved",
        note="partial rotation",
        hooks="revived",
    ),
    Family(model_type="glm", rotation="interleaved", note="partial rotation"),
    Family(model_type="cohere", rotation="interleaved", note="parallel blocks"),
    Family(model_type="gpt2", rotation="none", note="learned positions"),
    Family(model_type="gpt_neo", rotation="none", note="learned positions; local layers"),
    Family(model_type="opt", rotation="none", note="learned positions"),
    Family(model_type="bert", rotation="none", note="encoder, learned positions"),
    Family(model_type="jamba", rotation="none", note="hybrid: its attention layers"),
)
"""Every family that `tests/test_models_families.py` proves; others load if their rotation can be
measured."""
