"""Queries -> unit features -> codes: towers, hash head, strict decoding, query repair."""
