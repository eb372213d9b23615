"""Plausible made-up results of every type, for the tests of figures and report only.

Shapes are SmolLM2-135M's: 30 layers, 9 query and 3 key-value heads of 64 dimensions, theta 1e5.
"""

import math

import torch
from torch import Tensor

from mi_massive.arms import Arm
from mi_massive.attention_effects import EffectsResult
from mi_massive.bands import BandsConfig, BandsResult, ProjectionBands
from mi_massive.claims import Claim, ScoreboardResult
from mi_massive.concentration import (
    ConcentrationConfig,
    ConcentrationResult,
    ProjectionConcentration,
)
from mi_massive.contrasts import ArmContrast
from mi_massive.control_comparisons import ControlComparison
from mi_massive.disruption import DisruptionConfig, DisruptionResult
from mi_massive.patterns import HeadView, PatternsResult
from mi_massive.records import Provenance
from mi_massive.scores import INTACT, Cell
from mi_massive.stats import Estimate
from mi_massive.symmetry import ProjectionSymmetry, SymmetryConfig, SymmetryResult

N_LAYERS, N_HEADS, N_KV_HEADS, D_HEAD, N_PAIRS = 30, 9, 3, 64, 32
TRAINING_CONTEXT = 8192
WAVELENGTHS = 2 * math.pi * 1e5 ** (torch.arange(N_PAIRS).double() * 2 / D_HEAD)

TOKENS = (
    "<|im_start|>", "The", " city", " of", " Lyon", " lies", " where", " two", " rivers", " meet",
    ",", " and", " its", " markets", " have", " sold", " silk", " for", " four", " hundred",
    " years", ".", "\n", "Most", " of", " its", " bridges", " were", " rebuilt", " after",
    " the", " war", ".",
)  # fmt: skip


def provenance(model: str = "smollm2-135m-instruct") -> Provenance:
    return Provenance(
        model=model,
        revision="b179c9523d0e",
        weights_note="dequantized from GGUF Q4_1",
        dtype="float32",
        device="cpu",
        attention_kernel="sdpa",
        batch_size=8,
        n_prompts=32,
        prompts_digest="4f1c" * 16,
        seed=0,
        settings={"skip_first": False},
        versions={"python": "3.11.2", "mi-massive": "0.1.0", "torch": "2.13.0"},
        command="mi-massive report smollm2-135m-instruct --out report",
    )


def estimate(effect: float, width: float = 0.1, **changes: object) -> Estimate:
    fields: dict = {
        "effect": effect,
        "low": effect - width,
        "high": effect + width,
        "n": 32,
        "n_of": "prompts",
        "test": "bootstrap over prompts (BCa); sign-flip permutation",
        "p_value": 0.0004,
        "null": 1.0,
    }
    return Estimate(**(fields | changes))


def norms(n_layers: int, n_heads: int, *, peak: float, seed: int) -> Tensor:
    """Log-normal norms with one peak in each half, at a pair that varies a little."""
    draw = torch.Generator().manual_seed(seed)
    base = torch.randn(n_layers, n_heads, D_HEAD, generator=draw).mul(0.25).exp()
    pair = torch.arange(D_HEAD) % N_PAIRS
    shift = torch.randn(n_layers, n_heads, 1, generator=draw)
    depth = torch.linspace(0.7, 1.3, n_layers)[:, None, None]
    return base + peak * depth * torch.exp(-((pair - 26 - shift) ** 2) / 1.2)


def projection_concentration(values: Tensor, *, ratio: float = 5.0) -> ProjectionConcentration:
    largest, mean = values.amax(-1), values.mean(-1)
    massive = values > ratio * mean[..., None]
    energy = values.square() / values.square().sum(-1, keepdim=True)
    curve = massive.sum(-1).float().mean(-1)
    n_layers = values.shape[0]
    return ProjectionConcentration(
        norms=values,
        massive=massive,
        max_over_mean=largest / mean,
        max_over_median=largest / values.median(-1).values,
        kurtosis=((values - mean[..., None]) ** 4).mean(-1) / values.var(-1) ** 2 - 3,
        gini=energy.std(-1),
        top_share=energy.amax(-1),
        top_first_share=torch.zeros_like(mean),
        top_mean_over_rms=torch.ones_like(mean),
        prompt_max_over_mean=(largest / mean).mean().expand(32).clone(),
        head_overlap=estimate(0.41, 0.05, null=0.03),
        layer_agreement=estimate(0.37, 0.06, null=0.03),
        layer_overlap=torch.full((n_layers,), 0.4),
        layer_p_values=torch.full((n_layers,), 0.006),
        curve=curve,
        curve_low=(curve - 0.25).clamp_min(0),
        curve_high=curve + 0.25,
    )


