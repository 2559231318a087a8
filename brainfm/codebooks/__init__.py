"""Learned tokenizers: signal to codes and back."""
