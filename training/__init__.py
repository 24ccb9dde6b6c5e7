"""Training: preparation, data augmentation, training step, validation, output folder, processes, and merging."""
