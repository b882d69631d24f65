"""Copies from the CPU to the training device, without waiting for a GPU."""

from functools import lru_cache

import torch


def send(values, device):
    """A tensor on `device`, copied if need be, to a GPU from pinned memory without blocking the CPU."""
    if device.type == "cuda" and values.device.type == "cpu":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


@lru_cache
def constant(values, device):
    """A tuple of floats as a float32 tensor on `device`, copied once. It is shared: do not change it."""
    with torch.inference_mode(False):  # a tensor made in inference mode could not be used in training
        return torch.tensor(values, dtype=torch.float32, device=device)
