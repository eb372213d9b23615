"""TransformerLens' own patching loop, one whole forward pass a cell: what `patch` is compared with.

Costs as many forward passes as there are cells; see `mi_massive.patch_speed`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mi_massive.axes import Site
from mi_massive.models.base import HookedModel
from mi_massive.models.sites import patch_site_name


@torch.no_grad()
def library_effects(
    model: HookedModel,
    clean: Int[Tensor, "example pos"],
    corrupted: Int[Tensor, "example pos"],
    answers: Int[Tensor, "example 2"],
    *,
    site: Site,
    cells: Sequence[tuple[int, int]],
) -> Float[Tensor, "cell example"]:
    """Effect of patching whole heads by `transformer_lens.patching.generic_activation_patch`.

    Args:
        model: From `load_model`.
        clean: Prompts whose activations are taken, cached once.
        corrupted: Prompts that are patched, all of them in one forward pass a cell.
        answers: Answer and other token of each pair.
        site: A site with heads and positions: q, k, v, rot_q, rot_k or z.
        cells: Block and head of each cell.

    Returns:
        Logit difference with the cell patched minus that without, at the last position.
    """
    import pandas as pd
    from transformer_lens import patching

    def metric(logits: Tensor) -> Tensor:
        both = logits[:, -1].float().gather(1, answers)
        return both[:, 0] - both[:, 1]

    names = sorted({patch_site_name(block, site) for block, _ in cells})
    _, cache = model.bridge.run_with_cache(clean, names_filter=names)
    loop: Any = patching  # untyped
    found: Any = loop.generic_activation_patch(
        model.bridge,
        corrupted,
        cache,
        metric,
        loop.layer_head_vector_patch_setter,
        site,
        index_df=pd.DataFrame({"layer": [b for b, _ in cells], "head": [h for _, h in cells]}),
        reduce="none",
        baseline=True,
    )
    return found.effect()
