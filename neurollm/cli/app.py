"""Commands. Each is a few lines around the Python function of the same purpose."""

from __future__ import annotations

import logging
import shlex
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from neurollm._version import __version__
from neurollm.errors import InvalidInput, NeurollmError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Study a language model the way cognitive neuroscience studies a brain.",
)
Verbosity = Annotated[int, typer.Option("--verbose", "-v", help="0 shows no progress.")]


class _Interrupted(NeurollmError):
    exit_code = 130


def main() -> None:
    """Entry point: known errors become one sentence and their exit code."""
    _log_to_stderr()
    signal.signal(signal.SIGINT, _interrupt)
    try:
        app()
    except NeurollmError as error:
        _fail(str(error), error.exit_code)
    except OSError as error:
        _fail(f"{error.filename or 'a file'}: {error.strerror or error}", 3)
    except MemoryError:
        _fail("this needs more memory than there is; use fewer features, a smaller model or a larger machine", 3)


def _interrupt(_signal: int, _frame: object) -> None:
    raise _Interrupted("interrupted; the same command goes on where it stopped")


def _fail(sentence: str, code: int) -> None:
    sys.stderr.write(f"neurollm: {sentence}\n")
    sys.exit(code)


def _log_to_stderr() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("neurollm")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"neurollm {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show it.")] = False,
) -> None:
    """Study a language model the way cognitive neuroscience studies a brain."""


@app.command()
def new(name: Annotated[Path, typer.Argument(help="Folder to create.")]) -> None:
    """Create a project: stimuli, designs, pipelines, dictionaries, reports, with working examples."""
    from neurollm.pipelines import new_project

    project = new_project(name)
    typer.echo(f"created {project.root}\nnext: neurollm run {shlex.quote(str(name / 'pipelines' / 'success.yaml'))}")


@app.command()
def check(pipeline: Annotated[Path, typer.Argument(help="Pipeline file.")]) -> None:
    """Validate a study of any kind without computing it: cells, contrasts, shufflings, power, stimulus audit."""
    from neurollm.pipelines import check_pipeline

    typer.echo(check_pipeline(pipeline))


@app.command()
def run(
    pipeline: Annotated[Path, typer.Argument(help="Pipeline file.")],
    n_jobs: Annotated[int, typer.Option(help="Processes of a method grid or of decoding; -1: one per core.")] = 1,
    verbose: Verbosity = 1,
) -> None:
    """Run a study of any kind, or what of it is not up to date."""
    from neurollm.pipelines import run_pipeline

    result = run_pipeline(pipeline, verbose=verbose, n_jobs=n_jobs)
    if not result.computed:
        typer.echo("nothing to do: every step is up to date")
    for verdict in result.verdicts:
        typer.echo(verdict)
    typer.echo(f"report: {_short(result.report)}")


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="Results of a study of any kind; dictionaries, or a sweep.")],
    top: Annotated[
        int | None, typer.Option(min=1, max=500, help="Features in the table of each contrast; default: as in the run.")
    ] = None,
) -> None:
    """Build report.html again from saved results alone."""
    from neurollm.pipelines import read_pipeline
    from neurollm.reporting import build_dictionary_report, build_report, holds_dictionaries
    from neurollm.reporting.factorial import build_factorial_report
    from neurollm.reporting.factorial_results import holds_factorial
    from neurollm.reporting.grid import build_grid_report, holds_grid

    others = (
        (holds_dictionaries, "dictionaries", build_dictionary_report),
        (holds_grid, "a method grid", build_grid_report),
        (holds_factorial, "a factorial study", build_factorial_report),
    )
    for holds, what, build in others:
        if holds(folder):
            if top is not None:
                raise InvalidInput(f"{folder} holds {what}; --top is for the contrasts of a study")
            typer.echo(f"report: {_short(build(folder))}")
            return
    if top is None and (folder / "config.yaml").is_file():
        top = read_pipeline(folder / "config.yaml").report.top
    typer.echo(f"report: {_short(build_report(folder, **({} if top is None else {'top': top})))}")


@app.command(name="list")
def list_project(folder: Annotated[Path, typer.Argument(help="Project folder.")] = Path()) -> None:
    """List the studies of a project, and what came out."""
    from neurollm.pipelines import list_studies

    typer.echo(list_studies(folder))


@app.command()
def harvest(
    corpus: Annotated[Path, typer.Argument(help="Text: .jsonl (name, text), .txt, or a stimulus .tsv.")],
    out: Annotated[Path, typer.Option(help="Folder of the activation store.")],
    layer: Annotated[int, typer.Option(min=0, help="Block, counted from 0.")],
    model: Annotated[str, typer.Option(help="demo, minilm, a folder or a hub name.")] = "demo",
    stream: Annotated[str, typer.Option(help="resid_post, resid_pre, mlp_out, attn_out or mlp_in.")] = "resid_post",
    tokens_per_shard: Annotated[int, typer.Option(min=1, help="Rows per file.")] = 262_144,
    verbose: Verbosity = 1,
) -> None:
    """Run a corpus through a model and keep the activations at one site on disk; resumes."""
    from neurollm.activations import Corpus
    from neurollm.activations import harvest as harvest_corpus
    from neurollm.models import Site, load_model

    site = Site(layer, stream)
    documents = Corpus.read(corpus)
    store = harvest_corpus(load_model(model), documents, site, out, tokens_per_shard=tokens_per_shard, verbose=verbose)
    typer.echo(f"{store.n_rows:,} rows of {store.d} values at {store.site}: {_short(out)}")


@app.command()
def train(file: Annotated[Path, typer.Argument(help="Training file (YAML).")], verbose: Verbosity = 1) -> None:
    """Train one dictionary or several from an activation store, and measure them; resumes."""
    from neurollm.pipelines import run_training

    for line in run_training(file, verbose=verbose):
        typer.echo(line)


@app.command()
def sweep(file: Annotated[Path, typer.Argument(help="Sweep file (YAML).")], verbose: Verbosity = 1) -> None:
    """Train dictionaries of many widths, measure them, and fit the scaling law; resumes."""
    from neurollm.pipelines import run_sweep

    done = run_sweep(file, verbose=verbose)
    if done is not None:
        table, report = done
        typer.echo(f"{table}\nreport: {_short(report)}")


def _short(path: Path) -> Path:
    """The path as seen from here, when it lies below."""
    from neurollm.pipelines.training import short_path

    return short_path(path)
