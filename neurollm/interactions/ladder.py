"""The ladder: what of a dictionary's error a bias, a refit decoder, pairs of features, and more explain.

Nested models of the error e = x − x̂ of a dictionary with code s, each fitted on some
documents, with penalties and the moment to stop chosen on others, and judged on documents that took no part:

    M0   ŷ = 0                                   the dictionary
    M1   ŷ = b                                   over M0: a bias
    M2   ŷ = s·W + b                             over M1: a decoder refit (ridge)
    M3   ŷ = s·W + b + B·A                       over M2: pairs of features
    M4   ŷ = s·W + b + B·A + MLP(B)              over M3: a non-linear read-out of pairs
    M5   ŷ = s·W + b + MLP(s)                    over M2: any order, and non-linear main effects; as many weights as M4

B is that of `neurollm.interactions.model`. In M3 to M5 the refit is solved together with the
read-outs (`neurollm.interactions.refit`), so that ΔR² of M3 is what pairs explain and no linear map of the code does.

R² = 1 − Σ‖e − ŷ‖² / Σ‖x − m‖² over held-out tokens, m the mean of the fitted ones. ΔR² is the gain over the step
before. Controls, trained like the real thing on as many tokens:

    shuffled       the codes of other documents at the same positions: a gain is optimism, or what positions explain
    gaussian       errors drawn as M2 + Gaussian noise of the covariance that M2 leaves: truth is zero
    frozen         M3 with the embeddings that training begins with: random pairs, read out optimally
    additive       M2 and M3 with curves of single features, [s_i ≠ 0] and s_i², beside each s_i: pairs of features
                   that are active together can stand in for such curves, which a linear decoder lacks
    residual_sae   a TopK SAE that *sees* the error it reconstructs (no null, an upper reference), with
                   as many features as the dictionary; with as many weights as M4; and untrained

Seeds. Seed j draws weights and order, and without `held_out` its documents are fold j of all: each document is
held out once. The interval of a seed is a studentised bootstrap over documents. That over all J seeds is
mean ± t se, J − 1 degrees of freedom (documents − 1, if that is less), se² = (document variance of the mean) + S²·c,
S the SD over seeds; c = 1/(J − 1) with
folds, which share what they are fitted on (Nadeau & Bengio 2003, Machine Learning 52:239), and 1/J with `held_out`,
where the document variance is that of the bootstrap and the conclusion is about models of these very texts. Fewer
than 10 held-out documents have no interval.

The permutation p of a learned step is the share of random pairings of held-out documents, position by position, in
which what it predicts beyond M2 lowers the error as much as with the documents' own codes.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neurollm.dictionaries.training.checkpoints import refuse_other_run
from neurollm.errors import DataMismatch, InvalidInput
from neurollm.files import exclusive, write_json
from neurollm.interactions.ladder_result import CONTROLS, FEWEST_DOCUMENTS, OVER, STEPS, LadderResult, read_record
from neurollm.interactions.ladder_seed import EXPANSIONS, SEEDS, Rungs
from neurollm.interactions.rows import CodedRows, coded
from neurollm.interactions.training import InteractionTraining, check_counts, largest_code, resolved
from neurollm.progress import Progress
from neurollm.random import stream
from neurollm.validation import shown

if TYPE_CHECKING:
    from neurollm.activations import ActivationStore
    from neurollm.dictionaries import Dictionary

RECORD = "ladder-run.json"


def residual_ladder(
    store: ActivationStore | CodedRows,
    dictionary: Dictionary | None = None,
    *,
    steps: Sequence[str] = STEPS,
    seeds: int = 5,
    controls: Sequence[str] = ("shuffled", "gaussian", "frozen", "additive"),
    held_out: ActivationStore | CodedRows | None = None,
    rank: int = 64,
    top_n: int | None = None,
    n_tokens: int | None = None,
    training: InteractionTraining | None = None,
    n_boot: int = 2000,
    n_perm: int = 99,
    random_state: int = 0,
    out: str | os.PathLike | None = None,
    verbose: int = 1,
) -> LadderResult:
    """Explain the error of a dictionary step by step on held-out documents; see the module's introduction.

    Parameters
    ----------
    store : ActivationStore or CodedRows
    dictionary : Dictionary, optional
        Needed with a store.
    steps : sequence of {"M0", …, "M5"}
        A step brings the ones it is compared with.
    seeds : int, default=5
        2 to 1000; an interval over fewer than 5 is hardly worth having.
    controls : sequence of {"shuffled", "gaussian", "frozen", "additive", "residual_sae"}
    held_out : ActivationStore or CodedRows, optional
        Documents to judge all seeds on. Default: each seed holds out a fold of the documents.
    rank : int, default=64
        K; also the hidden units of M4.
    top_n : int, optional
        Entries of a code that enter pairs. Default: all.
    n_tokens : int, optional
        For each learned step. Default: that of `train_nfm`.
    training : InteractionTraining, optional
    n_boot : int, default=2000
    n_perm : int, default=99
        Pairings of held-out documents behind ``p_permutation``.
    random_state : int, default=0
    out : path-like, optional
        Folder in which everything finished is kept: an interrupted ladder goes on there.
    verbose : int, default=1

    Returns
    -------
    LadderResult

    Raises
    ------
    InvalidInput
        If an argument is unknown or out of range, or there are too few documents.
    DataMismatch
        If store, dictionary and held_out do not belong together, or `out` holds another ladder.

    Examples
    --------
    >>> from neurollm.interactions import simulate_codes
    >>> data = simulate_codes(4000, n_features=20, k=4, d=8, random_state=0)
    >>> ladder = residual_ladder(data.rows, steps=["M2"], seeds=2, controls=[], verbose=0)
    >>> ladder.to_frame()["step"].unique().tolist()
    ['M0', 'M1', 'M2']
    """
    steps = _wanted(steps)
    _check(controls, seeds)
    check_counts(rank=rank, n_tokens=1 if n_tokens is None else n_tokens)
    check_counts(2, top_n=2 if top_n is None else top_n)
    check_counts(19, n_perm=n_perm)
    check_counts(100, n_boot=n_boot)
    check_counts(0, random_state=random_state)
    rows = coded(store, dictionary, verbose=verbose)
    held = None if held_out is None else _held_out(held_out, rows, verbose)
    options = resolved(training)
    folds = _folds(rows, seeds, random_state) if held is None else None
    top_n = top_n or largest_code(rows)
    run = {
        "rows": rows.sha256,
        "held_out": None if held is None else held.sha256,
        "rank": int(rank),
        "top_n": int(top_n),
        "n_tokens": None if n_tokens is None else int(n_tokens),
        "n_perm": int(n_perm),
        "random_state": int(random_state),
        "seeds": int(seeds),
        "training": dataclasses.asdict(options),
    }
    folder = None if out is None else _open(Path(out), run)
    names = _names(steps, controls)
    found, notes = [], []
    lock = nullcontext() if folder is None else exclusive(folder)
    with lock, Progress("ladder", seeds * len(names), "models", verbose) as progress:
        for seed in range(seeds):
            inside = rows if held is not None else rows.subset(folds != seed)
            test = held if held is not None else rows.subset(folds == seed)
            rung = Rungs(inside, test, seed, run, options, None if folder is None else folder / f"seed-{seed}")
            found.append(rung.errors(names, progress))
            notes += rung.notes
    return LadderResult(
        seeds=tuple(found),
        cross_fitted=held is None,
        n_boot=n_boot,
        random_state=random_state,
        description={**run, "dictionary": "" if rows.dictionary is None else repr(rows.dictionary)},
        notes=tuple(dict.fromkeys(notes)),
    )


def _wanted(steps: Sequence[str]) -> tuple[str, ...]:
    if not isinstance(steps, list | tuple) or not steps or any(step not in STEPS for step in steps):
        raise InvalidInput(f"steps: found {steps!r}; use some of {', '.join(STEPS)}")
    wanted = set(steps)
    for step in reversed(STEPS):
        if step in wanted and step in OVER:
            wanted.add(OVER[step])
    return tuple(step for step in STEPS if step in wanted)


def _check(controls: Sequence[str], seeds: int) -> None:
    if not isinstance(controls, list | tuple) or any(control not in CONTROLS for control in controls):
        raise InvalidInput(f"controls: found {controls!r}; use some of {', '.join(CONTROLS)}")
    check_counts(2, seeds=seeds)
    if seeds > SEEDS:
        raise InvalidInput(f"seeds is {seeds}; a ladder takes 2 to {SEEDS}")


def _held_out(store: ActivationStore | CodedRows, rows: CodedRows, verbose: int) -> CodedRows:
    """The rows to judge on, of the same dictionary and of other documents than `rows`."""
    held = coded(store, None if isinstance(store, CodedRows) else rows.dictionary, verbose=verbose)
    known = [one.dictionary.fingerprint for one in (rows, held) if one.dictionary is not None]
    if (held.d, held.n_features) != (rows.d, rows.n_features) or len(set(known)) > 1:
        raise DataMismatch(
            f"held_out has codes of {held.n_features} features and width {held.d} of {held.dictionary or 'arrays'}, "
            f"the store {rows.n_features} and {rows.d} of {rows.dictionary or 'arrays'}; give rows of one dictionary"
        )
    shared = held.shared_documents(rows)
    if shared:
        raise InvalidInput(
            f"held_out shares {len(shared)} documents with the store ({shown(shared[0])}); hold out texts that the fit "
            "does not see"
        )
    if len(np.unique(held.documents)) < FEWEST_DOCUMENTS:
        raise InvalidInput(
            f"held_out has {len(np.unique(held.documents))} documents; an interval over documents needs at least "
            f"{FEWEST_DOCUMENTS}"
        )
    return held


def _folds(rows: CodedRows, seeds: int, random_state: int) -> np.ndarray:
    """Fold of each row; documents are whole."""
    documents, place = np.unique(rows.documents, return_inverse=True)
    if len(documents) < 2 * seeds:
        raise InvalidInput(
            f"{len(documents)} documents are too few for {seeds} seeds, each of which holds out documents of its own: "
            f"give at least {2 * seeds}, or held_out"
        )
    fold = np.empty(len(documents), np.int64)
    fold[stream(random_state, "ladder.folds").permutation(len(documents))] = np.arange(len(documents)) % seeds
    return fold[place]


def _open(folder: Path, run: dict[str, Any]) -> Path:
    """The folder of this ladder; DataMismatch if it is of another one."""
    record = folder / RECORD
    known = read_record(record)
    if known is not None:
        refuse_other_run(known, run, record)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(record, run)
    return folder


def _names(steps: Sequence[str], controls: Sequence[str]) -> list[str]:
    """All models of a seed, each after the one it is compared with."""
    learned = [step for step in steps if step in EXPANSIONS]
    names = list(steps)
    if "shuffled" in controls:
        names += [f"{step} shuffled" for step in steps if step in ("M2", *EXPANSIONS)]
    if "gaussian" in controls and learned:
        names += [f"{step} gaussian" for step in ("M2", *learned)]
    if "frozen" in controls and "M3" in steps:
        names.append("M3 frozen")
    if "additive" in controls and "M3" in steps:
        names += ["M2 additive", "M3 additive"]
    if "residual_sae" in controls:
        names += ["residual SAE", "residual SAE, weights of M4", "residual SAE, untrained"]
    return names
