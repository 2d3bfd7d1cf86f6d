"""From raw images to exact batches: datasets of WebDataset tars, their order, reading, decoding and augmentation."""
