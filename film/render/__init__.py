"""Color a film shot by shot: scheduling, resuming, and joining the result."""
