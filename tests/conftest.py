"""Shared by all tests: the same random numbers at every run, and a bounded, repeatable hypothesis."""

import os
import signal

import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile("ci", max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
settings.register_profile("deep", max_examples=5000, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)
torch.set_num_threads(1)  # the tensors are small: threads would only wait for one another
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # tests in the background of a script: runs that they start would ignore it, too
    signal.signal(signal.SIGINT, signal.default_int_handler)
settings.load_profile(os.environ.get("CNN425_HYPOTHESIS", "ci"))


@pytest.fixture(autouse=True)
def same_random_numbers():
    torch.manual_seed(425)
