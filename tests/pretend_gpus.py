"""GPUs that are not there: tensors compute on the processor, and behave as if they lay on a device of their own.

Every call of torch's Python interface is seen.  A tensor that is made or moved with ``device="cuda"`` carries its
device on; tensors of two devices do not mix, a generator of the processor does not fill one of a GPU, and numpy does
not see it.  So what is wrong on a GPU because of where a tensor lies is wrong here too, for any number of GPUs.
Kernels are not run: for them (`is_cuda`) all is on the processor.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

CPU, META = torch.device("cpu"), ("meta", torch.device("meta"))
MOVES = {Tensor.to, Tensor.cpu, Tensor.cuda, Tensor.type_as}


class PretendGpus(TorchFunctionMode):
    """Active inside a ``with``."""

    def __enter__(self):
        self.real = torch.cuda.synchronize
        torch.cuda.synchronize = lambda device: None
        return super().__enter__()

    def __exit__(self, *failure):
        torch.cuda.synchronize = self.real
        return super().__exit__(*failure)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if kwargs.get("device") in META or any(each.is_meta for each in flat((args, kwargs))):
            return func(*args, **kwargs)  # while transformers loads a network
        if func == Tensor.device.__get__:
            return device_of(args[0])
        if func in MOVES:
            return self._move(func, *args, **kwargs)
        name, tensors = getattr(func, "__name__", str(func)), list(flat((args, kwargs)))
        if func in (Tensor.numpy, Tensor.__array__) and device_of(args[0]) != CPU:
            raise TypeError(f"{name}: can't convert a tensor of {device_of(args[0])} to numpy")
        if func in (Tensor.__getitem__, Tensor.__setitem__):
            self._check_places(name, *args)
        tensors = [each for each in tensors if not isinstance(each, torch.nn.Parameter)]  # made out of sight
        found = {device_of(each) for each in tensors if each.ndim or device_of(each) != CPU}
        across = func in (Tensor.__getitem__, Tensor.__setitem__, Tensor.copy_)
        if len(found) > 1 and not across:
            raise RuntimeError(f"{name}: tensors of {', '.join(sorted(map(str, found)))}")
        if across:
            where = device_of(args[0])
        elif kwargs.get("device") is not None:
            where, kwargs["device"] = place(kwargs["device"]), CPU
        else:
            where = next(iter(found or map(device_of, tensors)), CPU)
        if where != CPU and isinstance(kwargs.get("generator"), torch.Generator):
            raise RuntimeError(f"{name}: a generator of the processor and a tensor of {where}")
        return settled(func(*args, **kwargs), where)

    @staticmethod
    def _check_places(name: str, tensor: Tensor, places, values=None) -> None:
        indices = list(flat(places))
        if device_of(tensor) == CPU and any(device_of(each) != CPU for each in indices):
            raise RuntimeError(f"{name}: a tensor of the processor and indices of a GPU")
        if indices and isinstance(values, Tensor) and values.ndim and device_of(values) != device_of(tensor):
            raise RuntimeError(f"{name}: values of another device for places that a tensor names")

    def _move(self, func, tensor, *args, **kwargs):
        where, args = kwargs.pop("device", None), [each for each in args if each is not None and each is not False]
        if func is Tensor.cpu:
            where = CPU
        elif func is Tensor.cuda:
            where, args = args[0] if args else "cuda", []
        elif args and isinstance(args[0], (str, torch.device)):
            where = args.pop(0)
        elif args and isinstance(args[0], Tensor):
            where, args = device_of(args[0]), [args[0].dtype]
        where = device_of(tensor) if where is None else place(where)
        changed = Tensor.to(tensor, *args, **kwargs) if args or kwargs else tensor
        moved = where != device_of(tensor) and changed is tensor
        return settled(tensor.clone() if moved else changed, where)


def device_of(tensor: Tensor) -> torch.device:
    """Where a tensor pretends to lie."""
    return tensor.__dict__.get("pretended", CPU)


def settled(made, where: torch.device):
    """What a call returns, its tensors on the device ``where``."""
    for each in flat((made,)):
        each.pretended = where
    return made


def flat(value):
    """All tensors in nested arguments."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from flat(each)
    elif isinstance(value, dict):
        yield from flat(tuple(value.values()))


def place(device) -> torch.device:
    """A device with its number: ``cuda`` is ``cuda:0``."""
    device = torch.device(device)
    return torch.device(device.type, device.index or 0) if device.type != "cpu" else CPU
