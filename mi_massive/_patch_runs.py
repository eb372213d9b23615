"""The runs behind a patch: batches of pairs of one length, and the patched passes over them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mi_massive._patch_units import Units, from_heads, to_heads
from mi_massive.axes import Site
from mi_massive.models.resume import Resumer, Run
from mi_massive.models.sites import HookFunction, patch_site_name
from mi_massive.patch_results import Direction
from mi_massive.prompt_pairs import PromptPair
from mi_massive.rope import LayerGeometry

Job = tuple[int, str]
"""A cell of a layer: number of the unit, name of the position group."""


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Pairs of one length with the runs that a patch starts from and takes from."""

    places: tuple[int, ...]
    """Position of each pair among those that are used."""
    pairs: tuple[PromptPair, ...]
    base: Run
    sources: tuple[Run, ...]
    """Of the treatment, and of the placebo where there is one."""
    direction: Direction
    groups: dict[str, Bool[Tensor, "example pos"]]

    @property
    def clean(self) -> Run:
        """Run of the clean prompts."""
        return self.sources[0] if self.direction == "denoising" else self.base

    @property
    def corrupted(self) -> Run:
        """Run of the corrupted prompts."""
        return self.base if self.direction == "denoising" else self.sources[0]

    def only(self, used: Sequence[int]) -> "Batch | None":
        """This batch with those of `used` alone, numbered by their place there; None without."""
        rows = [row for row, place in enumerate(self.places) if place in used]
        if not rows:
            return None
        return Batch(
            places=tuple(used.index(self.places[row]) for row in rows),
            pairs=tuple(self.pairs[row] for row in rows),
            base=self.base.rows(rows),
            sources=tuple(source.rows(rows) for source in self.sources),
            direction=self.direction,
            groups={name: mask[rows] for name, mask in self.groups.items()},
        )

    @property
    def answers(self) -> Int[Tensor, "example 2"]:
        """Answer and other token of each pair."""
        return answer_tokens(self.pairs)

    def start(self, group: str, source: Run) -> int:
        """First position that a patch of this group can change, at most the last one.

        Not before the group, and not before the source's tokens differ: until then the two runs of
        a causal model are the same.
        """
        differ = (source.ids != self.base.ids).long()
        first_different = differ.argmax(dim=1).where(differ.any(dim=1), self.base.n_pos)
        first_patched = self.groups[group].long().argmax(dim=1)
        at = torch.maximum(first_different.cpu(), first_patched).min()
        return min(int(at), self.base.n_pos - 1)


def answer_tokens(pairs: Sequence[PromptPair]) -> Int[Tensor, "example 2"]:
    """Answer and other token of each pair."""
    return torch.tensor([[pair.answer, pair.other] for pair in pairs])


