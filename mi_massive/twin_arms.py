"""Position encodings that twins differ in, and the size that they share."""

from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

from mi_massive._checks import require_in_range

Encoding = Literal[
    "rope", "partial", "p_rope", "interleaved", "qk_norm", "learned", "alibi", "none"
]


@dataclass(frozen=True, kw_only=True, slots=True)
class TwinArm:
    """One position encoding."""

    encoding: Encoding
    statement: str
    """What it is, for tables."""
    theta: float = 1e4
    """Base of the rotary frequencies theta ** (-2 i / width)."""
    share: float = 1.0
    """`partial`: part of the head's width that rotates, at the frequencies of that width; `p_rope`:
    share of the pairs that rotate, the fastest ones of the full width."""

    @property
    def rotates(self) -> bool:
        """True if queries and keys are rotated."""
        return self.encoding not in ("learned", "alibi", "none")


TWIN_ARMS: Final = MappingProxyType(
    {
        "rope": TwinArm(encoding="rope", statement="RoPE, theta 1e4"),
        "rope_1e2": TwinArm(encoding="rope", theta=1e2, statement="RoPE, theta 1e2"),
        "rope_5e5": TwinArm(encoding="rope", theta=5e5, statement="RoPE, theta 5e5"),
        "partial_25": TwinArm(
            encoding="partial", share=0.25, statement="RoPE on 25 % of the head's width"
        ),
        "partial_50": TwinArm(
            encoding="partial", share=0.5, statement="RoPE on 50 % of the head's width"
        ),
        "p_rope": TwinArm(
            encoding="p_rope", share=0.75, statement="RoPE, the slowest 25 % of the pairs still"
        ),
        "interleaved": TwinArm(
            encoding="interleaved", statement="RoPE on neighbouring dimensions, theta 1e4"
        ),
        "qk_norm": TwinArm(encoding="qk_norm", statement="RoPE, theta 1e4, after QK-norm"),
        "learned": TwinArm(encoding="learned", statement="learned absolute positions"),
        "alibi": TwinArm(encoding="alibi", statement="ALiBi"),
        "none": TwinArm(encoding="none", statement="no position encoding"),
    }
)
"""The arms by name; adding one is one entry."""


def rotating(arms: Sequence[str]) -> list[str]:
    """Those of the arms that rotate queries and keys."""
    return [arm for arm in arms if TWIN_ARMS[arm].rotates]


def leading_rotation(arms: Sequence[str]) -> str | None:
    """The arm that others are set against: plain RoPE, or the first that rotates."""
    return "rope" if "rope" in arms else next(iter(rotating(arms)), None)


@dataclass(frozen=True, kw_only=True, slots=True)
class TwinShape:
    """Size of every twin of a set. Queries and keys have the same heads."""

    n_layers: int = 2
    n_heads: int = 4
    d_head: int = 32
    context: int = 128
    """Tokens of a training window."""
    n_vocabulary: int = 257

    def __post_init__(self) -> None:
        require_in_range("n_layers", self.n_layers, low=1, high=200, unit="layers")
        require_in_range("n_heads", self.n_heads, low=1, high=1024, unit="heads")
        require_in_range("d_head", self.d_head, low=8, high=1024, unit="dimensions")
        require_in_range("context", self.context, low=8, high=1 << 20, unit="tokens")
        require_in_range("n_vocabulary", self.n_vocabulary, low=2, high=1 << 20, unit="tokens")
        if self.d_head % 8:
            raise ValueError(
                f"d_head must be a multiple of 8, got {self.d_head}; a quarter of it rotates in "
                "pairs in one of the arms"
            )

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.n_heads * self.d_head
