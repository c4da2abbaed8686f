"""What replicas of these tests load: as users write it, with a question to CUDA at the import."""

from __future__ import annotations

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
WIDTH = 1024


def load() -> torch.nn.Module:
    """A small model on the CPU, the same at each call."""
    torch.manual_seed(7)
    layers = [torch.nn.Linear(WIDTH, WIDTH, dtype=torch.float32) for _ in range(4)]
    return torch.nn.Sequential(*layers).eval()
