"""The registry of one service: nothing is registered globally."""

from prometheus_client import CollectorRegistry


def fresh_registry() -> CollectorRegistry:
    """An empty registry; several services in one process do not meet in it."""
    return CollectorRegistry()
