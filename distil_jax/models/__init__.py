"""Pure networks: parameters and token ids in, hidden states and caches out."""
