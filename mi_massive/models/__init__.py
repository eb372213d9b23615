"""Language models with named hook points, from every source that users have."""

from mi_massive.models.base import HookedModel
from mi_massive.models.errors import UnsupportedModelError
from mi_massive.models.load import load_model

__all__ = ["HookedModel", "UnsupportedModelError", "load_model"]
