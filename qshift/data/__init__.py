"""Pictures and names that bases and galleries are made of: emoji, and a user's own folders."""
