"""How do several processes train as one? On one machine or many, by ``torchrun --nproc_per_node=N train.py ...``.

Every process works on its share of each batch. Generator and discriminator are DistributedDataParallel, the memory is
one: every process gathers the whole batch and does the same to its own copy. Without torchrun a team is one process.
"""

import hashlib
import os
from collections.abc import Sequence
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from utils import UserError, rank_and_size

TIMEOUT = timedelta(minutes=30)  # for the longest that one process works while the others wait: validation


class ProcessGroup:
    """The processes of one training: ``rank`` of ``size``, of which the ``leader`` alone writes files.

    A context manager: NCCL between GPUs, gloo on CPUs, as torchrun's environment says.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.rank, self.size = rank_and_size()
        if self.size > 1 and device.type == "cuda":
            self.device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            if self.device.index >= torch.cuda.device_count():
                raise UserError(f"there are {torch.cuda.device_count()} GPUs for more processes; start as many "
                                "processes as GPUs")

    def __enter__(self) -> "ProcessGroup":
        if self.size > 1:
            if self.device.type == "cuda":
                torch.cuda.set_device(self.device)
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo", timeout=TIMEOUT)
            self.control = dist.new_group(backend="gloo", timeout=TIMEOUT)  # for values on the CPU: waits for no GPU
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.size > 1 and kind is None:  # after an error the others may never come to say goodbye
            dist.destroy_process_group()

    @property
    def leader(self) -> bool:
        return self.rank == 0

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        """Shares (n, ...) of all processes, in the order of ranks -> (size * n, ...)."""
        if self.size == 1:
            return x
        shares = [torch.empty_like(x) for _ in range(self.size)]
        dist.all_gather(shares, x.contiguous())
        return torch.cat(shares)

    def mine(self, x: torch.Tensor) -> torch.Tensor:
        """This process's share of a tensor that ``gather`` made."""
        return x.chunk(self.size)[self.rank]

    def mean(self, x: torch.Tensor) -> torch.Tensor:
        """The mean of a tensor over the processes."""
        if self.size == 1:
            return x
        x = x / self.size
        dist.all_reduce(x)
        return x

    def any(self, flag: torch.Tensor) -> torch.Tensor:
        """True where a flag (a bool tensor) is True in any process."""
        if self.size == 1:
            return flag
        flag = flag.float()
        dist.all_reduce(flag, dist.ReduceOp.MAX)
        return flag > 0

    def largest(self, *numbers: float) -> Sequence[float]:
        """The largest of each number over the processes, so that all decide the same."""
        if self.size == 1:
            return numbers
        numbers = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(numbers, dist.ReduceOp.MAX, group=self.control)
        return numbers.tolist()

    def wrap(self, network: nn.Module) -> nn.Module:
        """The network whose gradients are the means over the processes; its parameters are those of ``network``."""
        if self.size == 1:
            return network
        # The only buffers are the statistics of SyncBatchNorm2d, which are equal in all processes.
        return DistributedDataParallel(network, [self.device] if self.device.type == "cuda" else None,
                                       broadcast_buffers=False)

    def share(self, module: nn.Module) -> None:
        """Give every process the leader's parameters and buffers."""
        if self.size > 1:
            for x in module.state_dict().values():
                if x.numel():
                    dist.broadcast(x, 0)

    def check_same(self, module: nn.Module, name: str) -> None:
        """Raises RuntimeError unless every process holds the same module, bit for bit."""
        if self.size == 1:
            return
        digest = hashlib.blake2b()
        for x in module.state_dict().values():
            digest.update(x.cpu().contiguous().view(-1).view(torch.uint8).numpy())
        digests = [None] * self.size
        dist.all_gather_object(digests, digest.hexdigest(), group=self.control)
        if len(set(digests)) > 1:
            raise RuntimeError(f"the processes hold different copies of the {name}: {digests}")
