"""Shards on disk: schema, writer, reader."""
