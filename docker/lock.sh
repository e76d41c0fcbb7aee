#!/usr/bin/env bash
# Resolve what the image installs again, within requirements.lock: docker/*.lock, with hashes.
#
#   docker/lock.sh           packages.lock, deepspeed.lock, torch-cpu.lock and sbom.lock
#   docker/lock.sh sbom      sbom.lock alone
#   docker/lock.sh cuda      torch-cuda.lock: torch for CUDA 12.6, and NVIDIA's libraries
#
# torch comes from PyTorch's index, or from the folder PIP_FIND_LINKS; other packages from uv's
# index (UV_DEFAULT_INDEX). The extra dev has uv.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
release=$(sed -n 's/^torch==//p' requirements.lock)

# Resolve pyproject's extras and the requirements on standard input.
resolve() { # BACKEND OPTION…
  local backend=$1 source=(--torch-backend "$1")
  shift
  [[ -z ${PIP_FIND_LINKS:-} ]] || source=(--find-links "$PIP_FIND_LINKS")
  # setuptools installs DeepSpeed and ourselves.
  printf 'setuptools\ntorch==%s\n' "$release+$backend" |
    uv pip compile --quiet --universal --python-version=3.11 --generate-hashes \
      --no-header --no-annotate --constraints requirements.lock "${source[@]}" "$@" \
      --extra train --extra deepspeed --extra energy --extra wandb --extra report pyproject.toml -
}

# The packages of a resolution whose names match a pattern, or (with "not") do not.
pick() { awk -v pattern="^($1)==" -v yes="${2-yes}" \
  '/^[^ ]/ { wanted = ($0 ~ pattern) == (yes == "yes") } wanted'; }

# Comment and packages of a lock.
write() { { echo "# Written by docker/lock.sh: $2"; cat; } >"docker/$1.lock"; }

# Writes the image's list of packages; not part of the image.
sbom() {
  echo cyclonedx-bom |
    uv pip compile --quiet --universal --python-version=3.11 --generate-hashes --no-header --no-annotate - |
    write sbom 'cyclonedx-py, which lists what the image holds.'
}

case ${1:-cpu} in
  cpu)
    all=$(resolve cpu)
    pick 'torch|deepspeed' not <<<"$all" | write packages 'all but torch and DeepSpeed.'
    pick deepspeed <<<"$all" | write deepspeed 'compiled when the image is built.'
    pick torch <<<"$all" | write torch-cpu 'torch for CPUs.'
    sbom
    ;;
  cuda)
    all=$(resolve cu126)
    pick 'torch|triton|cuda-.*|nvidia-.*-cu12' <<<"$all" |
      write torch-cuda 'torch for CUDA 12.6 and the libraries that it needs.'
    ;;
  sbom) sbom ;;
  *) sed -n 's/^#   //p' "$0" >&2; exit 2 ;;
esac
