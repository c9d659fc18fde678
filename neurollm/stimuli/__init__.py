"""Stimulus sets: validated tables of prompts, and the audit of what they confound."""

from neurollm.stimuli.audit import AuditReport, Check
from neurollm.stimuli.stimulus_set import StimulusSet

__all__ = ["AuditReport", "Check", "StimulusSet"]
