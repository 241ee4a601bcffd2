"""Importing this trains a little: for the process that forked.py forks."""

import torch.distributed.run  # noqa: F401 - imported once for all
from fault_injection import warm_up

warm_up()
