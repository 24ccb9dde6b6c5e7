"""Training: data augmentation, training step, validation, output folder, and data-parallel processes."""
