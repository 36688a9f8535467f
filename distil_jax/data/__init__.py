"""Data sets, tokenizers, teacher prompts and padding."""
