"""All masks of a picture by a student of task promptable: everything.py RUN PICTURE OUT.png [POINTS [LEAST_IOU]].

POINTS is the number on a side of the fine grid, 32 if left out.
A small student is rarely sure of its masks: 0.4 shows what it finds where 0.7 shows nothing.
"""

import sys
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image

import distill
import featstore
from distill.tasks.everything import everything
from distill.tasks.prompt_decoder import read_decoder


def main(run: str, picture: str, out: str, fine: str = "32", least: str = "0.7") -> int:
    model = distill.load_student(run)
    student = model.student
    settings = yaml.safe_load((Path(run) / "config.yaml").read_text())
    decoder = read_decoder(featstore.open(settings["store"]))
    whole = Image.open(picture).convert("RGB")
    pixels = whole.resize(student.input_size[::-1])
    images = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None] / 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (student.mean, student.std))
    with torch.no_grad():
        embedding = model((images - mean) / std)[0]
    found = everything(decoder, embedding, fine=int(fine), least=float(least))
    drawn = np.array(whole, np.float32)
    colours = np.random.default_rng(0).integers(0, 256, (len(found.masks), 3))
    for mask, colour in zip(found.masks.numpy()[::-1], colours, strict=True):
        shown = np.array(Image.fromarray(mask).resize(whole.size))
        drawn[shown] = 0.5 * drawn[shown] + 0.5 * colour
    Image.fromarray(drawn.astype(np.uint8)).save(out)
    print(f"{len(found.masks)} masks from {found.num_prompts} points; written to {out}")
    return len(found.masks)


if __name__ == "__main__":
    main(*sys.argv[1:])
