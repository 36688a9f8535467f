"""Commands of `distil-jax`, one file each."""
