"""One training update as a CUDA graph: one launch by the host instead of hundreds."""

from collections.abc import Callable

import torch
from torch import Tensor

WARM_UPS = 3  # updates before the capture, in which libraries allocate and choose what may not be done during it


class GraphedUpdate:
    """`update(batch)`, captured at one of its first calls and replayed from then on.

    A batch of another size than the first one's, as the last of an epoch may be, is not replayed but computed. `update`
    works in place, on tensors that stay where they are, never waits for the host, and draws from `generator`.
    """

    def __init__(self, update: Callable[[Tensor], None], generator: torch.Generator):
        self.update = update
        self.generator = generator
        self.batch: Tensor | None = None  # where the graph reads the indices of its examples
        self.warm_ups = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.stream = torch.cuda.Stream()  # one, so that all memory of the updates is of one stream

    def __call__(self, batch: Tensor) -> None:
        if self.batch is None:
            self.batch = batch.clone()
        if batch.shape != self.batch.shape:
            self.update(batch)
            return
        self.batch.copy_(batch)
        if self.warm_ups < WARM_UPS:
            self.warm_ups += 1
            # On the stream that will be captured, as capturing demands of what precedes it.
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                self.update(self.batch)
            torch.cuda.current_stream().wait_stream(self.stream)
            return
        if self.graph is None:
            self.graph = torch.cuda.CUDAGraph()
            self.graph.register_generator_state(self.generator)
            with torch.cuda.graph(self.graph, stream=self.stream):  # records the update without doing it
                self.update(self.batch)
        self.graph.replay()
