"""Which class a text is of, read from its features and judged on items that were not looked at."""

from neurollm.decoding.baselines import Baselines, baselines
from neurollm.decoding.decoder import Decoder
from neurollm.decoding.direction import check_direction
from neurollm.decoding.generalisation import GeneralisationMatrix, generalisation_matrix
from neurollm.decoding.permutation import DependenceTest
from neurollm.decoding.selectors import SELECTORS, select
from neurollm.decoding.separability import Separability, separability
from neurollm.decoding.transfer import CorpusTransfer, corpus_transfer

__all__ = [
    "SELECTORS",
    "Baselines",
    "CorpusTransfer",
    "Decoder",
    "DependenceTest",
    "GeneralisationMatrix",
    "Separability",
    "baselines",
    "check_direction",
    "corpus_transfer",
    "generalisation_matrix",
    "select",
    "separability",
]
