#!/usr/bin/env bash
# Measures what is missing below results/ for the README's results table, one run after another, and prints the table.
#   bash benchmarks/measure_results.sh [seeds of the long runs, default "0 1 2"]
# Delete a folder to measure it again, also one that an interrupted run left behind.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
seeds=${1-0 1 2}

measure() { # FOLDER OVERRIDE...
    local folder=results/$1
    shift
    if [[ -e $folder/result.json ]]; then
        echo "$folder is there"
    else
        python -m main hydra.run.dir="$folder" "$@"
    fi
}

for seed in 0 1 2 3 4; do
    measure "quick/seed$seed" experiment=quick seed="$seed"
    measure "fast/seed$seed" experiment=fast precision=fp32 seed="$seed"
    measure "fast_bf16/seed$seed" experiment=fast precision=bf16 seed="$seed"
    for experiment in backprop local_receptive_fields; do
        OMP_NUM_THREADS=1 measure "$experiment/seed$seed" experiment="$experiment" data.validation_images=0 seed="$seed"
    done
    for negatives in hard uniform; do # the study of the README
        OMP_NUM_THREADS=1 measure "negatives/$negatives/seed$seed" name=negatives experiment=quick \
            training.negatives="$negatives" seed="$seed"
    done
    for precision in fp32 bf16; do # does the precision of the products move the result?
        measure "matlab_20_$precision/seed$seed" name=matlab_20 training.epochs=20 evaluation.every=0 \
            precision="$precision" seed="$seed"
    done
done
for seed in $seeds; do
    measure "matlab_60000/seed$seed" data.validation_images=0 seed="$seed"
    measure "matlab_50000/seed$seed" seed="$seed"
    measure "seed_repo/seed$seed" experiment=seed_repo seed="$seed"
    measure "paper/seed$seed" experiment=paper data.validation_images=0 seed="$seed"
    measure "paper_fast/seed$seed" experiment=paper_fast data.validation_images=0 seed="$seed"
    measure "unsupervised/seed$seed" experiment=unsupervised data.validation_images=0 seed="$seed"
    measure "recurrent/seed$seed" experiment=recurrent data.validation_images=0 seed="$seed"
done

python -m src.report results
