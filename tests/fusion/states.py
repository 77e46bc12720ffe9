"""State dicts of the published module."""

import torch

from tests.reference import PlainImageTextFusion


def randomize(module, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(generator=generator)
    return module


def plain_state(dim=12, heads=3, seed=0):
    return dict(randomize(PlainImageTextFusion(dim, heads), seed).state_dict())


def as_numpy(state):
    return {name: tensor.numpy() for name, tensor in state.items()}
