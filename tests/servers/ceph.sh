#!/usr/bin/env bash
# A Ceph S3 gateway with all its data in memory, for tests: one monitor, one disk, one gateway.
#
#   ceph.sh start DIRECTORY PORT [OWNER]   S3 answers at http://127.0.0.1:PORT, the monitor at
#                                          PORT + 1; ends with the process OWNER, if one is named
#   ceph.sh stop DIRECTORY
#
# The keys are AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY. Any user may run it; of Debian it needs
# ceph-mon ceph-osd ceph-common radosgw. DIRECTORY belongs to the server and is deleted by both.
set -euo pipefail
usage() { sed -n 's/^#   //p' "$0" >&2; exit 2; }

stop() {
  local file pid
  for file in "$dir"/*.pid; do
    pid=$(cat "$file" 2>/dev/null) || continue
    # Nothing here outlives the tests, so nothing need be flushed.
    kill -KILL "$pid" 2>/dev/null || true
  done
  rm -rf "$dir"
}

# Prints what a command said only if it failed.
quietly() { "$@" >"$dir/last" 2>&1 || { cat "$dir/last" >&2; return 1; }; }

watch() {
  trap '' INT TERM HUP
  while kill -0 "$owner" 2>/dev/null && [[ -d $dir ]]; do sleep 1; done
  stop
}

start() {
  mkdir -p "$dir"
  cat >"$dir/ceph.conf" <<EOF
[global]
fsid = $(cat /proc/sys/kernel/random/uuid)
mon host = [v2:127.0.0.1:$((port + 1))]
public addr = 127.0.0.1
keyring = $dir/keyring
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon data avail crit = 1
mon data = $dir/mon
osd data = $dir/osd
osd objectstore = memstore
memstore device bytes = 4294967296
rgw gc obj min wait = 1
rgw gc processor period = 2
rgw gc processor max time = 2
run dir = $dir
admin socket =
pid file = $dir/\$name.pid
log file = $dir/\$name.log
EOF
  export CEPH_CONF=$dir/ceph.conf
  mkdir "$dir/mon" "$dir/osd"
  quietly monmaptool --create --addv a "[v2:127.0.0.1:$((port + 1))]" \
    --fsid "$(sed -n 's/^fsid = //p' "$CEPH_CONF")" "$dir/monmap"
  quietly ceph-authtool -C "$dir/keyring" --gen-key -n mon. --cap mon 'allow *'
  local name
  for name in client.admin client.rgw.a osd.0; do
    quietly ceph-authtool "$dir/keyring" --gen-key -n $name --cap mon 'allow *' --cap osd 'allow *'
  done
  quietly ceph-mon -i a --mkfs --monmap "$dir/monmap" --keyring "$dir/keyring"
  quietly ceph-mon -i a
  local osd
  osd=$(cat /proc/sys/kernel/random/uuid)
  quietly ceph osd new "$osd"
  quietly ceph-osd -i 0 --mkfs --osd-uuid "$osd"
  quietly ceph-osd -i 0
  quietly radosgw -n client.rgw.a --rgw-frontends="beast endpoint=127.0.0.1:$port"
  quietly radosgw-admin user create --uid=test --display-name=test \
    --access-key="$AWS_ACCESS_KEY_ID" --secret-key="$AWS_SECRET_ACCESS_KEY"
  for _ in {1..120}; do
    if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
      [[ -z $owner ]] || watch </dev/null >/dev/null 2>&1 &
      return
    fi
    sleep 0.5
  done
  echo "no answer at port $port after a minute; see $dir/client.rgw.a.log" >&2
  return 1
}

(($# >= 2)) || usage
dir=$2
case $1 in
  start) (($# >= 3)) || usage; port=$3 owner=${4:-}; stop; start ;;
  stop) stop ;;
  *) usage ;;
esac
