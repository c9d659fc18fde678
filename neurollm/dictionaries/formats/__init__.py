"""Dictionaries on disk: our own layout, and those of the field."""

from neurollm.dictionaries.formats.loading import load_dictionary
from neurollm.dictionaries.formats.saelens import write_saelens
from neurollm.dictionaries.formats.sparsify import save_sparsify

__all__ = ["load_dictionary", "save_sparsify", "write_saelens"]
