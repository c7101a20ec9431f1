#!/usr/bin/env bash
# Measures what is missing below results/ for the tables of docs/results.md, one run after another on two threads (or
# OMP_NUM_THREADS), and prints the tables.
#   bash benchmarks/measure_results.sh [seeds, default "0 1 2 3 4"]
# A run that was interrupted goes on where it was; to measure one again, delete its folder.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
seeds=${1-0 1 2 3 4}
export OMP_NUM_THREADS=${OMP_NUM_THREADS-2}

measure() { # FOLDER OVERRIDE...
    local folder=results/$1
    shift
    if [[ -e $folder/result.json ]]; then
        echo "$folder is there"
    elif [[ -e $folder/config.yaml ]]; then
        python -m main resume="$folder"
    else
        python -m main hydra.run.dir="$folder" "$@"
    fi
}

for seed in $seeds; do
    measure "minute/seed$seed" experiment=minute precision=fp32 seed="$seed"
    for experiment in quick backprop loewex local_receptive_fields recurrent; do
        measure "$experiment/seed$seed" experiment="$experiment" seed="$seed"
    done
    measure "paper_matlab_rate/seed$seed" experiment=paper training.learning_rate=0.01 seed="$seed"
    measure "unsupervised_matlab_rate/seed$seed" experiment=unsupervised training.learning_rate=0.01 seed="$seed"
    measure "minute_bf16/seed$seed" experiment=minute precision=bf16 seed="$seed"
    measure "matlab_50000/seed$seed" experiment=matlab seed="$seed"
    measure "matlab_60000/seed$seed" experiment=matlab data.validation_images=0 seed="$seed"
    next=$((seed + 1)) # seed 0 chose the rates and the values of the records
    for experiment in paper_fast unsupervised record_dropout {record,backprop}_fashion; do
        measure "$experiment/seed$next" experiment="$experiment" seed="$next"
    done
    for experiment in paper record backprop_record; do
        measure "$experiment/seed$next" experiment="$experiment" precision=fp32 seed="$next"
    done
    measure "paper_bf16/seed$next" experiment=paper precision=bf16 seed="$next"
    measure "backprop_dropout/seed$next" experiment=backprop training.epochs=150 training.input_dropout=0.2 seed="$next"
    measure "backprop_record_jitter/seed$next" experiment=backprop training.epochs=300 training.adversarial=0.5 \
        data.jitter=2 seed="$next"
    for negatives in hard uniform; do # docs/study.md
        measure "negatives/$negatives/seed$seed" name=negatives experiment=quick training.negatives="$negatives" seed="$seed"
    done
    for precision in fp32 bf16; do # does the precision of the products move the result?
        measure "matlab_20_$precision/seed$seed" name=matlab_20 training.epochs=20 evaluation.every=0 \
            precision="$precision" seed="$seed"
    done
done
for seed in $seeds; do # last, as each takes hours
    next=$((seed + 1))
    measure "record_jitter/seed$next" experiment=record_jitter seed="$next"
    measure "matlab_jitter/seed$next" experiment=matlab data.validation_images=0 data.jitter=2 training.epochs=500 \
        seed="$next"
    measure "paper_jitter/seed$next" experiment=paper_jitter seed="$next"
    for experiment in cifar10_{backprop,max_ssq,min_ssq}_{2,3} cifar10_record; do
        measure "$experiment/seed$next" experiment="$experiment" seed="$next" evaluation.training_errors=true
    done
done
measure recurrent_3_layers/seed1 experiment=recurrent 'model.hidden_dims=[2000,2000,2000]' seed=1

python -m src.report results
