"""Where numpy and torch meet: batches from shards, the Lightning modules, checkpoints."""
