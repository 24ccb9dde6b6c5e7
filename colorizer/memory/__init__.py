"""The spatial memory of training frames: storage, retrieval and deduplication."""