def concentration_result(
    *,
    q: Tensor | None = None,
    k: Tensor | None = None,
    v: Tensor | None = None,
    model: str | None = None,
) -> ConcentrationResult:
    """Norms with planted peaks in q and k and none in v; pass tensors to plant something else."""
    q = norms(N_LAYERS, N_HEADS, peak=9.0, seed=1) if q is None else q
    k = norms(len(q), N_KV_HEADS, peak=7.0, seed=2) if k is None else k
    v = norms(len(q), N_KV_HEADS, peak=0.0, seed=3) if v is None else v
    return ConcentrationResult(
        q=projection_concentration(q),
        k=projection_concentration(k),
        v=projection_concentration(v),
        layers=tuple(range(len(q))),
        rotating_layers=tuple(range(len(q))),
        contrast_q=estimate(3.42, 0.11),
        contrast_k=estimate(3.18, 0.14),
        first_layer=0,
        first_layer_excess=estimate(0.9, 0.2, null=0.0),
        layer_tests=torch.full((len(q),), 0.0012),
        config=ConcentrationConfig(),
        provenance=provenance() if model is None else provenance(model),
    )


def concentration_with_nan() -> ConcentrationResult:
    """One undefined head (L4H2 of q) and one undefined layer of the curve (k, layer 7)."""
    q = norms(N_LAYERS, N_HEADS, peak=9.0, seed=1)
    q[4, 2] = torch.nan
    result = concentration_result(q=q)
    result.k.curve[7] = torch.nan
    return result


def control_result() -> ConcentrationResult:
    """Six layers of twelve heads without any peak."""
    flat = [norms(6, 12, peak=0.0, seed=seed) for seed in (11, 12, 13)]
    result = concentration_result(q=flat[0], k=flat[1], v=flat[2], model="all-minilm-l6-v2")
    return ConcentrationResult(
        **{name: getattr(result, name) for name in result.__slots__} | {"first_layer": None}
    )


