"""Slow plain definitions that the tests compare the package with. One heading an idea."""

import cmath
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from builders import build_geometry, build_norms
from safetensors.torch import load_file

from mi_massive.norms import AttentionNorms

# --- bands and symmetry: plain loops over single heads ---------------------------------------


GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "reference"

needs_golden = pytest.mark.skipif(
    not GOLDEN.is_dir(),
    reason="the authors' Llama-2 tensors are no part of the repository: ../shared/reference absent",
)


def golden_norms() -> AttentionNorms:
    """Norms of Llama-2-7b-chat, 0-based layer 9, from the authors' rotated tensors."""
    tensors = load_file(GOLDEN / "llama2_7b_chat_layer9.safetensors")
    geometry = build_geometry(1, 32, 128, training_context=4096, blocks=(9,))
    q, k, v = (tensors[name].float()[:, :, None] for name in ("q", "k", "v"))
    return build_norms(q, k, v, geometry=geometry)


def turned(x: float, y: float, angle: float) -> tuple[float, float]:
    """The plane vector (x, y) turned anticlockwise, by complex multiplication."""
    z = complex(x, y) * cmath.exp(1j * angle)
    return z.real, z.imag


def members(pair: int, n_pairs: int, layout: str) -> tuple[int, int]:
    return (pair, pair + n_pairs) if layout == "half_split" else (2 * pair, 2 * pair + 1)


def energy_shares(norms: list[float], n_pairs: int, layout: str) -> list[float]:
    """Share of each pair in the energy of the rotating dimensions of one head."""
    energy = []
    for pair in range(n_pairs):
        first, second = members(pair, n_pairs, layout)
        energy.append(norms[first] ** 2 + norms[second] ** 2)
    return [e / sum(energy) if sum(energy) else math.nan for e in energy]


