"""ResNet-20 in PyTorch's eager mode, which ``benchmarks/sweep.py`` stands beside."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional as f

from bqjax.core.tree import named_leaves

__all__ = ["eager_resnet20"]


def eager_resnet20(
    params: Any, data: Sequence[Any], published: Mapping[str, Any] | None, names: Sequence[str]
) -> tuple[Callable[[], float], Callable[[int], list[float]]]:
    """The network on two threads.

    Args:
      params: of ``CifarResNet(20)``.
      data: batches.
      published: tensors in PyTorch's names, of which BatchNorm's statistics are taken; None: means of 0, variances of 1.
      names: kernels that get noise of 0.05.

    Returns:
      The mean cross-entropy, and a function of ``points`` that gives it with noise on each kernel in turn, ``points`` times.
    """
    weights = {name: torch.from_numpy(np.array(leaf)) for name, leaf in named_leaves(params).items()}
    kernels = {
        name: w.permute(3, 2, 0, 1).contiguous() if w.ndim == 4 else w.T.contiguous() for name, w in weights.items() if w.ndim > 1
    }

    def normed(x: Any, prefix: str) -> Any:
        scale, bias = weights[f"{prefix}/scale"], weights[f"{prefix}/bias"]
        mean, var = torch.zeros_like(bias), torch.ones_like(bias)
        if published is not None:
            mean, var = (torch.from_numpy(published[f"{prefix.replace('/', '.')}.running_{part}"]) for part in ("mean", "var"))
        return f.batch_norm(x, mean, var, scale, bias, eps=1e-5)

    def forward(x: Any) -> Any:
        x = f.relu(normed(f.conv2d(x, kernels["conv1/kernel"], padding=1), "bn1"))
        for stage in (1, 2, 3):
            for block in range(3):
                at, stride = f"layer{stage}/{block}", 2 if stage > 1 and block == 0 else 1
                y = f.relu(normed(f.conv2d(x, kernels[f"{at}/conv1/kernel"], stride=stride, padding=1), f"{at}/bn1"))
                y = normed(f.conv2d(y, kernels[f"{at}/conv2/kernel"], padding=1), f"{at}/bn2")
                if stride == 2:
                    extra = y.shape[1] // 4
                    x = f.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, extra, extra))
                x = f.relu(x + y)
        return f.linear(x.mean((2, 3)), kernels["linear/kernel"], weights["linear/bias"])

    counted = [np.asarray(b["mask"]) != 0 for b in data]
    images = [
        torch.from_numpy(np.asarray(b["inputs"])[m]).permute(0, 3, 1, 2).contiguous() for b, m in zip(data, counted, strict=True)
    ]
    labels = [torch.from_numpy(np.asarray(b["labels"])[m]).long() for b, m in zip(data, counted, strict=True)]
    torch.set_num_threads(2)

    def loss() -> float:
        total = sum(float(f.cross_entropy(forward(x), y, reduction="sum")) for x, y in zip(images, labels, strict=True))
        return total / sum(map(len, labels))

    def passes(points: int) -> list[float]:
        found = []
        for name in names:
            kept = kernels[name]
            for _ in range(points):
                kernels[name] = kept + 0.05 * torch.randn_like(kept)
                found.append(loss())
            kernels[name] = kept
        return found

    return loss, passes
