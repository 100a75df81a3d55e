"""Hash of the weights of a PyTorch module, as manifests hold it."""

import hashlib
from typing import Any


def state_sha256(module: Any) -> str:
    """Hash the weights a module runs with, independent of the file they came from.

    SHA-256 over, for each key of the state dict in sorted order: the key, a zero byte, dtype and shape as text, a zero
    byte, the little-endian bytes.
    """
    import torch

    digest = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        tensor = value.detach().cpu().contiguous()
        digest.update(f"{key}\0{tensor.dtype} {tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
