"""Runs without Kafka: the demo's schedule, a user's own queries, recorded topics."""
