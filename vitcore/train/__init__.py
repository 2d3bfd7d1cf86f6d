"""One training loop for every objective, with exact resume; ``python -m vitcore.train`` runs it under torchrun."""
