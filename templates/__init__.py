"""Templates that `llama-lite ... new` copies."""
