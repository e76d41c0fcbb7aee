#!/usr/bin/env bash
# A Docker engine with all its data in one folder, for tests.
#
#   docker.sh start DIRECTORY   answers at unix://DIRECTORY/socket; containers have the host's
#                               network or none, so that nothing is set up there
#   docker.sh stop DIRECTORY    ends it and its containers; deletes DIRECTORY
#
# Needs root, and of Debian docker.io. stop without a start is no error. Not beside another engine: it
# would lose its bridge to this one.
set -euo pipefail

start() {
  mkdir -p "$dir"
  dockerd --host="unix://$dir/socket" --data-root="$dir/data" --exec-root="$dir/exec" \
    --pidfile="$dir/pid" --bridge=none --iptables=false >"$dir/log" 2>&1 </dev/null &
  for _ in {1..60}; do
    if [[ -S $dir/socket ]] && docker --host="unix://$dir/socket" info >/dev/null 2>&1; then return; fi
    kill -0 $! 2>/dev/null || break
    sleep 1
  done
  echo "the Docker engine did not start:" >&2
  tail -n 20 "$dir/log" >&2
  return 1
}

stop() {
  [[ -d $dir ]] || return 0
  local pid
  if pid=$(cat "$dir/pid" 2>/dev/null); then
    kill "$pid" 2>/dev/null || true
    for _ in {1..60}; do kill -0 "$pid" 2>/dev/null || break; sleep 0.5; done
  fi
  # The network of its containers stays mounted after it.
  awk -v dir="$dir/" 'index($2, dir) == 1 { print $2 }' /proc/mounts | tac | xargs --no-run-if-empty umount
  rm -rf "$dir"
}

dir=${2:-}
case ${1:-} in
  start | stop) [[ -n $dir ]] && "$1" ;;
  *) sed -n 's/^#   //p' "$0" >&2; exit 2 ;;
esac
