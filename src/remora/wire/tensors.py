"""PyTorch's tensors for pickle, with their memory beside the pickle.

A tensor in the memory of the processor travels as one buffer and its shape; all others (on a
GPU, sparse, quantized, subclasses, with hooks) as PyTorch itself pickles them. Two tensors that
share memory do not share it on the other side.

Rules: never imports PyTorch to send: a tensor exists only if somebody has imported it.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any


def reduce(torch: Any, mark: Callable[[pickle.PickleBuffer], object], tensor: Any) -> Any:
    """Reduce a tensor for pickle.

    Args:
        torch: the module.
        mark: takes the buffer, which the other side must be able to write to: PyTorch has no
            read-only tensors.
        tensor: exactly of class `torch.Tensor`.
    """
    if not _is_plain(torch, tensor):
        return tensor.__reduce_ex__(5)
    try:
        dense = tensor.detach()
        if not _is_dense(dense):
            dense = dense.contiguous()
        flat = dense.as_strided((dense.numel(),), (1,), dense.storage_offset())
        buffer = pickle.PickleBuffer(flat.view(torch.uint8).numpy())
    except (RuntimeError, TypeError):  # no numpy, or a tensor inside of a transformation
        return tensor.__reduce_ex__(5)
    mark(buffer)
    shape = (tuple(dense.shape), dense.stride())
    return rebuild, (buffer, tensor.dtype, *shape, tensor.requires_grad)


def rebuild(buffer: Any, dtype: Any, size: Any, stride: Any, requires_grad: bool) -> Any:
    """Make a tensor of what `reduce` gave, on the memory of the buffer where it is writable."""
    import torch

    view = memoryview(buffer)
    memory = bytearray(view) if view.readonly else view
    tensor = torch.frombuffer(memory, dtype=dtype).as_strided(size, stride)
    return tensor.requires_grad_() if requires_grad else tensor


def _is_plain(torch: Any, tensor: Any) -> bool:
    return bool(
        tensor.device.type == "cpu"
        and tensor.layout is torch.strided
        and not tensor.is_quantized
        and tensor.numel()
        and not tensor.is_conj()
        and not tensor.is_neg()
        # Gone since PyTorch 2.13.
        and not (hasattr(tensor, "has_names") and tensor.has_names())
        and not tensor._backward_hooks
        and not tensor.__dict__
    )


def _is_dense(tensor: Any) -> bool:
    """Whether its memory has no holes, in whatever order its dimensions lie."""
    if tensor.is_contiguous():
        return True
    strides = tensor.stride()
    order = sorted(range(len(strides)), key=strides.__getitem__, reverse=True)
    return bool(tensor.permute(order).is_contiguous())
