#!/usr/bin/env bash
# What docs/performance.md lacks without a GPU, in under eight minutes: extraction of ViT-L/14 in bf16 against its bare
# forward pass, a step fed from the store against tensors in GPU memory, phase two against a live ViT-L, the compiled
# teacher, and two processes on one device. Weights are random: they cost the same, and nothing is downloaded.
#
#     benchmarks/gpu.sh [OUT]          prints the tables, also into OUT/gpu.txt (default: outputs/gpu)
#     TINY=1 benchmarks/gpu.sh OUT     the same commands at sizes for a CPU: whether they run, no figures
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-outputs/gpu}
mkdir -p "$out"
exec > >(tee "$out/gpu.txt") 2>&1

if [ -n "${TINY:-}" ]; then
    limit=300 images=24 batch=4
    export TORCHDYNAMO_DISABLE=1  # compiling on a CPU takes a minute
    teacher=test_vit size=32 precision=fp32 live=test_vit
    extraction="--num-small 8 --num-large 0 --workers 1 --turns 1"
    step="--num-images 192 --batch-size 8 --steps 4 --workers 0 --turns 1"
    against="--num-images 96 --batch-size 4 --image-size 32 --seconds 0.5 --turns 1 --threads 1"
else
    limit=100 images=4096 batch=256
    teacher=vit_large_patch14_dinov2.lvd142m size=224 precision=bf16 live=vit_large_patch14_clip_224
    extraction="--num-small 8192 --num-large 0 --workers 8 16 --turns 3"
    step="--student mobilenetv3_large_100 --image-size 128 --num-images 4096 --batch-size 128 --steps 120 --workers 8"
    step="$step --fields cls --turns 5 --threads 8"
    against="--num-images 2048 --batch-size 64 --image-size 224 --precision bf16 --seconds 8 --turns 3"
fi

failed=0
run() {  # run TITLE COMMAND...: within the limit; a failure does not end the script
    local title=$1
    shift
    echo
    echo "== $title"
    echo "\$ $*"
    SECONDS=0
    timeout "$limit" "$@" || { echo "failed with status $?"; failed=1; }
    echo "took $SECONDS s"
}

python - <<'PYTHON'
import platform, torch, timm
device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "CPU"
print(f"{device}; torch {torch.__version__}, timm {timm.__version__}, Python {platform.python_version()}")
PYTHON

# shellcheck disable=SC2086  # the settings are lists of words
run "extraction over the bare forward pass (goal 0.95)" python benchmarks/extraction.py \
    --teacher "$teacher" --image-size "$size" --precision "$precision" --batch-size "$batch" $extraction
# shellcheck disable=SC2086
run "a step from the store over one from memory (goal 1.02)" python benchmarks/training_step.py $step
# shellcheck disable=SC2086
run "phase two over the live teacher (goal 5)" python benchmarks/cached_and_live.py --teachers "$live" $against

work=$(mktemp -d)
export TORCHINDUCTOR_CACHE_DIR=$work/inductor  # compiled anew, so that the time of it is seen
trap 'rm -rf "$work"' EXIT
python - "$work" "$teacher" "$size" "$images" <<'PYTHON'
import sys
from pathlib import Path

import timm
from safetensors.torch import save_file

from benchmarks.training_step import make_images

work, teacher, size, images = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
model = timm.create_model(teacher, pretrained=False, img_size=size, num_classes=0)
save_file(model.state_dict(), work / "teacher.safetensors")
make_images(work / "images", images)
PYTHON
extract=(pipelines/extract.py --source.kind folder --source.path "$work/images" --teacher.name "$teacher"
    --teacher.weights "$work/teacher.safetensors" --teacher.image_size "$size" --teacher.precision "$precision"
    --store.shard_rows $((batch * 2)) --store.shard_s 0 --batch_size "$batch")
run "one process" python "${extract[@]}" --store.path "$work/one"
run "compiled teacher" python "${extract[@]}" --teacher.compile true --store.path "$work/compiled"
run "two processes on one device" torchrun --nproc-per-node 2 "${extract[@]}" --store.path "$work/two"
run "rows of two processes are those of one" python - "$work/one" "$work/two" <<'PYTHON'
import sys

import numpy as np

import featstore

one, two = (featstore.open(path) for path in sys.argv[1:])
rows = np.arange(one.num_rows)
np.testing.assert_array_equal(one.gather("cls", rows), two.gather("cls", rows))
print(f"{len(rows):,} rows are equal to the last bit")
PYTHON
exit "$failed"
