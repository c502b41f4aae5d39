"""Values that travel, the seams, configuration, errors and strict readers; imports nothing of ours."""
