"""One self-contained HTML page per study or dictionary, rebuilt from saved results alone.

Every word that comes from data is shown as text: templates autoescape, figures
are reduced to an allow-list of drawing elements, and the page forbids itself
any network access and any script but its own.
"""

from neurollm.reporting.build import build_report, verdicts
from neurollm.reporting.dictionaries import build_dictionary_report, holds_dictionaries

__all__ = ["build_dictionary_report", "build_report", "holds_dictionaries", "verdicts"]
