"""Top contexts of the features a study reports."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from neurollm import datasets
from neurollm.files import sha256_json

if TYPE_CHECKING:
    from neurollm.activations import Context, Corpus, FeatureIndex
    from neurollm.pipelines.study import Study

RESTING_STATE = "resting_state"


def read_corpora(study: Study) -> dict[str, Corpus]:
    """The sources of contexts by name, in the order of the pipeline file.

    Raises
    ------
    InvalidInput
        If a file is missing or holds no text.
    """
    from neurollm.activations import Corpus

    def read(name: str) -> Corpus:
        if name == RESTING_STATE:
            return Corpus.read(datasets.demo_corpus_path())
        if name == "stimuli":
            table = study.stimuli.table
            return Corpus(list(zip(table["stimulus_id"], table["text"], strict=True)), study.stimuli.name)
        return Corpus.read(study.project.path(name))

    return {name: read(name) for name in study.pipeline.analyses.contexts.corpus}


def collect_contexts(study: Study) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Contexts of the most significant features of each contrast, as written to ``contexts.json``.

    One pass over a corpus serves all features; its index is kept under ``stores/`` and
    shared by every study with the same model, dictionary and corpus.
    """
    indices = {source.replace("_", " "): _index(study, corpus) for source, corpus in read_corpora(study).items()}
    top = study.pipeline.analyses.contexts.top
    return {
        name: {
            str(feature): [
                _record(source, context)
                for source, index in indices.items()
                for context in index.top_contexts(int(feature), top)
            ]
            for feature in result.feature[result.strongest(study.pipeline.report.top)]
        }
        for name, result in study.results.items()
    }


def _index(study: Study, corpus: Corpus) -> FeatureIndex:
    from neurollm.activations import FeatureIndex

    key = sha256_json([study.model.fingerprint, str(study.model.dtype), study.dictionary.fingerprint, corpus.sha256])
    folder = study.project.stores / f"index-{key[:16]}"
    return FeatureIndex.build(study.model, study.dictionary, corpus, folder, verbose=study.verbose)


def _record(source: str, context: Context) -> dict[str, Any]:
    return {
        "document": context.document,
        "source": source,
        "activation": float(context.activation),
        "peak": int(context.peak),
        "tokens": [[text, float(value)] for text, value in context.tokens],
    }
