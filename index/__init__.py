"""Codes -> items: the bit convention, search, galleries, and the fusion of both twins."""
