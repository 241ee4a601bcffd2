"""One file per layer of the lecture, read at three altitudes: the autograd Function, the function, the Module."""
