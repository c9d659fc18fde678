"""Counter-based random streams.

Every random draw in neurollm comes from a Philox generator whose key is derived
from ``(seed, purpose)`` and whose counter is the index of the draw (permutation
number, shard number, epoch). A draw therefore depends on *which* one it is and
never on how the work was batched, ordered or distributed.
"""

from __future__ import annotations

import hashlib

import numpy as np


def stream(seed: int, purpose: str, index: int = 0) -> np.random.Generator:
    """Return the generator of one draw.

    Parameters
    ----------
    seed : int
        The user's ``random_state``.
    purpose : str
        What the numbers are for (``"sign_flip"``, ``"shard_order"`` …); different
        purposes are independent streams of the same seed.
    index : int, default=0
        Which draw of this purpose.

    Returns
    -------
    numpy.random.Generator

    Examples
    --------
    >>> bool(stream(0, "demo", 3).random() == stream(0, "demo", 3).random())
    True
    """
    digest = hashlib.sha256(f"{int(seed)}\x1f{purpose}".encode()).digest()
    key = np.frombuffer(digest[:16], dtype=np.uint64)
    # The index sits in the high words: the low words count the numbers of this draw.
    counter = np.array([0, 0, index, 0], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))
