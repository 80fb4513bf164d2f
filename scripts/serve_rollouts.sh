#!/usr/bin/env bash
# Rollout servers for rollout.engine=vllm, in an environment of their own (scripts/install_vllm.sh); docs/rollouts.md.
# Usage: scripts/serve_rollouts.sh MODEL [--servers N] [--port 8101] [--host 127.0.0.1] [--token-file FILE] [--sync files|gloo]
#            [--gpus 6,7] [--dtype bfloat16] [--max-len 4096] [--max-seqs 64] [--images 1] [--min-pixels N] [--max-pixels N]
#            [--venv .venv-vllm] [--logs DIR] [--cpu] [-- FURTHER OPTIONS OF VLLM]
# Server i listens on port + i and has the i-th of --gpus. Ctrl-C, or the end of this script, ends all of them.
set -euo pipefail
here="$(cd "$(dirname "$0")/.." && pwd)"
usage() { sed -n '3,5s/^# //p' "$0" >&2; exit 2; }
[ $# -ge 1 ] || usage
model=$1; shift
servers=1 port=8101 host=127.0.0.1 token_file="" sync=files gpus="" dtype=bfloat16 max_len=4096 max_seqs=64 images=1
min_pixels="" max_pixels="" venv="${VLLM_VENV:-$here/.venv-vllm}" logs="" cpu=""
while [ $# -gt 0 ]; do
    case "$1" in
        --cpu) cpu=1; shift; continue ;;
        --) shift; break ;;
        --servers|--port|--host|--token-file|--sync|--gpus|--dtype|--max-len|--max-seqs|--images|--min-pixels|--max-pixels|--venv|--logs)
            [ $# -ge 2 ] || usage
            name="${1#--}"; printf -v "${name//-/_}" '%s' "$2"; shift 2 ;;
        *) echo "error: unknown option $1" >&2; usage ;;
    esac
done
python="$venv/bin/python"
[ -x "$python" ] || { echo "error: no environment at $venv: run scripts/install_vllm.sh first, or give --venv" >&2; exit 2; }
if [ "$host" != 127.0.0.1 ] && [ "$host" != localhost ] && [ -z "$token_file" ]; then
    echo "error: --host $host is seen by others, and whoever reaches a server can change its weights: give --token-file" >&2
    exit 2
fi
# The last folder alone: nothing of the trainer is seen by the servers.
export PYTHONPATH="$here/vlm_mhpo/rollout/vllm/on_server" VLLM_SERVER_DEV_MODE=1 VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1
options=(--model "$model" --served-model-name policy --host "$host" --dtype "$dtype" --max-model-len "$max_len"
    --max-num-seqs "$max_seqs" --seed 0 --logprobs-mode processed_logprobs --max-logprobs 1 --generation-config vllm
    --enable-scale-out --worker-extension-cls engine_side.Extension --weight-transfer-config "{\"backend\": \"$sync\"}")
if [ "$images" -gt 0 ]; then
    options+=(--limit-mm-per-prompt "{\"image\": $images, \"video\": 0}")
fi
if [ -n "$min_pixels$max_pixels" ]; then
    [ -n "$min_pixels" ] && [ -n "$max_pixels" ] || { echo "error: give --min-pixels and --max-pixels together" >&2; exit 2; }
    options+=(--mm-processor-kwargs "{\"size\": {\"shortest_edge\": $min_pixels, \"longest_edge\": $max_pixels}}")
fi
if [ -n "$token_file" ]; then
    MHPO_TOKEN_FILE="$(realpath "$token_file")"; export MHPO_TOKEN_FILE
    options+=(--middleware guard.Guard)
fi
if [ -n "$cpu" ]; then
    export VLLM_CPU_KVCACHE_SPACE="${VLLM_CPU_KVCACHE_SPACE:-1}" OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
    export VLLM_CPU_OMP_THREADS_BIND="${VLLM_CPU_OMP_THREADS_BIND:-auto}"
    options+=(--enforce-eager)
fi
IFS=, read -r -a devices <<< "$gpus"
groups=()
# A server is three processes; the inner ones outlive the outer one and keep their memory, so each has a group of its own.
end_all() { for group in "${groups[@]}"; do kill -TERM -- "-$group" 2> /dev/null || true; done; sleep 2
    for group in "${groups[@]}"; do kill -KILL -- "-$group" 2> /dev/null || true; done; }
trap end_all EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
for ((i = 0; i < servers; i++)); do
    device="${devices[i]:-}"
    [ -z "$device" ] || export CUDA_VISIBLE_DEVICES="$device"
    out=/dev/stdout
    if [ -n "$logs" ]; then mkdir -p "$logs"; out="$logs/server_$((port + i)).log"; fi
    setsid "$python" -m vllm.entrypoints.openai.api_server "${options[@]}" --port "$((port + i))" "$@" > "$out" 2>&1 &
    groups+=($!)
    echo "server $i: http://$host:$((port + i)) (process group $!)"
done
# One that ends is started again by whoever watches this script; the others go on meanwhile.
wait -n || true
echo "a server has ended; the others go on until this script is stopped" >&2
wait
