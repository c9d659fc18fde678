"""Running sequences up to a site, and changing what is there.

Plain forward hooks on the model's own modules; the forward pass is cut right after
the hooked module, so no later block and no unembedding is ever computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from neurollm.errors import DataMismatch, NeurollmError
from neurollm.models.loading import LanguageModel
from neurollm.models.site import Site
from neurollm.models.tokens import tokenize

PADDING_SHARE = 1 / 16
"""A batch ends before a longer sequence would fill more than this share of the token budget with padding."""


class _SiteReached(Exception):
    """Ends the forward pass: what was wanted has been computed."""


def run_site(
    lm: LanguageModel, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, site: Site
) -> torch.Tensor:
    """Activations at a site for one batch.

    Parameters
    ----------
    lm : LanguageModel
    input_ids : LongTensor, shape (b, t)
        Padded on the right.
    attention_mask : Tensor or None, shape (b, t)
        1 for tokens, 0 for padding. Causal models do not need it: no token can see
        the padding that follows it.
    site : Site

    Returns
    -------
    Tensor, shape (b, t, d)
        In the model's dtype, on its device.
    """
    caught: list[torch.Tensor] = []

    def catch(hidden: torch.Tensor) -> None:
        caught.append(hidden)
        raise _SiteReached

    with _hook(lm, site, catch), torch.no_grad():
        try:
            lm.model.base_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        except _SiteReached:
            return caught[0]
    raise NeurollmError(f"site {site} was never reached in model {lm.name!r}")


@contextmanager
def intervene(lm: LanguageModel, site: Site, edit: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[Counter]:
    """Replace the activations at a site while the block runs.

    Parameters
    ----------
    lm : LanguageModel
    site : Site
    edit : callable
        Takes the activations (b, t, d) and returns those to go on with.

    Yields
    ------
    Counter
        ``.fired`` counts how often the hook ran.

    Raises
    ------
    NeurollmError
        On leaving, if the hook never ran: an intervention that does nothing is an error.

    Examples
    --------
    >>> from neurollm.models import load_model
    >>> lm = load_model("demo", device="cpu", dtype="float32")
    >>> with intervene(lm, Site(2), lambda hidden: hidden * 0):
    ...     logits = lm.model(torch.tensor([[0, 5, 6]])).logits
    """
    counter = Counter()

    def replace(hidden: torch.Tensor) -> torch.Tensor:
        counter.fired += 1
        return edit(hidden)

    with _hook(lm, site, replace):
        yield counter
    if counter.fired == 0:
        raise NeurollmError(f"the intervention at {site} never ran: model {lm.name!r} was not called inside the block")


@dataclass
class Counter:
    """How often an intervention ran."""

    fired: int = 0


@contextmanager
def _hook(lm: LanguageModel, site: Site, function: Callable[[torch.Tensor], Any]) -> Iterator[None]:
    """Call `function` with the tensor at the site; a returned tensor takes its place."""
    module = lm.module_at(site)

    def on_output(_module: Any, _args: Any, output: Any) -> Any:
        hidden, *rest = output if isinstance(output, tuple) else (output,)
        new = function(hidden)
        if new is None:
            return None
        return (new, *rest) if isinstance(output, tuple) else new

    def on_input(_module: Any, args: tuple, kwargs: dict) -> Any:
        if args:
            new = function(args[0])
            return None if new is None else ((new, *args[1:]), kwargs)
        name = "hidden_states" if "hidden_states" in kwargs else next(iter(kwargs))
        new = function(kwargs[name])
        return None if new is None else (args, {**kwargs, name: new})

    if site.stream in ("resid_pre", "mlp_in"):
        handle = module.register_forward_pre_hook(on_input, with_kwargs=True)
    else:
        handle = module.register_forward_hook(on_output)
    try:
        yield
    finally:
        handle.remove()


def probe_site(lm: LanguageModel, site: Site, text: str = "The cat sat on the mat.") -> None:
    """Prove that the harvested tensor is the one an intervention at the site sees and the model uses.

    Runs the whole model once with a hook that looks, and once cut at the site; for a
    block output other than the last one also compares with ``hidden_states``.

    Raises
    ------
    DataMismatch
        If any of them differ at all (max |Δ| > 0).
    """
    tokens = tokenize(lm, [text])[0]
    ids = torch.as_tensor(tokens.ids[None].astype(np.int64), device=lm.device)
    mask = None if lm.is_causal else torch.ones_like(ids)
    seen: list[torch.Tensor] = []
    with _hook(lm, site, lambda hidden: seen.append(hidden.clone())), torch.no_grad():
        output = lm.model.base_model(input_ids=ids, attention_mask=mask, use_cache=False, output_hidden_states=True)
    pairs = {"the full forward pass": seen[0]}
    if site.stream == "resid_post" and site.layer + 1 < lm.n_layers:
        pairs["hidden_states"] = output.hidden_states[site.layer + 1]
    harvested = run_site(lm, ids, mask, site)
    for where, tensor in pairs.items():
        if tensor.shape != harvested.shape or (tensor - harvested).abs().max() != 0:
            raise DataMismatch(
                f"site {site} of model {lm.name!r}: the harvested activations differ from those of {where}; "
                "this architecture cannot be read at this site"
            )


def plan_batches(
    lengths: Sequence[int], tokens_per_batch: int, groups: Sequence[Any] | None = None
) -> list[np.ndarray]:
    """Group sequences of similar length into batches of at most `tokens_per_batch` padded tokens.

    Parameters
    ----------
    lengths : sequence of int
    tokens_per_batch : int
        A longer sequence, or a longer group, is a batch of its own.
    groups : sequence, optional
        Sequences with the same value share a batch. The last digits of an activation
        depend on the shape of its batch: what is to be compared should share one.

    Returns
    -------
    list of ndarray of int
        Indices of the sequences of each batch: every sequence once, shortest first,
        ties in the order given. A batch with much padding is split.

    Examples
    --------
    >>> [batch.tolist() for batch in plan_batches([5, 2, 5, 9], 10)]
    [[1], [0, 2], [3]]
    >>> [batch.tolist() for batch in plan_batches([5, 2, 5, 9], 20, groups=["a", "b", "b", "a"])]
    [[1, 2], [0, 3]]
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    members: dict[Any, list[int]] = {}
    for index in range(len(lengths)):
        members.setdefault(index if groups is None else groups[index], []).append(index)
    batches: list[np.ndarray] = []
    current: list[int] = []
    tokens = 0
    for group in sorted(members.values(), key=lambda group: max(lengths[group])):
        longest = int(max(lengths[group]))
        too_long = (len(current) + len(group)) * longest > tokens_per_batch
        padding = len(current) * longest - tokens  # that these would not have in a batch of their own
        if current and (too_long or padding > PADDING_SHARE * tokens_per_batch):
            batches.append(np.asarray(current))
            current, tokens = [], 0
        current += group
        tokens += len(group) * longest
    return batches + ([np.asarray(current)] if current else [])


