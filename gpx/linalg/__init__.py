"""Numbers in, numbers out: linear algebra that knows nothing of Gaussian processes."""
