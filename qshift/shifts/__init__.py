"""Shifts of queries as code: pictures and text, keyed by sample so that any order gives the same bytes."""
