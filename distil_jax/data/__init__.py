"""Data sets, tokenizers, prompts and padding."""