def projection_bands(values: Tensor) -> ProjectionBands:
    energy = values.square()
    pairs = energy[..., :N_PAIRS] + energy[..., N_PAIRS:]
    share = pairs / pairs.sum(-1, keepdim=True)
    n_layers = len(values)
    massive = share.mean(1)
    return ProjectionBands(
        energy_share=share,
        massive_share=massive / massive.sum(-1, keepdim=True),
        band_energy=share.mean(1).reshape(n_layers, 8, 4).sum(-1),
        top_pair=share.argmax(-1).float(),
        centre_of_mass=(share * WAVELENGTHS.log10()).sum(-1).float(),
        low_half_share=estimate(float(share[..., N_PAIRS // 2 :].sum(-1).mean()), 0.02, null=0.5),
        massive_low_half_share=estimate(0.97, 0.02, null=0.5, n=214, n_of="massive dimensions"),
    )


def bands_result() -> BandsResult:
    result = concentration_result()
    q, k, v = (projection_bands(part.norms) for part in (result.q, result.k, result.v))
    return BandsResult(
        q=q,
        k=k,
        v=v,
        q_unrotated=q,
        k_unrotated=k,
        wavelengths=WAVELENGTHS.expand(N_LAYERS, -1).clone().float(),
        layers=tuple(range(N_LAYERS)),
        skipped_layers=(),
        training_context=TRAINING_CONTEXT,
        partial_cycle=estimate(0.88, 0.04, null=0.375, n=360, n_of="heads"),
        massive_unrotated_share=estimate(0.0, 0.0, null=math.nan, p_value=math.nan, n_of="layers"),
        q_k_same_pair=estimate(0.74, 0.05, null=0.03, n=270, n_of="heads"),
        config=BandsConfig(),
        provenance=provenance(),
    )


def projection_symmetry(n_heads: int, *, agreement: float, seed: int) -> ProjectionSymmetry:
    draw = torch.Generator().manual_seed(seed)
    shape = (N_LAYERS, n_heads)
    clusters = torch.randint(0, 4, shape, generator=draw)
    mirrored = torch.where(clusters == 0, torch.nan, (clusters == 2).float())
    return ProjectionSymmetry(
        partner_correlation=(agreement + 0.1 * torch.randn(shape, generator=draw)).clamp(-1, 1),
        partner_agreement=estimate(agreement, 0.03, null=0.0, n=N_LAYERS * n_heads, n_of="heads"),
        smooth_null_agreement=estimate(
            agreement, 0.03, null=0.11, n=N_LAYERS * n_heads, n_of="heads"
        ),
        layer_correlation=(agreement + 0.1 * torch.randn(N_LAYERS, generator=draw)).clamp(-1, 1),
        layer_agreement=estimate(agreement, 0.05, null=0.08, n=N_LAYERS, n_of="layers"),
        massive_partner_share=estimate(0.61, 0.06, null=0.04, n=188, n_of="massive dimensions"),
        n_clusters=clusters,
        mirrored=mirrored,
        separation=torch.where(mirrored == 1, 32.0, torch.nan),
        two_mirror_share=estimate(0.33, 0.05, null=0.02, n=201, n_of="heads"),
    )


def symmetry_result() -> SymmetryResult:
    draw = torch.Generator().manual_seed(5)
    shape = (N_LAYERS, N_HEADS)
    return SymmetryResult(
        q=projection_symmetry(N_HEADS, agreement=0.58, seed=21),
        k=projection_symmetry(N_KV_HEADS, agreement=0.52, seed=22),
        v=projection_symmetry(N_KV_HEADS, agreement=0.02, seed=23),
        q_unrotated=projection_symmetry(N_HEADS, agreement=0.31, seed=24),
        k_unrotated=projection_symmetry(N_KV_HEADS, agreement=0.27, seed=25),
        phase_offset=torch.randn(shape, generator=draw),
        phase_offset_magnitude=estimate(113.0, 6.0, null=90.0, n=270, n_of="heads"),
        phase_lead_share=estimate(0.83, 0.05, null=0.5, n=270, n_of="heads"),
        q_resultant=torch.rand(shape, generator=draw),
        k_resultant=torch.rand(shape, generator=draw),
        layout="half_split",
        layers=tuple(range(N_LAYERS)),
        skipped_layers=(),
        config=SymmetryConfig(),
        provenance=provenance(),
    )


def patterns_result(tokens: tuple[str, ...] = TOKENS) -> PatternsResult:
    """A constant offset on all tokens but the first, and patterns that look at the first token."""
    draw = torch.Generator().manual_seed(7)
    views = []
    for block, head, projection, dimension, sign in (
        (9, 3, "q", 57, 1), (9, 3, "k", 25, -1), (20, 6, "q", 26, 1), (20, 6, "k", 58, 1),
    ):  # fmt: skip
        activations = sign * 11.0 + torch.randn(len(tokens), generator=draw)
        activations[0] = -0.4 * activations[0]
        scores = torch.randn(len(tokens), len(tokens), generator=draw)
        scores[:, 0] += 4
        scores += torch.triu(torch.full_like(scores, -math.inf), 1)
        views.append(
            HeadView(
                block=block,
                head=head,
                projection=projection,
                dimension=dimension,
                activations=activations,
                pattern=scores.softmax(-1),
            )
        )
    return PatternsResult(tokens=tokens, heads=tuple(views), provenance=provenance())


def scoreboard_result(model: str = "smollm2-135m-instruct") -> ScoreboardResult:
    heads, layers = {"n_of": "heads"}, {"n_of": "layers", "n": 30}
    rows = (
        (
            "C1",
            "Queries and keys have concentrated massive values; values have none.",
            "supported",
            estimate(3.42, 0.11),
            "max/mean in q divided by that in v, geometric mean over prompts",
            "The largest dimension of a query head stands 3.4 times as far out as in values.",
        ),
        (
            "C2",
            "The massive dimensions of different heads are close to each other.",
            "supported",
            estimate(0.41, 0.05, null=0.03, **layers),
            "overlap of massive dimensions between the heads of a layer",
            "Heads of one layer share many more massive dimensions than shuffled heads would.",
        ),
        (
            "C3",
            "Massive values are absent in models without RoPE.",
            "supported",
            estimate(0.0, 0.0, null=math.nan, n=72, **heads),
            "massive dimensions per head in the control",
            "The control holds none; it is an encoder, so this is one comparison and no cause.",
        ),
        (
            "C8a",
            "The massive dimensions lie in the slower half of the rotary frequencies.",
            "supported",
            estimate(0.97, 0.02, null=0.5, n=214, n_of="massive dimensions"),
            "share of massive dimensions in the slower half",
            "Nearly all massive dimensions turn slowly.",
        ),
        (
            "C8b",
            "Massive dimensions form two symmetric clusters, one in each half of the head.",
            "not supported",
            estimate(0.33, 0.05, null=0.02, n=201, **heads),
            "share of heads with exactly two mirror clusters",
            "Mirror clusters are commoner than by chance, but only one head in three has them.",
        ),
        (
            "C8c",
            "RoPE causes the concentration.",
            "inconclusive",
            estimate(math.nan, n=0, p_value=math.nan, null=math.nan, **heads),
            "not measured in this run",
            "One trained model cannot decide a claim about training.",
        ),
        (
            "C9",
            "The concentration is there from the first layer.",
            "supported",
            estimate(0.9, 0.2, null=0.0, **layers),
            "massive dimensions per head in layer 0 beyond those of v",
            "It holds from layer 0.",
        ),
    )
    claims = tuple(
        Claim(id=i, statement=s, verdict=v, estimate=e, quantity=q, reading=r)
        for i, s, v, e, q, r in rows
    )
    return ScoreboardResult(claims=claims, provenance=provenance(model))


# --- disruption -----------------------------------------------------------------------------------

DAMAGE = {  # preset: share that contextual and parametric tasks lose at k = 8, and the sink at it
    "paper": (0.96, 0.81, 0.17),
    "sink_preserving": (0.91, 0.70, 0.39),
    "smallest": (0.0, 0.02, 0.40),
    "random": (0.55, 0.48, 0.36),
    "norm_matched": (0.72, 0.66, 0.30),
    "effect_matched": (0.83, 0.77, 0.21),
}
KS = (1, 2, 4, 8)
RUN_ORDER = (4, 1, 2, 8)
"""The first is the one that the verdicts are about."""
INTACT_SINK = 0.41
TASKS = (  # task, kind, floor, options' floor (None: no options), score of the intact model
    ("passkey_128_6", "contextual", 0.0, 0.25, 1.0),
    ("pairs_open_book", "contextual", 0.0, 0.5, 0.9),
    ("gsm8k", "contextual", 0.0, None, 0.2),
    ("pairs_closed_book", "parametric", 0.0, 0.5, 0.625),
    ("cities", "parametric", 0.5, 0.5, 0.5),
)
MEMORY = ("pairs_closed_book", "cities")
AT_CHANCE = ("cities",)
UNDEFINED_ARM = "norm_matched k=8"
"""Its cross-entropy is NaN, and so is one of its scores."""
NAN = estimate(math.nan, n=0, p_value=math.nan, null=math.nan, n_of="examples")


def arms() -> tuple[Arm, ...]:
    return tuple(
        Arm(preset=preset, k=k, seed=seed, strength=1.9 if preset == "effect_matched" else 1.0)
        for preset in DAMAGE
        for k in RUN_ORDER
        for seed in range(2 if preset == "random" else 1)
    )


def damage(arm: Arm) -> tuple[float, float]:
    """Shares that contextual and parametric tasks lose; seeds differ a little."""
    dose = KS.index(arm.k) / (len(KS) - 1)
    return tuple(share * dose + 0.06 * arm.seed for share in DAMAGE[arm.preset][:2])


def cell(arm: Arm | None, task: tuple, readout: str) -> Cell:
    name, kind, floor, options_floor, before = task
    generated = readout == "generation"
    floor = floor if generated else options_floor
    before = max(before, floor)
    stuck = name in AT_CHANCE
    lost = 0.0 if arm is None else damage(arm)[kind == "parametric"] * (not stuck)
    score = floor + (before - floor) * (1 - lost)
    low, high = max(0.0, score - 0.12), min(1.0, score + 0.12)
    undefined = arm is not None and arm.name == UNDEFINED_ARM and name == "gsm8k"
    examples = {"n": 40, "n_of": "examples"}
    test = "paired bootstrap over examples; McNemar exact"
    return Cell(
        arm=INTACT if arm is None else arm.name,
        task=name,
        kind=kind,
        readout=readout,
        floor=floor,
        score=NAN if undefined else estimate(score, low=low, high=high, null=floor, **examples),
        legacy_score=(
            estimate(min(1.0, score + 0.05), 0.1, **examples)
            if name in ("passkey_128_6", "cities", "gsm8k")
            else NAN
        ),
        change=estimate(
            score - before,
            0.08,
            null=0.0,
            p_value=math.nan if arm is None else 0.0321,
            test=test,
            **examples,
        ),
        lost_share=math.nan if stuck else lost,
        smallest_difference=0.325 if name != "gsm8k" else math.inf,
        logit_diff=NAN if options_floor is None else estimate(3.1 * (1 - lost), 0.4, **examples),
        failed_extraction=0.075 if generated else math.nan,
        distinct_2=estimate(0.87 - 0.3 * lost, 0.05, n_of="texts") if generated else NAN,
        distinct_loss=estimate(0.3 * lost, 0.05, n_of="texts") if generated else NAN,
        repetition=estimate(0.03 + 0.4 * lost, 0.02, n_of="texts") if generated else NAN,
        n_edits=0 if arm is None else 4320 * arm.k,
    )


def contrast(arm: Arm, readout: str) -> ArmContrast:
    """By options no parametric task is above chance before the edit."""
    context, memory = damage(arm)
    generated = readout == "generation"
    control = f"effect_matched k={arm.k} seed=0" if arm.preset != "effect_matched" else None
    examples = {"n": 80, "n_of": "examples", "null": 0.0}
    examples["p_value"] = 0.214
    examples["test"] = "percentile bootstrap over examples within tasks"
    return ArmContrast(
        arm=arm.name,
        readout=readout,
        contextual_tasks=("passkey_128_6", "pairs_open_book"),
        parametric_tasks=("pairs_closed_book",) if generated else (),
        contextual_loss=estimate(context, 0.11, **examples),
        parametric_loss=estimate(memory, 0.13, **examples) if generated else NAN,
        contrast=estimate(context - memory, 0.15, **examples) if generated else NAN,
        control=control,
        beyond_control=estimate(0.07, 0.12, **examples) if generated and control else NAN,
    )


def effects(shown: tuple[Arm, ...]) -> EffectsResult:
    n_prompts = 4
    spread = torch.linspace(-0.02, 0.02, n_prompts)
    sink = torch.empty(1 + len(shown), n_prompts, N_LAYERS)
    moved, loss = torch.zeros_like(sink), torch.empty(1 + len(shown), n_prompts)
    sink[0], loss[0] = INTACT_SINK + spread[:, None], 3.2 + 5 * spread
    for row, arm in enumerate(shown, start=1):
        dose = KS.index(arm.k) / (len(KS) - 1)
        context, _ = damage(arm)
        end = DAMAGE[arm.preset][2]
        sink[row] = INTACT_SINK + dose * (end - INTACT_SINK) + spread[:, None]
        moved[row] = 0.9 * dose * (INTACT_SINK - end) + 0.01 + spread[:, None].abs()
        loss[row] = loss[0] + 2.4 * context**2 + 3 * spread
        if arm.name == UNDEFINED_ARM:
            loss[row] = torch.nan
    return EffectsResult(
        arms=(INTACT, *(arm.name for arm in shown)),
        sink_mass=sink,
        attention_kl=moved,
        cross_entropy=loss,
        layers=tuple(range(N_LAYERS)),
        strengths={arm.name: arm.strength for arm in shown},
        provenance=provenance(),
    )


def disruption_result(*, model: str | None = None, ks: tuple[int, ...] = KS) -> DisruptionResult:
    """Six presets, one of them with two seeds, on two kinds of tasks; `cities` is at chance."""
    shown = tuple(arm for arm in arms() if arm.k in ks)
    readouts = ("generation", "options")
    return DisruptionResult(
        arms=shown,
        cells=tuple(
            cell(arm, task, readout)
            for arm in (None, *shown)
            for task in TASKS
            for readout in readouts
            if readout == "generation" or task[3] is not None
        ),
        contrasts=tuple(contrast(arm, readout) for readout in readouts for arm in shown),
        effects=effects(shown),
        config=DisruptionConfig(),
        provenance=provenance() if model is None else provenance(model),
        comparisons=tuple(
            comparison(arm, control, n_seeds, task[0], readout)
            for readout in readouts
            for arm in shown
            if arm.role == "treatment"
            for control, n_seeds in ((INTACT, 1), (f"random k={arm.k}", 2))
            for task in TASKS
            if readout == "generation" or task[3] is not None
        ),
    )


def comparison(arm: Arm, control: str, n_seeds: int, task: str, readout: str) -> ControlComparison:
    examples = {"n": 40, "n_of": "examples", "null": 0.0, "p_value": 0.0421}
    gap = damage(arm)[0] / (2 if n_seeds > 1 else 1)
    return ControlComparison(
        arm=arm.name,
        control=control,
        n_seeds=n_seeds,
        task=task,
        readout=readout,
        score=estimate(gap, 0.1, **examples),
        logit_diff=estimate(3 * gap, 0.4, **examples) if readout == "options" else NAN,
    )