def low_half(shares: list[float]) -> float:
    """Sum over the slower half of the pairs; a middle pair counts half."""
    n = len(shares)
    if n % 2:
        return sum(shares[n // 2 + 1 :]) + shares[n // 2] / 2
    return sum(shares[n // 2 :])


def ranks(values: list[float]) -> list[float]:
    """Ranks from 1; equal values share the mean of their ranks."""
    return [
        sum(other < value for other in values) + (sum(other == value for other in values) + 1) / 2
        for value in values
    ]


def spearman(first: list[float], second: list[float]) -> float:
    a, b = ranks(first), ranks(second)
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    product = sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))
    size = math.sqrt(sum((x - mean_a) ** 2 for x in a) * sum((y - mean_b) ** 2 for y in b))
    return product / size if size else math.nan


def clusters(massive: list[int], max_gap: int) -> list[list[int]]:
    """Massive dimensions in groups: a step of more than `max_gap` begins a new one."""
    found: list[list[int]] = []
    for dim in sorted(massive):
        if found and dim - found[-1][-1] <= max_gap:
            found[-1].append(dim)
        else:
            found.append([dim])
    return found


def two_mirror_clusters(massive: list[int], n_pairs: int, max_gap: int) -> bool:
    """Exactly two clusters; in half_split, partners of the one's span meet the other's span."""
    found = clusters(massive, max_gap)
    if len(found) != 2:
        return False
    one, two = (set(range(group[0], group[-1] + 1)) for group in found)
    partners = {d + n_pairs for d in one if d < n_pairs}
    partners |= {d - n_pairs for d in one if n_pairs <= d < 2 * n_pairs}
    return bool(partners & two)


def permuted_p(tables: list[list[list[float]]]) -> float:
    """Share of all permutations, one for all tables, whose summed traces reach the observed sum."""
    n = len(tables[0])
    sums = [
        sum(table[row][column] for table in tables for row, column in enumerate(columns))
        for columns in itertools.permutations(range(n))
    ]
    return sum(total >= sums[0] - 1e-9 for total in sums) / len(sums)


def shifted_p(tables: list[list[list[float]]]) -> float:
    """The same over all circular shifts of the columns, one for all tables."""
    n = len(tables[0])
    sums = [
        sum(table[row][(row + shift) % n] for table in tables for row in range(n))
        for shift in range(n)
    ]
    return sum(total >= sums[0] - 1e-9 for total in sums) / n


def phase_offset(
    q: list[list[float]], k: list[list[float]], inv_freq: list[float], layout: str
) -> tuple[float, int]:
    """phase(q) - phase(k) of one head in rad and the pair it is read in, from rotated activations.

    q and k hold one row of d_head activations a token, from position 0; the first token counts for
    the choice of the pair and not for the phase.
    """
    products = []
    for pair in range(len(inv_freq)):
        dims = members(pair, len(inv_freq), layout)
        energies = [sum(row[d] ** 2 for row in rows for d in dims) for rows in (q, k)]
        products.append(energies[0] * energies[1])
    pair = products.index(max(products))
    first, second = members(pair, len(inv_freq), layout)
    sums = []
    for rows in (q, k):
        units = []
        for position, row in enumerate(rows):
            z = complex(row[first], row[second]) * cmath.exp(-1j * position * inv_freq[pair])
            units.append(z / abs(z))
        sums.append(sum(units[1:]))
    return cmath.phase(sums[0] / sums[1]), pair


# --- statistics and concentration: sums and pairs written out --------------------------------


def massive(norms: list[float], ratio: float) -> list[bool]:
    return [norm > ratio * sum(norms) / len(norms) for norm in norms]


def gini(values: list[float]) -> float:
    """Mean absolute difference of all ordered pairs over twice the mean."""
    n = len(values)
    differences = sum(abs(x - y) for x in values for y in values)
    return differences / (2 * n * sum(values)) if sum(values) else math.nan


def excess_kurtosis(values: list[float]) -> float:
    mean = sum(values) / len(values)
    second = sum((x - mean) ** 2 for x in values) / len(values)
    fourth = sum((x - mean) ** 4 for x in values) / len(values)
    return fourth / second**2 - 3 if second else math.nan


def position(d: int, d_head: int, n_pairs: int | None, layout: str = "half_split") -> int:
    """Rotary pair of a dimension; dimensions without rotation follow, or stand for themselves."""
    if n_pairs is None:
        return d
    for pair in range(n_pairs):
        if d in members(pair, n_pairs, layout):
            return pair
    return n_pairs + (d - 2 * n_pairs)


def closeness(tops: list[int], others: list[int] | None, places: list[int]) -> float:
    """1 - mean distance of the tops (all pairs of two heads) / mean distance of any two dims."""
    if others is None:
        pairs = [(tops[i], tops[j]) for i in range(len(tops)) for j in range(i)]
    else:
        pairs = [(a, b) for a in tops for b in others]
    distance = sum(abs(places[a] - places[b]) for a, b in pairs) / len(pairs)
    chance = sum(abs(x - y) for x in places for y in places) / len(places) ** 2
    return 1 - distance / chance


def sign_flip_p(differences: list[float]) -> float:
    """Share of all sign patterns whose mean is at least the one observed."""
    patterns = list(itertools.product((1, -1), repeat=len(differences)))
    sums = [sum(s * d for s, d in zip(p, differences, strict=True)) for p in patterns]
    return sum(total >= sum(differences) - 1e-12 for total in sums) / len(patterns)


def holm(p_values: list[float]) -> list[float]:
    """Step down: the k-th smallest p times (m - k), never below the one before, at most 1."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    corrected, largest = [0.0] * len(p_values), 0.0
    for k, index in enumerate(order):
        largest = max(largest, min(1.0, p_values[index] * (len(p_values) - k)))
        corrected[index] = largest
    return corrected


# --- interventions: one head, one number at a time -------------------------------------------


def ranked(norms: list[float]) -> list[int]:
    """Units from the largest norm down; equal norms: the lower index first."""
    return sorted(range(len(norms)), key=lambda unit: (-norms[unit], unit))


def largest(norms: list[float], k: int) -> set[int]:
    return set(ranked(norms)[:k])


def chosen_units(
    norms: list[float], rule: str, k: int, *, draws: list[float], bands: list[int]
) -> set[int]:
    """Units that a rule takes in one head, each with a draw and a frequency band."""
    order = ranked(norms)
    if rule == "largest":
        return set(order[:k])
    if rule == "smallest":
        return set(sorted(range(len(norms)), key=lambda unit: (norms[unit], unit))[:k])
    if rule == "norm_matched":
        return set(order[k : 2 * k])
    left = sorted(order[k:])
    if rule == "random":
        return set(sorted(left, key=lambda unit: (-draws[unit], unit))[:k])
    assert rule == "same_band"
    found: set[int] = set()
    for top in order[:k]:
        free = [unit for unit in left if unit not in found]
        nearest = min(abs(bands[unit] - bands[top]) for unit in free)
        near = [unit for unit in free if abs(bands[unit] - bands[top]) == nearest]
        found.add(max(near, key=lambda unit: (draws[unit], -unit)))
    return found


def frequency_bands(pairs: list[int | None], n_bands: int) -> list[int]:
    """Equally many pairs a band; what does not rotate (None) is one more, slower than the last."""
    n_pairs = len({pair for pair in pairs if pair is not None})
    return [n_bands if pair is None else pair * n_bands // n_pairs for pair in pairs]


def norms_of(rows: list[list[float]], tokens: list[bool]) -> list[float]:
    """L2 norm over the tokens of each dimension; rows[pos][d]."""
    kept = [row for row, real in zip(rows, tokens, strict=True) if real]
    return [math.sqrt(sum(row[d] ** 2 for row in kept)) for d in range(len(rows[0]))]


def replaced_rows(
    rows: list[list[float]],
    tokens: list[bool],
    chosen: set[int],
    kind: str,
    *,
    strength: float = 1.0,
    seed: int = 0,
    donor: list[list[float]] | None = None,
    dataset_mean: list[float] | None = None,
) -> list[list[float]]:
    """One head of one prompt, rows[pos][d], with its chosen dimensions replaced at its tokens."""
    real = [position for position, is_real in enumerate(tokens) if is_real]
    order = np.random.default_rng([seed, len(real)]).permutation(len(real)).tolist()

    def mean(positions: list[int], d: int) -> float:
        return sum(rows[position][d] for position in positions) / max(len(positions), 1)

    def replacement(place: int, d: int) -> float:
        match kind:
            case "zero":
                return 0.0
            case "mean":
                return mean(real, d)
            case "mean_after_first":
                return mean(real[1:], d)
            case "joint_mean":
                return sum(mean(real, other) for other in chosen) / len(chosen)
            case "shuffled":
                return rows[real[order[place]]][d]
            case "resampled":
                assert donor is not None
                return donor[0 if place == 0 else 1 + (place - 1) % (len(donor) - 1)][d]
            case _:
                assert dataset_mean is not None
                return dataset_mean[d]

    edited = [list(row) for row in rows]
    for place, position in enumerate(real):
        for d in chosen:
            old = rows[position][d]
            edited[position][d] = old + strength * (replacement(place, d) - old)
    return edited
