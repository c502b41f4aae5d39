"""What watches: sampled quality, drift, series, the HTTP process, the live page."""
