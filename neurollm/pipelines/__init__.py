"""Pipeline files: their schema, and running one study from stimuli to report."""

from neurollm.pipelines.check import check_pipeline
from neurollm.pipelines.overview import list_studies
from neurollm.pipelines.project import Project, new_project
from neurollm.pipelines.runner import run_pipeline
from neurollm.pipelines.schema import Pipeline, TrainingFile, read_pipeline

__all__ = [
    "Pipeline",
    "Project",
    "TrainingFile",
    "check_pipeline",
    "list_studies",
    "new_project",
    "read_pipeline",
    "run_pipeline",
]
