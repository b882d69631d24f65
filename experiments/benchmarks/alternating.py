"""Two ways of doing the same steps, timed in turns, so that a machine that slows down slows both."""

import time

import torch


def alternate(first, second, rounds, steps, device):
    """Seconds per step in every round, as two lists; first, second: called with the number of the step.

    A round of each beforehand warms up.
    """

    def seconds_per_step(step, start):
        began = time.perf_counter()
        for index in range(start, start + steps):
            step(index)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - began) / steps

    seconds_per_step(first, 0), seconds_per_step(second, 0)
    pairs = [
        (seconds_per_step(first, index * steps), seconds_per_step(second, index * steps))
        for index in range(rounds)
    ]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]
