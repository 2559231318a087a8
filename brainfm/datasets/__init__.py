"""One file per dataset: its card, how to fetch it, and its recordings."""
