"""What a capture leaves: sums over tokens of queries, keys and values, and their norms.

The norm of a head dimension is `M[layer, head, d] = || X[:, head, d] ||_2` over positions (Jin et
al. 2025,
arXiv:2502.01563). A capture keeps per prompt the sums that M, the first token's share of it, the
token mean and the phase of each rotary pair can be computed from; memory does not grow with the
length of a prompt.

Does not show: anything about single tokens but the first, or about attention patterns.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mi_massive._brief import Brief
from mi_massive.axes import Projection
from mi_massive.records import Provenance
from mi_massive.rope import ModelGeometry

Stage = Literal["attention", "unrotated"]
"""`attention`: as it enters the attention (rotated where the layer rotates); `unrotated`: rotation
undone."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SiteSums:
    """Sums over the tokens of each prompt at one site, float32 on the CPU.

    `head` counts query heads for q and key-value heads for k and v.
    """

    squares: Float[Tensor, "prompt layer head d_head"] = field(repr=False)
    """Sum over tokens of the squared activation."""
    total: Float[Tensor, "prompt layer head d_head"] = field(repr=False)
    """Sum over tokens of the activation."""
    first: Float[Tensor, "prompt layer head d_head"] = field(repr=False)
    """Activation of the first token; NaN when the capture skipped it."""
    phasors: Float[Tensor, "prompt layer head pair 2"] | None = field(repr=False)
    """Sum over tokens *after the first* of each rotary pair scaled to length one, as (cos, sin) of
    its phase.

    None for values and for models without rotation; NaN in layers that do not rotate.
    """

    def norms(self, *, without_first: bool = False) -> Float[Tensor, "prompt layer head d_head"]:
        """L2 norm over positions, per prompt; activation units."""
        if without_first:
            return (self.squares - self.first.square()).clamp_min(0).sqrt()
        return self.squares.sqrt()

    def pooled_norms(self, *, without_first: bool = False) -> Float[Tensor, "layer head d_head"]:
        """L2 norm over the positions of all prompts together; activation units."""
        return self.norms(without_first=without_first).square().sum(dim=0).sqrt()

    def first_share(self) -> Float[Tensor, "layer head d_head"]:
        """Share of the pooled energy (squared norm) that the first tokens hold, in 0..1."""
        return self.first.square().sum(dim=0) / self.squares.sum(dim=0)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False, repr=False)
class AttentionNorms(Brief):
    """Norms of queries, keys and values over a set of prompts, from `capture_norms`.

    `q`, `k` and `v` are the pooled norms `[layer, head, d_head]`; the sums behind them keep the
    prompts apart. The head axis of k and v counts key-value heads.
    """

    q_sums: SiteSums
    """Queries as they enter the attention: after QK-norm and rotation where the model has them."""
    k_sums: SiteSums
    v_sums: SiteSums
    q_unrotated_sums: SiteSums | None
    """Queries with the rotation undone (after QK-norm); None for a model without rotation."""
    k_unrotated_sums: SiteSums | None
    n_tokens: Int[Tensor, "prompt"]
    """Tokens of each prompt that entered the sums."""
    geometry: ModelGeometry
    provenance: Provenance

    def sums(self, projection: Projection, stage: Stage = "attention") -> SiteSums:
        """The sums of one projection; values are the same at both stages.

        Raises:
            ValueError: If the unrotated stage is asked for and no layer of the model rotates.
        """
        if stage == "attention" or projection == "v":
            return {"q": self.q_sums, "k": self.k_sums, "v": self.v_sums}[projection]
        sums = self.q_unrotated_sums if projection == "q" else self.k_unrotated_sums
        if sums is None:
            raise ValueError(
                "stage must be 'attention' for a model without rotary position embeddings, "
                "got 'unrotated'"
            )
        return sums

    @property
    def q(self) -> Float[Tensor, "layer head d_head"]:
        """Pooled norms of the queries."""
        return self.q_sums.pooled_norms()

    @property
    def k(self) -> Float[Tensor, "layer kv_head d_head"]:
        """Pooled norms of the keys."""
        return self.k_sums.pooled_norms()

    @property
    def v(self) -> Float[Tensor, "layer kv_head d_head"]:
        """Pooled norms of the values."""
        return self.v_sums.pooled_norms()

    @property
    def n_prompts(self) -> int:
        """Prompts captured."""
        return self.n_tokens.numel()

    @property
    def layers(self) -> tuple[int, ...]:
        """Block index of each entry of the layer axis."""
        return self.geometry.blocks

    def mean(
        self, projection: Projection, stage: Stage = "attention"
    ) -> Float[Tensor, "layer head d_head"]:
        """Mean of each dimension over all tokens; activation units."""
        return self.sums(projection, stage).total.sum(dim=0) / float(self.n_tokens.sum())

    def mean_over_rms(
        self, projection: Projection, stage: Stage = "attention"
    ) -> Float[Tensor, "layer head d_head"]:
        """|token mean| / root mean square of each dimension over all tokens, in 0..1.

        1 is a constant offset, 0 a dimension that averages out. NaN where a dimension is zero
        throughout.
        """
        squares = self.sums(projection, stage).squares.sum(dim=0)
        rms = (squares / float(self.n_tokens.sum())).sqrt()
        return self.mean(projection, stage).abs() / rms

    def phases(
        self, projection: Projection, stage: Stage = "unrotated"
    ) -> Float[Tensor, "layer head pair"]:
        """Circular mean of each pair's phase over the tokens after the first, in rad (-pi..pi].

        NaN in layers that do not rotate.
        """
        phasors = self._phasors(projection, stage).sum(dim=0)
        return torch.atan2(phasors[..., 1], phasors[..., 0])

    def resultant_lengths(
        self, projection: Projection, stage: Stage = "unrotated"
    ) -> Float[Tensor, "layer head pair"]:
        """Mean resultant length of each pair's phase over the tokens after the first, in 0..1.

        1: every token has the same phase; about 1 / sqrt(n) for uniform phases. NaN in layers that
            do not rotate.

        Source:
            Mardia and Jupp, Directional Statistics, section 2.3.
        """
        return (
            self._phasors(projection, stage).sum(dim=0).square().sum(dim=-1).sqrt()
            / self._n_phasors()
        )

    def rotating(self) -> Bool[Tensor, "layer"]:
        """True for layers that rotate their queries and keys."""
        return torch.tensor([layer.rotary is not None for layer in self.geometry.layers])

    def _phasors(
        self, projection: Projection, stage: Stage
    ) -> Float[Tensor, "prompt layer head pair 2"]:
        phasors = self.sums(projection, stage).phasors
        if phasors is None:
            raise ValueError(
                f"projection must be 'q' or 'k' of a model with rotary position embeddings, "
                f"got {projection!r}"
            )
        return phasors

    def _n_phasors(self) -> float:
        skipped = bool(torch.isnan(self.q_sums.first).any())
        return float(self.n_tokens.sum()) - (0 if skipped else self.n_prompts)
