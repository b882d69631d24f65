"""transfer.py: values arrive unchanged on every device, and constants once."""

import torch

from compression.data.transfer import constant, send


def test_values_arrive_unchanged(device):
    values = torch.arange(6, dtype=torch.uint8).view(2, 3)
    sent = send(values, device)
    assert sent.device.type == device.type and sent.dtype == torch.uint8 and torch.equal(sent.cpu(), values)
    assert send(sent, sent.device) is sent


def test_a_constant_is_copied_once_and_may_take_part_in_training_whoever_asked_first(device):
    with torch.inference_mode():
        first = constant((0.25, 7.0), device)
    assert constant((0.25, 7.0), device) is first and first.dtype == torch.float32
    assert first.tolist() == [0.25, 7.0]
    weight = torch.ones(2, device=device, requires_grad=True)
    (weight * first).sum().backward()
    assert weight.grad.tolist() == [0.25, 7.0]
