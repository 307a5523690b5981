#!/usr/bin/env bash
# Scheduler, workers and the fit in one SLURM job, which goes on from its checkpoint after its time limit.
# Change first: the requests, the prologue, and further down the command.
#SBATCH --job-name=daskem
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=4
#SBATCH --cpus-per-task=1
#SBATCH --mem-per-cpu=3814M
#SBATCH --time=2:00:00
#SBATCH --output=/shared/model.safetensors.checkpoint/job.log
# A minute before the limit: the fit commits itself, and the job queues again under the same number.
#SBATCH --signal=B:TERM@60
#SBATCH --requeue
#SBATCH --open-mode=append

directory=/shared/model.safetensors.checkpoint
python=python
:  # such as: module load python; source /shared/venv/bin/activate

# Numbers run in threads of Dask's; a BLAS with threads of its own would only compete with them.
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 DASK_LOGGING__DISTRIBUTED=warning
# Dask's profiler and its logs of messages would take tens of megabytes of each process, which the plan has for rows.
export DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED=False DASK_DISTRIBUTED__ADMIN__LOW_LEVEL_LOG_LENGTH=100
stopping= fit=
trap 'stopping=1; [ -z "$fit" ] || kill -TERM "$fit"' TERM

if ! srun --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 test -w "$directory"; then
    echo "daskem: error: a node of $SLURM_JOB_NODELIST cannot write to $directory. It must be a directory that all" \
        "nodes share, such as one on the parallel file system; /tmp and most home directories of one host are not." >&2
    exit 1
fi

scheduler="$directory/scheduler-$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}.json"
rm -f "$scheduler"
srun "$python" -c '
import sys
from dask_jobqueue.slurm import SLURMRunner
worker = {"nthreads": 1, "memory_limit": 4000000000}
SLURMRunner(client=False, scheduler_file=sys.argv[1], worker_class="distributed.Nanny", worker_options=worker)
' "$scheduler" &
cluster=$!
until [ -s "$scheduler" ] || [ -n "$stopping" ]; do
    kill -0 "$cluster" || exit 1
    sleep 1
done

code=75
if [ -z "$stopping" ]; then
    "$python" -m daskem fit gaussian-mixture /shared/data.zarr -k 32 -o /shared/model.safetensors --checkpoint /shared/model.safetensors.checkpoint --scheduler "$scheduler" &
    fit=$!
    # A signal that is caught ends a wait before what it waits for.
    while wait "$fit"; code=$?; kill -0 "$fit" 2>/dev/null; do :; done
fi
kill "$cluster" 2>/dev/null
rm -f "$scheduler"

# 75: the fit was stopped and can go on; 143: it was stopped before it had begun.
if [ "$code" = 75 ] || [ "$code" = 143 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
