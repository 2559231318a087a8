"""One module per DVC stage: read the key, call the library, write the output."""
