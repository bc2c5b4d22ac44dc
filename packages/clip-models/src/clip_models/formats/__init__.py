"""On-disk formats of weights, one module each."""
