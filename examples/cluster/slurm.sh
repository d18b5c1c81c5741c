#!/usr/bin/env bash
# Submits four jobs that wait for each other: curves by shard, lengths, parts by shard, the whole.
#
#   ./slurm.sh capture.safetensors short.safetensors 8 --keep 0.3
#
# The last words are options of `kvsculpt curves`. Add what your site needs (--partition, --gres=gpu:1, --time) to SBATCH_ARGUMENTS.
# KVSCULPT_ENGINE is the engine of every job: the engines round differently. Pieces that are there are left alone, so the same command goes on after a failure.
set -euo pipefail

if [ "$#" -lt 3 ]; then
    echo "usage: $0 CAPTURE OUTPUT SHARDS [OPTIONS]" >&2
    exit 2
fi
capture=$(realpath "$1")
output=$(realpath "$2")
shards=$3
shift 3
pieces=$output.pieces
mkdir -p "$pieces"
engine=${KVSCULPT_ENGINE:-auto}
read -r -a site <<<"${SBATCH_ARGUMENTS:-}"

# Submits one command, written so that a shell reads it back word by word; prints the job's number.
submit() {
    local name=$1
    shift
    sbatch --parsable "${site[@]}" --job-name "kvsculpt-$name" --output "$pieces/$name-%j.log" "$@"
}
array=(--array "0-$((shards - 1))")
# Slurm sets the variable in the job, not here.
# shellcheck disable=SC2016
shard='${SLURM_ARRAY_TASK_ID}'
words() { printf '%q ' "$@"; }

curves=$(submit curves "${array[@]}" --wrap \
    "$(words kvsculpt curves "$capture" --engine "$engine" "$@")--shard $shard/$shards -o $(printf '%q' "$pieces/curves-")$shard.json")
# The names of all shards in order, as a shell would write them.
files() { seq -f "$pieces/$1-%.0f.$2" 0 $((shards - 1)); }
mapfile -t curve_files < <(files curves json)
allocate=$(submit allocate --dependency "afterok:$curves" --wrap \
    "$(words kvsculpt allocate "${curve_files[@]}" -o "$pieces/budgets.json")")
parts=$(submit parts "${array[@]}" --dependency "afterok:$allocate" --wrap \
    "$(words kvsculpt compress "$capture" --engine "$engine" --budgets "$pieces/budgets.json")--shard $shard/$shards -o $(printf '%q' "$pieces/part-")$shard.safetensors")
mapfile -t part_files < <(files part safetensors)
submit merge --dependency "afterok:$parts" --wrap "$(words kvsculpt merge "${part_files[@]}" -o "$output")"
