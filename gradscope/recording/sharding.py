"""Statistics of local shards become those of whole tensors."""

from __future__ import annotations

from typing import Any

import torch

from gradscope.recording.buffer import StatisticsBuffer


def reduce_shards(sharded: dict[int, Any], buffer: StatisticsBuffer) -> None:
    """Turn the statistics of local shards into those of whole tensors: one all-gather.

    Norms add as squares, extremes as extremes, shares weighted by the size of the shard. A mesh
    dimension that holds replicas counts every element several times; the squares are divided by it.
    """
    from torch import distributed as dist

    columns = list(sharded)
    first = next(iter(sharded.values()))
    mesh = first.device_mesh
    device = first.to_local().device
    group = mesh.get_group() if mesh.ndim == 1 else None
    norms = ("norm", "unclipped", "weight_norm", "update", "carried")
    names = (*norms, "abs_max", "zero", "nonfinite", "unchanged")
    local = torch.stack([buffer.get(device, name, columns) for name in names])
    sizes = buffer.constant(device, [float(g.to_local().numel()) for g in sharded.values()])
    mine = torch.cat([local, sizes.unsqueeze(0)])
    world = dist.get_world_size(group)
    everyone = torch.empty((world, *mine.shape), device=device)
    dist.all_gather_into_tensor(everyone.view(-1, mine.shape[1]), mine.contiguous(), group=group)
    size = everyone[:, -1]
    whole = buffer.constant(device, [float(buffer.numel[c]) for c in columns])
    replicas = size.sum(0) / whole
    for i, name in enumerate(names):
        values = torch.where(size > 0, everyone[:, i], 0.0)  # an empty shard has no statistics
        if name in norms:
            combined = (values.square().sum(0) / replicas).sqrt()
        elif name == "abs_max":
            combined = values.amax(0)
        else:
            combined = (values * size).sum(0) / size.sum(0)
        buffer.put(device, name, columns, combined)
