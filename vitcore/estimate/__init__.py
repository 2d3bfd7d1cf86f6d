"""What a training needs and costs, told before it runs: parameters, FLOPs, memory, data rate, time."""
