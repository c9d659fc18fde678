"""Factorial studies: main effects and interactions found on some items and tested on others."""

from neurollm.factorial.result import FactorialStudy
from neurollm.factorial.simulation import SimulatedUnits, simulate_units
from neurollm.factorial.study import factorial_study

__all__ = ["FactorialStudy", "SimulatedUnits", "factorial_study", "simulate_units"]
