"""One file a command, light to import: what a command needs is loaded when it runs."""
