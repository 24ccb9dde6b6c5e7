"""Data-parallel training with torchrun, on one or several machines: ``torchrun --nproc_per_node=N train.py ...``.

Each process works on its share of each batch. Generator and discriminator are DistributedDataParallel modules. The
memory is replicated: all processes gather the whole batch and apply the same update to their copy.
"""

import os
from collections.abc import Sequence
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from utils import UserError, rank_and_size

TIMEOUT = timedelta(minutes=30)  # maximum time that processes wait for the others, such as during the validation


class ProcessGroup:
    """The processes of one training run. ``rank`` and ``size`` come from the environment that torchrun sets.

    A context manager that connects the processes: with NCCL between GPUs, with gloo on CPUs. Without torchrun the size
    is 1, and all methods return their input.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, (self.rank, self.size) = device, rank_and_size()
        if self.size > 1 and device.type == "cuda":
            self.device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            if self.device.index >= torch.cuda.device_count():
                raise UserError(f"there are more processes than GPUs ({torch.cuda.device_count()}); start as many "
                                "processes as GPUs")

    def __enter__(self) -> "ProcessGroup":
        if self.size > 1:
            if self.device.type == "cuda":
                torch.cuda.set_device(self.device)
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo", timeout=TIMEOUT)
            self.cpu_group = dist.new_group(backend="gloo", timeout=TIMEOUT)  # does not synchronize with the GPU
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.size > 1 and kind is None:  # after an error, other processes may never reach this call
            dist.destroy_process_group()

    @property
    def is_main(self) -> bool:
        """True in the process that validates and writes files."""
        return self.rank == 0

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        """Concatenate the shares (n, ...) of all processes in the order of their ranks: (size * n, ...)."""
        if self.size == 1:
            return x
        shares = [torch.empty_like(x) for _ in range(self.size)]
        dist.all_gather(shares, x.contiguous())
        return torch.cat(shares)

    def own_share(self, x: torch.Tensor) -> torch.Tensor:
        """Return the part of the result of ``gather`` that belongs to this process."""
        return x.chunk(self.size)[self.rank]

    def mean(self, x: torch.Tensor) -> torch.Tensor:
        """Return the mean of a tensor over the processes."""
        if self.size == 1:
            return x
        x = x / self.size
        dist.all_reduce(x)
        return x

    def any(self, flag: torch.Tensor) -> torch.Tensor:
        """Return a bool tensor that is True where ``flag`` is True in any process."""
        return flag if self.size == 1 else self.mean(flag.float()) > 0

    def max(self, *numbers: float) -> Sequence[float]:
        """Return the maximum of each number over the processes, so that all processes make the same decision."""
        if self.size == 1:
            return numbers
        numbers = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(numbers, dist.ReduceOp.MAX, group=self.cpu_group)
        return numbers.tolist()

    def wrap(self, network: nn.Module) -> nn.Module:
        """Return a module with the parameters of ``network`` whose gradients are averaged over the processes."""
        if self.size == 1:
            return network
        # The only buffers are the statistics of SyncBatchNorm2d, which are equal in all processes.
        return DistributedDataParallel(network, [self.device] if self.device.type == "cuda" else None,
                                       broadcast_buffers=False)

    def broadcast(self, module: nn.Module) -> None:
        """Copy parameters and buffers from the main process to all others."""
        if self.size > 1:
            for x in module.state_dict().values():
                if x.numel():
                    dist.broadcast(x, 0)

    def check_equal(self, module: nn.Module, name: str) -> None:
        """Raise RuntimeError in each process where a parameter or buffer differs from that of the main process."""
        if self.size > 1:
            different = []  # errors are raised after all broadcasts, since other processes take part in them
            for tensor, x in module.state_dict().items():
                main = x.clone()
                dist.broadcast(main, 0)
                if not torch.equal(main, x):
                    different.append(tensor)
            if different:
                raise RuntimeError(f"{different[0]} of the {name} differs between processes 0 and {self.rank}")
