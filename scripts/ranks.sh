# Sourced by the scripts that start ranks: `nproc` of them on this host (NPROC, else one a GPU), and how torchrun ends them.
if [ -z "${NPROC:-}" ] || [ -z "${OMP_NUM_THREADS:-}" ]; then
    gpus="$(.venv/bin/python -c 'import torch; print(torch.cuda.device_count())')"
    [ "$gpus" -gt 0 ] || export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
fi
nproc="${NPROC:-$(( gpus > 0 ? gpus : 1 ))}"
# A run that is told to stop saves first. torchrun would kill it after 30 seconds, and not hand on Slurm's SIGUSR1; its
# releases read this under one name or the other.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-300}"
export PET_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1
export TORCHELASTIC_SIGNALS_TO_HANDLE="$PET_SIGNALS_TO_HANDLE"
