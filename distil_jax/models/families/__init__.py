"""Parameter names of each Hugging Face model family."""
