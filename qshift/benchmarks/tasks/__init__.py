"""Tasks of the benchmark, one a file: each reads its data and knows no model."""
