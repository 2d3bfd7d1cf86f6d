"""From a step to a batch: order, mixtures, augmentation, assembly by threads."""
