#!/usr/bin/env bash
# Submits four jobs that wait for each other: curves by shard, lengths, parts by shard, the whole.
#
#   ./slurm.sh capture.safetensors short.safetensors 8 --keep 0.3
#
# The last words are options of `kvsculpt curves`. Add what your site needs (--partition, --gres=gpu:1, --time) to SBATCH_ARGUMENTS.
# KVSCULPT_ENGINE is the engine of every job: the engines round differently. KVSCULPT_BOTH
# are words that `curves` and `compress` need alike (--layers, --dtype, --queries, facts that the file does not hold). Pieces that are there are left alone, so the same command goes on after a failure.
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
read -r -a both <<<"${KVSCULPT_BOTH:-}"

# Submits one command, written so that a shell reads it back word by word; prints the job's number, without the cluster's name.
submit() {
    local name=$1 job
    shift
    job=$(sbatch --parsable "${site[@]}" --job-name "kvsculpt-$name" --output "$pieces/$name-%j.log" "$@")
    printf '%s\n' "${job%%;*}"
}
array=(--array "0-$((shards - 1))")
# Slurm sets the variable in the job, not here.
# shellcheck disable=SC2016
shard='${SLURM_ARRAY_TASK_ID}'
# Slurm runs it with /bin/sh, which knows no other quotes than these.
words() {
    local word quote="'\\''"
    for word in "$@"; do printf "'%s' " "${word//\'/$quote}"; done
}

curves=$(submit curves "${array[@]}" --wrap \
    "$(words kvsculpt curves "$capture" --engine "$engine" ${both[@]+"${both[@]}"} "$@")--shard $shard/$shards -o $(words "$pieces/curves-" | sed 's/ $//')$shard.json")
# The names of all shards in order, as a shell would write them.
files() {
    local index
    for ((index = 0; index < shards; index++)); do printf '%s\n' "$pieces/$1-$index.$2"; done
}
mapfile -t curve_files < <(files curves json)
allocate=$(submit allocate --dependency "afterok:$curves" --wrap \
    "$(words kvsculpt allocate "${curve_files[@]}" -o "$pieces/budgets.json")")
parts=$(submit parts "${array[@]}" --dependency "afterok:$allocate" --wrap \
    "$(words kvsculpt compress "$capture" --engine "$engine" ${both[@]+"${both[@]}"} --budgets "$pieces/budgets.json")--shard $shard/$shards -o $(words "$pieces/part-" | sed 's/ $//')$shard.safetensors")
mapfile -t part_files < <(files part safetensors)
submit merge --dependency "afterok:$parts" --wrap "$(words kvsculpt merge "${part_files[@]}" -o "$output")"
