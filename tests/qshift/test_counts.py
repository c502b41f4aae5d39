"""Counts agree with their nouns."""

from qshift.terminal.counts import counted


def test_one_is_no_plural() -> None:
    assert counted(1, "query", "queries") == "1 query"
    assert counted(1, "dead letter") == "1 dead letter"
    assert [counted(n, "label") for n in (0, 2)] == ["0 labels", "2 labels"]
    assert counted(1600, "query", "queries") == "1600 queries"
