#!/usr/bin/env bash
# Start phase one or two on one of several machines under one launcher; run it on each of them with its own RANK.
#
#     RANK=0 MACHINES=2 MAIN=10.0.0.1 PROCESSES=8 pipelines/launch/machine.sh pipelines/extract.py --config recipe.yaml
#     RANK=1 MACHINES=2 MAIN=10.0.0.1 PROCESSES=8 pipelines/launch/machine.sh pipelines/extract.py --config recipe.yaml
#
# PROCESSES is the number of processes of each machine, one per GPU. A machine that is lost ends the job on all: for phase
# one prefer tasks that know nothing of each other (slurm.sbatch, ray_tasks.py). It calls torchrun, which is what
# `accelerate launch --num_machines` calls on GPUs; on CPUs accelerate 1.15 starts one process only.
set -euo pipefail
exec "${PYTHON:-python}" -m torch.distributed.run --nnodes "$MACHINES" --node-rank "$RANK" --master-addr "$MAIN" \
    --master-port "${PORT:-29500}" --nproc-per-node "${PROCESSES:-1}" "$@"
