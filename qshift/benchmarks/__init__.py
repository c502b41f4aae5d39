"""What is measured: tasks, streams of shifts, suites and their reports."""
