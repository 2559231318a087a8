"""One file per published system, read top to bottom."""
