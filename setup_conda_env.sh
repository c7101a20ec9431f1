#!/usr/bin/env bash
# Creates the conda environment FF from environment.yml, or brings an existing one up to date.
# Everything is installed by that one call; nothing is added to the environment afterwards.
set -euo pipefail

env_name=FF

usage() {
    cat <<TEXT
usage: bash setup_conda_env.sh [cpu | CUDA_VERSION]

  no argument   torch as PyPI has it: CUDA 13.0 on Linux, CPU on Windows, CPU and MPS on macOS
                (an environment that already has this torch version keeps the build it has)
  cpu           torch for the CPU: a far smaller download on Linux
  CUDA_VERSION  torch for one CUDA version, 12.6, 13.0 or 13.2
TEXT
}

fail() {
    echo "setup_conda_env.sh: $*" >&2
    exit 1
}

# --- Which build of torch -----------------------------------------------------------------------------------------

(($# <= 1)) || fail "expected one argument at most: 'cpu' or a CUDA version"

case "${1-}" in
    -h | --help) usage && exit ;;
    "") build="" ;;
    cpu) build=cpu ;;
    12.6 | 13.0 | 13.2) build=cu${1/./} ;; # all that torch 2.13.0 is built for: look again when the pin changes
    *) fail "'$1' is neither 'cpu' nor a CUDA version that torch is built for (12.6, 13.0, 13.2)" ;;
esac

if [[ $(uname -s) == Darwin ]]; then
    [[ $build != cu* ]] || fail "there is no CUDA on macOS: run it without an argument"
    build="" # PyPI has the only build there is
fi

# --- Which conda --------------------------------------------------------------------------------------------------

# In many installations the command is only a shell function, which scripts do not see; CONDA_EXE and MAMBA_EXE then
# name the program behind it.
tool=""
for candidate in conda "${CONDA_EXE-}" mamba micromamba "${MAMBA_EXE-}"; do
    if [[ -n $candidate ]] && command -v "$candidate" >/dev/null; then
        tool=$candidate
        break
    fi
done
[[ -n $tool ]] || fail "found none of conda, mamba and micromamba: install one (https://conda-forge.org/download)," \
    "open a new terminal and run this again, or use the pip commands in README.md"
tool_name=$(basename "$tool" .exe)

# --- Create or update ---------------------------------------------------------------------------------------------

cd "$(dirname "${BASH_SOURCE[0]}")"

if [[ -n $build ]]; then
    # pip, which conda starts, takes these settings from the environment: torch's own wheel index beside PyPI, and
    # the exact build. Without the second, a build already in the environment would pass for the one asked for.
    constraints=$([[ ${TMPDIR-} != *[[:space:]]* ]] || unset TMPDIR; mktemp) # blanks part pip's list of such files
    trap 'rm -f "$constraints"' EXIT
    sed -nE "s/^ *- ((torch|torchvision)==[0-9.]+) *$/\1+$build/p" environment.yml >"$constraints"
    export PIP_CONSTRAINT="${PIP_CONSTRAINT:+$PIP_CONSTRAINT }$constraints"
    export PIP_EXTRA_INDEX_URL="${PIP_EXTRA_INDEX_URL:+$PIP_EXTRA_INDEX_URL }https://download.pytorch.org/whl/$build"
fi

export MAMBA_ALWAYS_YES=true  # mamba 2 and micromamba ask before they install; conda's env commands do not

environments=$("$tool" env list)
if awk -v name="$env_name" '$1 == name { found = 1 } END { exit !found }' <<<"$environments"; then
    echo "Updating the environment $env_name with $tool_name (torch build: ${build:-as on PyPI}) ..."
    "$tool" env update -n "$env_name" -f environment.yml --prune
else
    echo "Creating the environment $env_name with $tool_name (torch build: ${build:-as on PyPI}) ..."
    if [[ $tool_name == micromamba ]]; then
        create=(create)  # older releases know no `env create`
    else
        create=(env create)
    fi
    "$tool" "${create[@]}" -n "$env_name" -f environment.yml
fi

# --- What next ----------------------------------------------------------------------------------------------------

or_older=""
[[ $tool_name != conda ]] || or_older="    # with an older conda: source activate $env_name"
cat <<TEXT

The environment $env_name is ready. Now run:
    $tool_name activate $env_name$or_older
    python -m main
TEXT
