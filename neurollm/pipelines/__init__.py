"""Pipeline, training and sweep files: their schema, and running them."""

from neurollm.pipelines.check import check_pipeline
from neurollm.pipelines.factorial_schema import FactorialFile
from neurollm.pipelines.grid_schema import MethodGrid
from neurollm.pipelines.overview import list_studies
from neurollm.pipelines.project import Project, new_project
from neurollm.pipelines.runner import run_pipeline
from neurollm.pipelines.schema import Pipeline, SweepFile, TrainingFile, read_pipeline
from neurollm.pipelines.training import run_sweep, run_training

__all__ = [
    "FactorialFile",
    "MethodGrid",
    "Pipeline",
    "Project",
    "SweepFile",
    "TrainingFile",
    "check_pipeline",
    "list_studies",
    "new_project",
    "read_pipeline",
    "run_pipeline",
    "run_sweep",
    "run_training",
]
