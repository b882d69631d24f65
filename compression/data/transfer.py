"""What goes from the CPU to the training device, on a way that does not make the CPU wait for a GPU."""

from functools import lru_cache

import torch


def send(values, device):
    """A CPU tensor on `device`. To a GPU it travels from pinned memory, while the CPU goes on; one that is
    there already stays as it is.
    """
    if device.type == "cuda" and values.device.type == "cpu":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


@lru_cache
def constant(values, device):
    """A tuple of floats as a float32 tensor on `device`, copied there once. It is shared: do not change it in
    place.
    """
    with torch.inference_mode(False):  # else the first caller decides whether it may take part in training
        return torch.tensor(values, dtype=torch.float32, device=device)
