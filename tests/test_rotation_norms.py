"""Massive dimensions before and after the rotation: planted ones, loops, the control."""

import dataclasses
import math
from typing import Any

import pytest
import torch
from builders import build_geometry, build_norms
from torch import Tensor

from mi_massive.norms import AttentionNorms
from mi_massive.rope import rotate
from mi_massive.rotation_norms import rotation_norms

N_HEADS, D_HEAD, N_POS = 2, 32, 12


def planted(theta: float | None = 1e4) -> tuple[AttentionNorms, dict[str, Tensor]]:
    """Before the rotation q is massive in dimension 0 (fast) and k in 15 (slow), in layer 0."""
    torch.manual_seed(0)
    geometry = build_geometry(2, N_HEADS, D_HEAD, theta=theta)
    states = {role: torch.randn(3, N_POS, 2, N_HEADS, D_HEAD).double() for role in "qkv"}
    states["q"][:, :, 0, :, 0] += 60.0
    states["k"][:, :, 0, :, 15] += 60.0
    turned = dict(states)
    for role in "qk":
        turned[role] = states[role].clone()
        for index, layer in enumerate(geometry.layers):
            if layer.rotary is not None:
                own = states[role][:, :, index].transpose(1, 2)
                own = rotate(own, torch.arange(N_POS), layer.rotary)
                turned[role][:, :, index] = own.transpose(1, 2)
    norms = build_norms(turned["q"], turned["k"], turned["v"], geometry=geometry)
    return norms, states


def per_head(states: Tensor, ratio: float) -> list[float]:
    """Massive dimensions per head of each prompt, one head at a time."""
    found = []
    for prompt in range(len(states)):
        counts = []
        for layer in range(2):
            for head in range(N_HEADS):
                norms = states[prompt, :, layer, head].square().sum(dim=0).sqrt()
                counts.append(int((norms > ratio * norms.mean()).sum()))
        found.append(sum(counts) / len(counts))
    return found


def test_counts_before_and_after_equal_loops_over_heads() -> None:
    norms, states = planted()
    rows = {row.projection: row for row in rotation_norms(norms)}
    for role in "qkv":
        expected = per_head(states[role], 5.0)
        assert rows[role].massive_before.effect == pytest.approx(sum(expected) / 3)
        assert rows[role].massive_before.n == 3
    # One massive dimension in each head of one of two layers.
    assert rows["q"].massive_before.effect == rows["k"].massive_before.effect == 0.5


def test_a_fast_pair_spreads_over_both_members_and_a_slow_one_stays() -> None:
    q, k, v = rotation_norms(planted()[0])
    assert q.massive_after.effect > q.massive_before.effect  # both members pass the threshold
    assert q.massive_change.effect == q.massive_after.effect - q.massive_before.effect
    assert q.peak_after.effect < q.peak_before.effect
    assert k.massive_after.effect == k.massive_before.effect
    assert k.peak_ratio.effect == pytest.approx(1.0, abs=0.05)
    assert q.peak_ratio.effect == pytest.approx(q.peak_after.effect / q.peak_before.effect)
    assert q.same_pair.effect == k.same_pair.effect == 1.0
    assert v.massive_change.effect == 0.0
    assert math.isnan(v.same_pair.effect)


def test_what_arises_with_the_rotation_is_in_no_pair_that_was_massive() -> None:
    """A row that is massive after the rotation only: its pair held nothing before."""
    norms, _ = planted()
    moved: Any = norms.q_unrotated_sums
    flat = type(moved)(
        squares=torch.ones_like(moved.squares),
        total=moved.total,
        first=moved.first,
        phasors=moved.phasors,
    )
    rows = rotation_norms(dataclasses.replace(norms, q_unrotated_sums=flat))
    assert rows[0].same_pair.effect == 0.0
    assert rows[0].massive_before.effect == 0.0


def test_layers_without_rotation_take_no_part() -> None:
    norms, _ = planted()
    still = dataclasses.replace(norms.geometry.layers[0], rotary=None)
    geometry = dataclasses.replace(norms.geometry, layers=(still, norms.geometry.layers[1]))
    rows = rotation_norms(dataclasses.replace(norms, geometry=geometry))
    assert rows[0].massive_before.effect == 0.0  # the massive ones stood in layer 0


def test_a_model_without_rotation_and_a_senseless_ratio_are_refused() -> None:
    with pytest.raises(ValueError, match="norms must come from a model with a layer that rotates"):
        rotation_norms(planted(theta=None)[0])
    with pytest.raises(ValueError, match="ratio must be finite and positive, got -1"):
        rotation_norms(planted()[0], ratio=-1)
