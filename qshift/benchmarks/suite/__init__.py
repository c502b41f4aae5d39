"""A suite's runs through the production path, judged from full rankings, cached and reported."""
