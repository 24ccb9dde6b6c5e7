"""The spatial memory of training frames and references: storage, retrieval, attention, warping, deduplication."""
