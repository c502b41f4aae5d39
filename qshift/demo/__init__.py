"""The demo: its catalogue, its traffic, the service that it shows, and its profile."""
