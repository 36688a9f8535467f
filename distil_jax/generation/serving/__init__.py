"""An HTTP server of completions and log-probabilities, as OpenAI's API."""
