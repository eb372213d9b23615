"""The words for tensor axes and the closed choices that every module shares.

Axis words, always singular, used in every shape annotation and every table:

========== ==========================================================================
batch      prompts processed in one forward pass
prompt     prompts of a run, in the order given
pos        token positions of a prompt; 0 is its first real token, padding excluded
layer      attention layers in model order; `layers` of a result gives block indices
head       query heads of q, key-value heads of k and v (their own count, never padded)
kv_head    key-value heads, where query heads stand beside them
d_head     dimensions of one head
pair       rotary pairs of one head; pair 0 rotates fastest
band       groups of rotary pairs, ordered from fast to slow
group      token positions by the part they play in a prompt: first, object, last
example    pairs of prompts, in the order given, that a measurement uses
========== ==========================================================================

Layers are 0-based block indices: `L9H3` is head 3 of `blocks.9`.
"""

from typing import Final, Literal, get_args

Projection = Literal["q", "k", "v"]
"""Queries, keys or values, as they enter the attention: q and k rotated where the layer rotates."""

PROJECTIONS: Final[tuple[Projection, ...]] = get_args(Projection)

Site = Literal["q", "k", "v", "rot_q", "rot_k", "pattern", "z", "resid_pre"]
"""Where activations are patched, in TransformerLens' words: `rot_q` is hook_rot_q. q and k are
before QK-norm and rotation, z is what a head reads (before the output projection), resid_pre what
enters a block."""

SITES: Final[tuple[Site, ...]] = get_args(Site)

Layout = Literal["half_split", "interleaved"]
"""Which two dimensions form a rotary pair: (p, p + n_pairs), or (2p, 2p + 1)."""
