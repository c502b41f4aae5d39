"""One strict reader for each format that a user hands over; errors name the file, the line and what to do."""
