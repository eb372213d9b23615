"""How weights are rounded: method, bits and groups, and round to nearest as a plain definition.

Answers what a quantized model is, in numbers that a cache and a record can hold. Costs nothing.
Does not show what rounding costs a model: see `mi_massive.quantization`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from mi_massive._checks import require_in_range

Method = Literal["rtn", "gptq", "awq", "smoothquant"]
METHODS: Final[tuple[Method, ...]] = get_args(Method)
"""Round to nearest; GPTQ (Frantar et al. 2022, arXiv:2210.17323), which corrects later columns for
the error of earlier ones; AWQ (Lin et al. 2023, arXiv:2306.00978), which scales the columns that
meet large activations before rounding; SmoothQuant (Xiao et al. 2022, arXiv:2211.10438), which
moves the outliers of activations into weights and rounds both."""

PROTECTING: Final[tuple[Method, ...]] = ("awq", "smoothquant")
"""Those that the paper says protect massive values: they look for channels of large activations."""

SCALE_BITS: Final = 16
"""Bits counted for a stored scale, and for a weight kept at full precision."""

WITH_ACTIVATIONS: Final = ("rtn", "smoothquant")
"""Those that can round activations."""
_ACTIVATION_BITS: Final = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizationScheme:
    """One way of rounding the weights of all linear layers but the language-modelling head.

    Weights alone are rounded asymmetrically in groups of `group` inputs of an output; with
    activations they are rounded symmetrically, one scale an output, and each token's activations
    with one scale when they occur.
    """

    method: str
    """One of `METHODS`."""
    bits: int = 4
    """Of a weight."""
    group: int | None = 64
    """Inputs that share a scale; None: all of an output, as always with activations."""
    activation_bits: int | None = None
    """Of the inputs of a linear layer; None leaves them as they are."""
    n_calibration: int = 0
    """Windows of text that the method saw; 0 for round to nearest."""
    calibration_length: int = 0
    """Tokens of each."""
    seed: int = 0
    """Of the windows drawn."""

    def __post_init__(self) -> None:
        """Refuse what no method does."""
        if self.method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, got {self.method!r}")
        if self.activation_bits is not None:
            if self.method not in WITH_ACTIVATIONS:
                raise ValueError(
                    f"activation_bits must be None for {self.method}, got {self.activation_bits}; "
                    f"{' and '.join(WITH_ACTIVATIONS)} round activations"
                )
            if (self.bits, self.activation_bits) != (_ACTIVATION_BITS, _ACTIVATION_BITS):
                raise ValueError(
                    f"bits must be {_ACTIVATION_BITS} for weights and activations together, got "
                    f"{self.bits} and {self.activation_bits}"
                )
        elif self.method == "smoothquant":
            raise ValueError(
                "activation_bits must be 8 for smoothquant, which rounds activations, got None"
            )
        require_in_range("bits", self.bits, low=2, high=8, unit="bits of a weight")
        if self.group is not None:
            require_in_range("group", self.group, low=1, high=1 << 16, unit="inputs of a group")

    @property
    def calibrates(self) -> bool:
        """True if the method looks at text."""
        return self.method != "rtn"

    @property
    def label(self) -> str:
        """Short name, such as `awq w4 g64` or `smoothquant w8a8`."""
        return f"{self.method} {self.level}"

    @property
    def level(self) -> str:
        """Bits and groups, such as `w4 g64` or `w8a8`: methods at one level store equally much."""
        if self.activation_bits is not None:
            return f"w{self.bits}a{self.activation_bits}"
        return f"w{self.bits}" + (f" g{self.group}" if self.group else "")

    @property
    def name(self) -> str:
        """The label, with the seed of the windows where the method looks at text."""
        return self.label + (f" seed={self.seed}" if self.calibrates else "")

    @property
    def protects(self) -> bool:
        """True if the method scales what meets large activations before it rounds."""
        return self.method in PROTECTING

    @property
    def statement(self) -> str:
        """What happened to the weights, in words."""
        how = f"in groups of {self.group}" if self.group else "with one scale an output"
        with_text = (
            f", from {self.n_calibration} windows of {self.calibration_length} tokens (seed "
            f"{self.seed})"
            if self.calibrates
            else ""
        )
        activations = (
            ""
            if self.activation_bits is None
            else f" and activations to {self.activation_bits} bits"
        )
        return (
            f"weights were quantized by {self.method} to {self.bits} bits{activations} "
            f"{how}{with_text}, all linear layers but the head"
        )

    def bits_per_weight(self, n_inputs: int) -> float:
        """Stored bits of a weight in a layer of `n_inputs`, with its share of scale and zero."""
        shared = self.group or n_inputs
        zero = 0 if self.activation_bits is not None or self.group is None else self.bits
        return self.bits + (SCALE_BITS + zero) / shared


def make_schemes(
    methods: Sequence[str],
    *,
    bits: int = 4,
    group: int = 64,
    activation_bits: int | None = None,
    seeds: Sequence[int] = (0,),
    n_calibration: int = 16,
    calibration_length: int = 256,
) -> tuple[QuantizationScheme, ...]:
    """One scheme a method and seed at equal bits; round to nearest, which draws nothing, once.

    Args:
        methods: Keys of `METHODS`.
        bits: Of a weight.
        group: Inputs that share a scale; not used with activations.
        activation_bits: 8 rounds activations too.
        seeds: Of the calibration windows.
        n_calibration: Windows.
        calibration_length: Tokens of a window.

    Raises:
        ValueError: If a method does not take the bits (see `QuantizationScheme`).
    """
    made: list[QuantizationScheme] = []
    for method in methods:
        drawn = method != "rtn"
        made += [
            QuantizationScheme(
                method=method,
                bits=bits,
                group=None if activation_bits is not None else group,
                activation_bits=activation_bits,
                n_calibration=n_calibration if drawn else 0,
                calibration_length=calibration_length if drawn else 0,
                seed=seed,
            )
            for seed in (seeds if drawn else (0,))
        ]
    return tuple(made)


def round_to_nearest(
    weight: Float[Tensor, "output input"], *, bits: int, group: int
) -> Float[Tensor, "output input"]:
    """Round weights to 2 ** bits evenly spaced values in each group of inputs of an output.

        scale = (max(w, 0) - min(w, 0)) / (2 ** bits - 1)
        zero = round(-min(w, 0) / scale)
        rounded = (clamp(round(w / scale) + zero, 0, 2 ** bits - 1) - zero) * scale

    with max and min over the group; zero itself is always one of the values. A group of zeros
    stays zero.

    Args:
        weight: Of a linear layer.
        bits: Of a weight.
        group: Inputs that share scale and zero.

    Raises:
        ValueError: If `bits` is not between 2 and 8 or `group` does not divide the inputs.
    """
    require_in_range("bits", bits, low=2, high=8, unit="bits of a weight")
    require_divides(group, weight.shape[1], "the weight")
    grouped: Tensor = weight.reshape(len(weight), -1, group)
    low = grouped.amin(dim=-1, keepdim=True).clamp_max(0)
    high = grouped.amax(dim=-1, keepdim=True).clamp_min(0)
    levels = 2**bits - 1
    scale = (high - low) / levels
    scale = torch.where(scale == 0, torch.finfo(scale.dtype).eps, scale)
    middle = 2 ** (bits - 1)  # counted from the middle, as stored: ties round to even there
    zero = (-middle - low / scale).clamp(-middle, middle - 1).round()
    counted = (grouped / scale + zero).clamp(-middle, middle - 1).round()
    return ((counted - zero) * scale).flatten(1)


def require_divides(group: int, n_inputs: int, where: str) -> None:
    """Raise ValueError unless inputs fall into whole groups.

    Raises:
        ValueError: If they do not, with the largest group up to `group` that does.
    """
    if group < 1 or n_inputs % group:
        fitting = max(size for size in range(1, max(1, group) + 1) if n_inputs % size == 0)
        raise ValueError(
            f"group must divide the {n_inputs} inputs of {where}, got {group}; {fitting} does"
        )


def method_names(groups: Sequence[Sequence[str]]) -> list[str]:
    """The method of each group of schemes that differ in their seed, from the schemes' names."""
    return [names[0].partition(" ")[0] for names in groups]