def iter_activations(
    lm: LanguageModel,
    sequences: Sequence[np.ndarray],
    site: Site,
    *,
    tokens_per_batch: int | None = None,
    groups: Sequence[Any] | None = None,
) -> Iterator[tuple[np.ndarray, torch.Tensor, np.ndarray]]:
    """Activations of many token sequences, in length-sorted batches.

    Parameters
    ----------
    lm : LanguageModel
    sequences : sequence of ndarray of int
        Token ids, special tokens included.
    site : Site
    tokens_per_batch : int, optional
        Default: the model's own ``tokens_per_batch``.
    groups : sequence, optional
        See `plan_batches`.

    Yields
    ------
    indices : ndarray of int, shape (b,)
        Which sequences these are.
    activations : Tensor, shape (b, t, d)
        Values beyond a sequence's length are padding.
    lengths : ndarray of int, shape (b,)
    """
    lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
    tokens_per_batch = lm.tokens_per_batch if tokens_per_batch is None else tokens_per_batch
    for indices in plan_batches(lengths, tokens_per_batch, groups):
        ids, mask = pad([sequences[index] for index in indices], lm)
        yield indices, run_site(lm, ids, mask, site), lengths[indices]


def pad(sequences: Sequence[np.ndarray], lm: LanguageModel) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Right-padded ids (b, t) on the model's device, and the attention mask an encoder needs (else None)."""
    lengths = np.array([len(sequence) for sequence in sequences])
    ids = np.full((len(sequences), lengths.max()), lm.tokenizer.pad_token_id or 0, dtype=np.int64)
    for row, sequence in zip(ids, sequences, strict=True):
        row[: len(sequence)] = sequence
    mask = None
    if not lm.is_causal:
        mask = torch.from_numpy((np.arange(ids.shape[1]) < lengths[:, None]).astype(np.int64)).to(lm.device)
    return torch.from_numpy(ids).to(lm.device), mask
