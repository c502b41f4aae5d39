"""What is printed: tables that never cut a value, progress bars, figures in points."""
