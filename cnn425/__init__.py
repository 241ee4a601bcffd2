"""A computer-vision lecture as code: fully connected, locally connected, convolution, pooling, and where their gradients come from."""
