"""The refusal: what was used to choose features cannot be used to test them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from neurollm.errors import DataMismatch
from neurollm.roi.contents import TEXT, item_keys, text_keys
from neurollm.roi.region import ROI
from neurollm.validation import listed, one_line

if TYPE_CHECKING:
    import pandas as pd

_TOLD = 3
_SHOWN = 40  # characters of a text


def check_disjoint(roi: ROI, obs: pd.DataFrame, item: str | None = "item") -> None:
    """Refuse trials that share an item or a text with those on which a region was selected.

    Parameters
    ----------
    roi : ROI
        A declared region was not selected on any trial, so nothing is refused.
    obs : DataFrame
        The trials of the test, with a column ``text``.
    item : str or None, default="item"
        Column that names their items. The column that named the items of the selection is looked at too, where
        the table has it; None: only that one, and the texts.

    Raises
    ------
    DataMismatch
        Something overlaps; the sentence names it.
    InvalidInput
        A column is missing or incomplete.

    Examples
    --------
    >>> import pandas as pd
    >>> obs = pd.DataFrame({"item": ["a", "b"], "text": ["She won.", "He lost."]})
    >>> check_disjoint(ROI.declared("outcome", [3], "from the literature"), obs)
    """
    if roi.is_declared:
        return
    texts = text_keys(obs)
    same_text = np.isin(texts, roi.texts)
    labels = [name for name in dict.fromkeys((item, roi.item)) if name is not None and (name == item or name in obs)]
    same_item, names = np.zeros(len(obs), bool), {}
    for name in labels:
        keys = item_keys(obs, name)
        same = np.isin(keys, roi.items)
        names |= dict(zip(keys[same], obs[name].astype(str).to_numpy()[same], strict=True))
        same_item |= same
    if not same_text.any() and not same_item.any():
        return
    raise DataMismatch(_sentence(roi, obs, list(names.values()), same_item, same_text))


def _sentence(roi: ROI, obs: pd.DataFrame, items: list[str], same_item: np.ndarray, same_text: np.ndarray) -> str:
    parts = []
    if items:
        parts.append(f"{_counted(len(items), 'item')} ({_first(items)})")
    if same_text.any():
        column = obs[TEXT].astype(str).to_numpy()
        texts = {text: _short(text) for text in column[same_text]}
        elsewhere = ", also under other item names" if (same_text & ~same_item).any() else ""
        parts.append(f"{_counted(len(texts), 'text')} ({_first(list(texts.values()))}{elsewhere})")
    remedy = "test it on other contents"
    if items and not (same_text & same_item).any():
        remedy += (
            "; no text of these items was seen there, so if they are different contents that only bear the same names, "
            "rename the items of one table"
        )
    return (
        f"ROI '{roi.name}': {' and '.join(parts)} of this trial table were used to select its features, so a test on "
        f"them would be circular; {remedy}."
    )


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _first(names: list[str]) -> str:
    return listed(names[:_TOLD]) + (" …" if len(names) > _TOLD else "")


def _short(text: str) -> str:
    line = one_line(text[: _SHOWN + 1])
    return line if len(line) <= _SHOWN else f"{line[: _SHOWN - 1]}…"
