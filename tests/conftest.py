"""Shared by all tests: the same random numbers at every run, and a bounded, repeatable hypothesis."""

import os

import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile("ci", max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
settings.register_profile("deep", max_examples=5000, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)
torch.set_num_threads(1)  # the tensors are small: threads would only wait for one another
settings.load_profile(os.environ.get("CNN425_HYPOTHESIS", "ci"))


@pytest.fixture(autouse=True)
def same_random_numbers():
    torch.manual_seed(425)
