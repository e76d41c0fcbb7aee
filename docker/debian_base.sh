#!/usr/bin/env bash
# A plain Debian 12 as a base image, where no registry of images can be reached.
#
#   docker/debian_base.sh IMAGE
#
# Needs root, debootstrap and a Docker engine. Packages come from DEBIAN_MIRROR (without one: from
# debootstrap's default), through the proxy that http_proxy names.
set -euo pipefail
(($# == 1)) || { sed -n 's/^#   //p' "$0" >&2; exit 2; }

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
debootstrap --variant=minbase --include=ca-certificates,python3 bookworm "$root" \
  ${DEBIAN_MIRROR:+"$DEBIAN_MIRROR"}
# What is downloaded again when it is needed, or was only of use here.
rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/var/log/* "$root"/etc/{hostname,resolv.conf}
tar --directory "$root" --create . | docker import - "$1"
