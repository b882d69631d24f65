"""A training step as one CUDA graph.

On a GPU, launching the kernels of a small network one by one takes longer than computing them. A CUDA graph
launches all of them at once.
"""

from dataclasses import replace

import torch

from compression.training.losses import tensors_of

WARM_UP_STEPS = 3  # in which libraries choose their kernels and the optimizer makes its state


class CudaGraph:
    """Calls `compute(batch)`. After WARM_UP_STEPS calls it records the kernels of the next one; from then on
    it replays them, with the batch copied to where they read it.

    compute: takes a Batch whose tensors have the same shapes every time, runs `optimizer.step()`, returns
    nothing, and does not wait for the GPU.
    """

    def __init__(self, compute, optimizer, device):
        self.compute, self.optimizer, self.device = compute, optimizer, device
        self.stream, self.calls, self.graph = torch.cuda.Stream(device), 0, None

    def __call__(self, batch):
        self.calls += 1
        batch = replace(batch, positions=None, view=None)
        with torch.cuda.device(self.device):
            if self.calls <= WARM_UP_STEPS:
                self.stream.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(self.stream):  # as recording, which is not done on the default stream
                    self.compute(batch)
                torch.cuda.current_stream().wait_stream(self.stream)
                return
            if self.graph is None:
                self._record(batch)
            for mine, theirs in zip(tensors_of(self.batch), tensors_of(batch), strict=True):
                mine.copy_(theirs)
            for rate, group in zip(self.rates, self.optimizer.param_groups):
                rate.fill_(group["lr"])
            self.graph.replay()

    def _record(self, batch):
        """Record a step on copies of the batch and of the learning rates; nothing is computed."""
        groups = self.optimizer.param_groups
        values = {name: value.clone() for name, value in vars(batch).items() if value is not None}
        self.batch = replace(batch, **values)
        self.rates = [torch.full((), group["lr"], device=self.device) for group in groups]
        before = [dict(group) for group in groups]
        for group, rate in zip(groups, self.rates):
            group.update(lr=rate, capturable=True)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, stream=self.stream):
            self.compute(self.batch)
        for group, values in zip(groups, before):
            group.clear()
            group.update(values)
