"""Numbers as a journal prints them: p < .001, true minus signs, no zero before the point of a proportion."""

from __future__ import annotations

import math
import re
import unicodedata
from typing import Any

from markupsafe import Markup, escape

from neurollm.validation import several

MISSING = "–"
MINUS = "\N{MINUS SIGN}"
_SUPERSCRIPT = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")
_KEPT_CONTROLS = "\n\t"


def is_number(value: Any) -> bool:
    """Whether `value` is a finite number."""
    if value is None or isinstance(value, bool | str):
        return False
    return isinstance(value, int) or math.isfinite(value)


def visible(value: Any) -> Any:
    """Replace characters that a page must not obey (control, direction override, lone surrogate).

    Anything but plain ``str`` is returned as it is. Made for jinja's ``finalize``.
    """
    if not isinstance(value, str) or isinstance(value, Markup) or (value.isascii() and value.isprintable()):
        return value
    return "".join(
        "\N{REPLACEMENT CHARACTER}" if c not in _KEPT_CONTROLS and _is_unseen(c) else c for c in value
    )  # fmt: skip


def _is_unseen(c: str) -> bool:
    # Zero-width joiners and non-joiners are spelling in many scripts, not trickery.
    return unicodedata.category(c) in ("Cc", "Cs") or "\u202a" <= c <= "\u202e" or "\u2066" <= c <= "\u2069"


def decimal(value: Any, digits: int = 2) -> str:
    """A number with a fixed number of decimals and a true minus sign.

    Examples
    --------
    >>> decimal(-0.457), decimal(None), decimal(-0.0001)
    ('−0.46', '–', '0.00')
    """
    if not is_number(value):
        return MISSING
    text = f"{value:,.{digits}f}"
    if text.startswith("-"):
        text = MINUS + text[1:] if any(c in "123456789" for c in text) else text[1:]
    return text


def significant(value: Any, digits: int = 3) -> str:
    """A number with about `digits` significant digits, for quantities without a natural scale.

    Examples
    --------
    >>> significant(0.01234), significant(1234.5), significant(0.0)
    ('0.0123', '1,234', '0')
    """
    if not is_number(value):
        return MISSING
    if value == 0:
        return "0"
    order = math.floor(math.log10(abs(value)))
    if order < -4:
        mantissa = decimal(value / 10.0**order, digits - 2)
        return f"{mantissa} × 10{str(order).translate(_SUPERSCRIPT)}"
    return decimal(value, max(0, digits - 1 - order))


def measure(value: Any) -> str:
    """Whatever was recorded: whole numbers as counts, other numbers rounded, words as they are.

    Examples
    --------
    >>> measure(2), measure(0.8912), measure("2 of 3"), measure(None)
    ('2', '0.89', '2 of 3', '–')
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return count(value)
    if value is None or is_number(value) or isinstance(value, float):
        return significant(value, 2)
    return str(value)


def exact(value: float) -> str:
    """A declared level as it was declared: ``.05``, ``.001``, ``.025``."""
    return f"{value:g}".removeprefix("0")


def proportion(value: Any, digits: int = 2) -> str:
    """A number between −1 and 1 without the zero before the point.

    Examples
    --------
    >>> proportion(0.894), proportion(1.0), proportion(-0.25)
    ('.89', '1.00', '−.25')
    """
    text = decimal(value, digits)
    return text.replace("0.", ".", 1) if text.startswith(("0.", MINUS + "0.")) else text


def p_number(value: Any, alpha: float = 0.05) -> str:
    """A p value for a table cell: two digits that matter, never a bare zero.

    More digits are shown when rounding would carry it to the other side of `alpha`.

    Examples
    --------
    >>> p_number(0.0001), p_number(0.0312), p_number(0.31), p_number(1.0), p_number(0.05004)
    ('<\\u202f.001', '.031', '.31', '1.00', '.05004')
    """
    if not is_number(value):
        return MISSING
    if value < 0.001 <= alpha:
        return "<\N{NARROW NO-BREAK SPACE}.001"
    digits = 2 if value >= 0.1 else max(3, 1 - math.floor(math.log10(value))) if value > 0 else 3
    while digits < 15 and (round(value, digits) <= alpha) != (value <= alpha):
        digits += 1
    return proportion(value, digits)


def p_sentence(value: Any, alpha: float = 0.05) -> str:
    """A p value with its relation sign, for sentences: ``"= .031"``, ``"< .001"``."""
    if not is_number(value):
        return "not available"
    return "< .001" if value < 0.001 <= alpha else f"= {p_number(value, alpha)}"


def interval(low: Any, high: Any, digits: int = 2, *, bounded: bool = False) -> str:
    """A confidence interval in square brackets; empty when it is not known."""
    if not (is_number(low) and is_number(high)):
        return ""
    show = proportion if bounded else decimal
    return f"[{show(low, digits)}, {show(high, digits)}]"


def auroc(row: dict[str, Any]) -> str:
    """AUROC with its interval, e.g. ``.89 [.85, .93]``."""
    return f"{proportion(row.get('auroc'))} {interval(row.get('ci_low'), row.get('ci_high'), bounded=True)}".strip()


def count(value: Any) -> str:
    """A whole number with thousands separators; powers of ten for astronomical ones.

    Examples
    --------
    >>> count(10000), count(2**56)
    ('10,000', '7.2 × 10¹⁶')
    """
    if not is_number(value):
        return MISSING
    number = int(value)
    if number < 10**9:
        return f"{number:,}"
    order = math.floor(math.log10(number))
    mantissa = number // 10 ** (order - 1) / 10
    return f"{mantissa} × 10{str(order).translate(_SUPERSCRIPT)}"


def percent(value: Any) -> str:
    """A share in percent, e.g. ``12%``; small shares keep a digit."""
    if not is_number(value):
        return MISSING
    return f"{100 * value:.0f}%" if value >= 0.0995 or value == 0 else f"{100 * value:.1f}%"


def duration(seconds: Any) -> str:
    """Seconds in the unit a reader wants.

    Examples
    --------
    >>> duration(0.42), duration(75), duration(7300)
    ('0.4 s', '1 min 15 s', '2 h 1 min')
    """
    if not is_number(seconds):
        return MISSING
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def plural(number: int, one: str, many: str | None = None) -> str:
    """``1 item`` or ``56 items``."""
    return f"{count(number)} {one if number == 1 else many or several(one)}"


def statistics(text: Any) -> Markup:
    """Escape a sentence, then set its statistical symbols in italics with real subscripts."""
    html = escape(visible(str(text)))
    for symbol, markup in (
        ("p_FWER", "<i>p</i><sub>FWER</sub>"),
        ("g_z", "<i>g</i><sub>z</sub>"),
    ):
        html = Markup(html.replace(symbol, Markup(markup)))
    return Markup(re.sub(r"\bq(?= (?:[≤=]|&lt;)|$)", "<i>q</i>", html))
