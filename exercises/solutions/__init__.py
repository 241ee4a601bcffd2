"""One solution per exercise, in a file of the same name."""
