"""A SAM of transformers with random weights, in a folder as ``save_pretrained`` writes it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

SIDE, WIDTH = 8, 32  # places of the embedding a side, and its width

PIXELS = 32


def save_sam(folder: Path) -> Any:
    """Write one for pictures of 32 pixels; returns the model."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.SamConfig(
        vision_config={
            "hidden_size": 16,
            "output_channels": WIDTH,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": PIXELS,
            "patch_size": PIXELS // SIDE,
            "window_size": 4,
            "global_attn_indexes": [1],
            "num_pos_feats": WIDTH // 2,
            "mlp_dim": 32,
            "initializer_range": 0.1,
        },
        prompt_encoder_config={
            "hidden_size": WIDTH,
            "image_size": PIXELS,
            "patch_size": PIXELS // SIDE,
            "mask_input_channels": 4,
        },
        mask_decoder_config={
            "hidden_size": WIDTH,
            "mlp_dim": 32,
            "num_attention_heads": 2,
            "iou_head_hidden_dim": 16,
        },
    )
    model = transformers.SamModel(config).eval()
    model.save_pretrained(folder)
    processor = {
        "size": {"longest_edge": PIXELS},
        "pad_size": {"height": PIXELS, "width": PIXELS},
        "do_pad": True,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "resample": 2,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return model
