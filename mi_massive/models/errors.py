"""The one error type for a model that exists but that this package cannot serve."""


class UnsupportedModelError(ValueError):
    """A model was found, and it cannot be analysed as it is.

    The message says what was found and what is needed instead, in one sentence.
    """
