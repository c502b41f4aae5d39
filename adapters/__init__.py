"""Methods of adaptation: `online` while queries are answered, `offline` before."""
