"""Measure, break, patch, explain and re-test concentrated massive values in attention queries and keys."""

from jaxtyping import install_import_hook

_CHECKER = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
install_import_hook("mi_massive", _CHECKER)
