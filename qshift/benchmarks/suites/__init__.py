"""Suites: which streams are run on which tasks. A grid is a loop, so they are written as one."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from qshift.benchmarks.suites.core import CORE
from qshift.benchmarks.suites.plan import Plan as Plan
from qshift.benchmarks.suites.plan import Suite as Suite
from qshift.benchmarks.suites.special import CHAIN, DECOUPLING, DEVELOP, SAFETY, STEERED

SUITES: Mapping[str, Suite] = MappingProxyType(
    {suite.name: suite for suite in (CORE, DEVELOP, DECOUPLING, SAFETY, CHAIN, STEERED)}
)
"""What `qshift bench` may name."""