def logit_differences(
    logits: Float[Tensor, "row d_vocab"], answers: Int[Tensor, "example 2"]
) -> Float[Tensor, "row"]:
    """`logit[answer] - logit[other]` of rows that are copies of examples, next to each other."""
    picked = answers.to(logits.device).repeat_interleave(len(logits) // len(answers), dim=0)
    both = logits.float().gather(1, picked)
    return both[:, 0] - both[:, 1]


def by_length(pairs: Sequence[PromptPair], batch_size: int) -> list[list[int]]:
    """Positions of pairs of one length together, at most `batch_size` of them."""
    lengths: dict[int, list[int]] = {}
    for place, pair in enumerate(pairs):
        lengths.setdefault(len(pair.clean), []).append(place)
    return [
        places[at : at + batch_size]
        for places in lengths.values()
        for at in range(0, len(places), batch_size)
    ]


def differences(
    batches: Sequence[Batch],
) -> tuple[Float[Tensor, "example"], Float[Tensor, "example"]]:
    """`logit[answer] - logit[other]` at the last position of all clean and corrupted prompts."""
    n = sum(len(batch.places) for batch in batches)
    clean, corrupted = torch.zeros(n), torch.zeros(n)
    for batch in batches:
        at = list(batch.places)
        clean[at] = logit_differences(batch.clean.logits, batch.answers).cpu()
        corrupted[at] = logit_differences(batch.corrupted.logits, batch.answers).cpu()
    return clean, corrupted


def make_batches(
    resumer: Resumer,
    pairs: Sequence[PromptPair],
    *,
    site: Site,
    blocks: Sequence[int],
    direction: Direction,
    groups: Sequence[str],
    batch_size: int,
) -> list[Batch]:
    """Run every prompt once, and keep what patches at `site` in `blocks` need."""
    names = [patch_site_name(block, site) for block in blocks]
    entered = () if resumer.reuse == "nothing" else blocks
    batches: list[Batch] = []
    for places in by_length(pairs, batch_size):
        chosen = tuple(pairs[place] for place in places)
        clean = resumer.run(
            torch.tensor([p.clean for p in chosen]),
            names=names,
            blocks=entered if direction == "noising" else (),
        )
        corrupted = resumer.run(
            torch.tensor([p.corrupted for p in chosen]),
            names=names if direction == "noising" else (),
            blocks=entered if direction == "denoising" else (),
        )
        base, source = (corrupted, clean) if direction == "denoising" else (clean, corrupted)
        placebos = [p.placebo for p in chosen if p.placebo is not None]
        placebo = [resumer.run(torch.tensor(placebos), names=names, blocks=())] if placebos else []
        batches.append(
            Batch(
                places=tuple(places),
                pairs=chosen,
                base=base,
                sources=(source, *placebo),
                direction=direction,
                groups={name: group_mask(chosen, name) for name in groups},
            )
        )
    return batches


def group_mask(pairs: Sequence[PromptPair], group: str) -> Bool[Tensor, "example pos"]:
    """Positions of a group: its own of each pair, `all`, or `later` (all but the first)."""
    n_pos = len(pairs[0].clean)
    mask = torch.zeros(len(pairs), n_pos, dtype=torch.bool)
    for row, pair in enumerate(pairs):
        positions = {"all": range(n_pos), "later": range(1, n_pos), **pair.groups}[group]
        mask[row, list(positions)] = True
    return mask


def patch_layers(
    resumer: Resumer,
    batch: Batch,
    source: Run,
    units: Units,
    layers: Sequence[LayerGeometry],
    jobs: Sequence[Job],
    *,
    batch_size: int,
) -> Float[Tensor, "job example"]:
    """Logit difference of each pair with each cell patched, in all of `layers` together."""
    site = units.site
    masks = {
        layer.block: units.masks(layer, _clean_norms(batch, units, layer.block)) for layer in layers
    }
    # A pattern has a row a query and a column a key, cached or not: its queries are all computed.
    reused = resumer.reuse == "prefix" and site != "pattern"
    starts = {group: batch.start(group, source) if reused else 0 for _, group in jobs}
    patched = torch.zeros(len(jobs), len(batch.pairs))
    n_cells = max(1, batch_size // len(batch.pairs))
    for start in sorted(set(starts.values())):
        same = [number for number, (_, group) in enumerate(jobs) if starts[group] == start]
        for at in range(0, len(same), n_cells):
            stack = same[at : at + n_cells]
            cells = [jobs[number] for number in stack]
            hooks = [
                (
                    name := patch_site_name(layer.block, site),
                    _replacing(site, batch, source.states[name], masks[layer.block], cells, start),
                )
                for layer in layers
            ]
            logits = resumer.again(
                batch.base,
                hooks,
                block=min(layer.block for layer in layers),
                start=start,
                copies=len(stack),
            )
            differences = logit_differences(logits, batch.answers)
            patched[stack] = differences.view(-1, len(stack)).T.cpu()
    return patched


def _replacing(
    site: Site,
    batch: Batch,
    source: Float[Tensor, "example *rest"],
    masks: Bool[Tensor, "#example unit _ _"],
    cells: Sequence[Job],
    start: int,
) -> HookFunction:
    """A hook that puts the source's activations into the cells of a stack, one cell a copy."""
    states = to_heads(site, source)[:, start:]
    at = torch.stack([batch.groups[group][:, start:] for _, group in cells], dim=1)
    unit = masks[:, [number for number, _ in cells]]
    where = (at[..., None, None] & unit[:, :, None]).to(states.device)

    def replace(activation: Tensor, hook: object) -> Tensor:
        rows = to_heads(site, activation)
        rows = rows.reshape(len(batch.pairs), len(cells), *rows.shape[1:])
        return from_heads(site, torch.where(where, states[:, None], rows).flatten(0, 1))

    return replace


def _clean_norms(
    batch: Batch, units: Units, block: int
) -> Float[Tensor, "example head d_head"] | None:
    if units.granularity != "massive":
        return None
    states = to_heads(units.site, batch.clean.states[patch_site_name(block, units.site)])
    return states.float().square().sum(dim=1).sqrt().cpu()
