#!/usr/bin/env bash
# Create a plain Debian 12 base image, if no image registry can be reached.
#
#   docker/debian_base.sh IMAGE
#
# Needs root, debootstrap and a Docker engine. Packages come from DEBIAN_MIRROR (default:
# debootstrap's), through the proxy http_proxy.
set -euo pipefail
(($# == 1)) || { sed -n 's/^#   //p' "$0" >&2; exit 2; }

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
debootstrap --variant=minbase --include=ca-certificates,python3 bookworm "$root" \
  ${DEBIAN_MIRROR:+"$DEBIAN_MIRROR"}
# Caches, and files that only debootstrap uses.
rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/var/log/* "$root"/etc/{hostname,resolv.conf}
tar --directory "$root" --create . | docker import - "$1"
