"""What tensors of embeddings say, as numbers: pure functions that training and evaluation share."""
