#!/usr/bin/env bash
# Start phase one or two on one of several machines under one launcher; run it on each of them with its own RANK.
#
#     RANK=0 MACHINES=2 MAIN=10.0.0.1 PROCESSES=8 pipelines/launch/machine.sh pipelines/extract.py --config recipe.yaml
#     RANK=1 MACHINES=2 MAIN=10.0.0.1 PROCESSES=8 pipelines/launch/machine.sh pipelines/extract.py --config recipe.yaml
#
# PROCESSES is the number of processes of each machine, one per GPU (default 1); all machines must have as many. A machine
# that is lost ends the job on all: for phase one prefer tasks that know nothing of each other (slurm.sbatch,
# ray_tasks.py). Without GPUs the processes run on the CPU: --multi_gpu is what makes accelerate 1.15 start several
# (--cpu starts one process that knows nothing of the others).
set -euo pipefail
exec "${PYTHON:-python}" -m accelerate.commands.launch --multi_gpu --num_machines "$MACHINES" --machine_rank "$RANK" \
    --num_processes "$((MACHINES * ${PROCESSES:-1}))" --main_process_ip "$MAIN" \
    --main_process_port "${PORT:-29500}" --mixed_precision no --dynamo_backend no "$@"
