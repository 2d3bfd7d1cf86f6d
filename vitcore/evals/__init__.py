"""What a trained model is worth: outcomes, metrics with intervals, figures, and the gate."""
