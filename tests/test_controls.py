"""A control is named by its one arm, or by what its seeds share and how many they are."""

import pytest

from mi_massive.controls import behind_label, control_label

SEEDS = tuple(f"effect_matched k=4 seed={seed}" for seed in range(12))
ARMS = ("paper k=4", "effect_matched k=40 seed=0", *SEEDS)


@pytest.mark.parametrize(
    ("names", "label"),
    [
        ((), None),
        (("norm_matched k=4",), "norm_matched k=4"),
        (SEEDS[:1], "effect_matched k=4 seed=0"),
        (SEEDS, "effect_matched k=4 (12 seeds)"),
    ],
)
def test_a_label_names_its_arms_and_leads_back_to_them(names, label):
    assert control_label(names) == label
    assert behind_label(label, (*ARMS, "norm_matched k=4")) == names
