"""Top contexts of the features a study reports."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from neurollm import datasets
from neurollm.files import sha256_json
from neurollm.pipelines.project import Project
from neurollm.pipelines.schema import Pipeline

if TYPE_CHECKING:
    from neurollm.activations import Corpus
    from neurollm.pipelines.study import Study

RESTING_STATE = "resting_state"


def corpus_of(names: list[str], project: Project, pipeline: Pipeline) -> Corpus:
    """One corpus of all the sources, each document named ``source/name``."""
    from neurollm.activations import Corpus

    documents = []
    for name in names:
        path = {
            RESTING_STATE: datasets.demo_corpus_path(),
            "stimuli": project.path(pipeline.stimuli),
        }.get(name, project.path(name))
        documents += [(f"{name}/{document}", text) for document, text in Corpus.read(path).documents]
    return Corpus(documents)


def collect_contexts(study: Study) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Contexts of the most significant features of each contrast, as written to ``contexts.json``.

    One pass over the corpus serves all features; its index is kept under ``stores/`` and
    shared by every study with the same model, dictionary and corpus.
    """
    from neurollm.activations import FeatureIndex

    part = study.pipeline.analyses.contexts
    corpus = corpus_of(part.corpus, study.project, study.pipeline)
    key = sha256_json([study.model.describe(), study.dictionary.fingerprint, corpus.sha256])
    index = FeatureIndex.build(
        study.model, study.dictionary, corpus, study.project.stores / f"index-{key[:16]}", verbose=study.verbose
    )
    return {
        name: {
            str(feature): [_record(context) for context in index.top_contexts(int(feature), part.top)]
            for feature in result.feature[result.strongest(study.pipeline.report.top)]
        }
        for name, result in study.results.items()
    }


def _record(context: Any) -> dict[str, Any]:
    source, _, document = context.document.partition("/")
    return {
        "document": document,
        "source": "resting state" if source == RESTING_STATE else source,
        "activation": float(context.activation),
        "peak": int(context.peak),
        "tokens": [[text, float(value)] for text, value in context.tokens],
    }
