#!/usr/bin/env bash
# A driver in a small job of its own that asks for worker jobs and replaces lost ones (driver.py).
# Change first: the directory, the command and the number of worker jobs below; what they ask for is in
# jobqueue/slurm.yaml, copied to ~/.config/dask/ or named by DASK_CONFIG.
#SBATCH --job-name=daskem-driver
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=2
#SBATCH --mem=4G
#SBATCH --time=24:00:00
#SBATCH --output=daskem-driver.log
# A minute before the limit: the fit commits itself, and the job queues again under the same number.
#SBATCH --signal=B:TERM@60
#SBATCH --requeue
#SBATCH --open-mode=append

deploy=${DEPLOY:-/shared/daskem/deploy}
python=${PYTHON:-python}
jobs=${JOBS:-4}
# Arguments of `sbatch driver-and-workers.sh ...`, or these.
if [ $# -eq 0 ]; then
    set -- fit gaussian-mixture /shared/data.zarr -k 32 -o /shared/model.safetensors --checkpoint /shared/run
fi

driver=
trap '[ -z "$driver" ] || kill -TERM "$driver"' TERM
"$python" "$deploy/slurm/driver.py" "$jobs" "$@" &
driver=$!
# A signal that is caught ends a wait before what it waits for.
while wait "$driver"; code=$?; kill -0 "$driver" 2>/dev/null; do :; done

# 75: the fit was stopped and can go on; 143: it was stopped before it had begun.
if [ "$code" = 75 ] || [ "$code" = 143 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
