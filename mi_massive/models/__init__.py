"""Language models with named hook points, from every source that users have."""

import importlib
from typing import TYPE_CHECKING, Any

from mi_massive.models.errors import UnsupportedModelError

if TYPE_CHECKING:
    from mi_massive.models.base import HookedModel
    from mi_massive.models.compression import quantize
    from mi_massive.models.load import load_model
    from mi_massive.models.shapes import SHAPES, build_shape

# Loaded at first use: the list of built-in models and families needs no transformers.
_HOME = {
    "HookedModel": "base",
    "SHAPES": "shapes",
    "build_shape": "shapes",
    "load_model": "load",
    "quantize": "compression",
}

__all__ = [
    "SHAPES",
    "HookedModel",
    "UnsupportedModelError",
    "build_shape",
    "load_model",
    "quantize",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'mi_massive.models' has no attribute {name!r}")
    return getattr(importlib.import_module(f"mi_massive.models.{_HOME[name]}"), name)
