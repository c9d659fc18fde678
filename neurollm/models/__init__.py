"""Language models: loading, sites inside them, and running a text up to a site."""

from neurollm.models.forward import intervene, iter_activations, plan_batches, probe_site, run_site
from neurollm.models.loading import LanguageModel, has_fast_bfloat16, load_model
from neurollm.models.site import Site
from neurollm.models.tokens import TokenizedText, tokenize

__all__ = [
    "LanguageModel",
    "Site",
    "TokenizedText",
    "has_fast_bfloat16",
    "intervene",
    "iter_activations",
    "load_model",
    "plan_batches",
    "probe_site",
    "run_site",
    "tokenize",
]
