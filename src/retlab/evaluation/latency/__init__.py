"""Time and memory of generation by context: first token, further tokens, peak memory and state."""
