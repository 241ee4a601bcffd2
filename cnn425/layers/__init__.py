"""One file per layer: the autograd Function, the function, the Module; and what layers share."""
