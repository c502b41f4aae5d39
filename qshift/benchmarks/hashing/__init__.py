"""Hashing between two domains: how samples are split into training, gallery and queries."""
