"""Records in, answers out: runner, pipeline, sessions, lanes, journal, stores, Kafka."""
