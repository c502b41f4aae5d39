"""Methods that learn while queries are answered, one a file, and what they share."""
