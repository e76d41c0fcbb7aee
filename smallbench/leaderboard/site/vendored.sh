#!/usr/bin/env bash
# Write the vendored files of the site again from npm's packages of the locked versions. npm's own
# settings name the registry. The packages and the files must have the hashes of vendored.lock.
#
# A line of vendored.lock: file, its SHA-384, package, version, npm's integrity, path in the package
set -euo pipefail
cd "$(dirname "$0")/static/vendor"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

hash_of() { printf '%s-%s' "$1" "$(openssl dgst "-$1" -binary "$2" | base64 -w0)"; }
require() {
    [ "$1" = "$2" ] || { echo "$3 has $1, but vendored.lock has $2" >&2; exit 65; }
}

while read -r file sha384 package version integrity path; do
    archive="$work/$(tr -d @ <<<"$package" | tr / -)-$version.tgz"
    [ -f "$archive" ] || npm pack --silent --pack-destination "$work" "$package@$version" >"$work/log"
    require "$(hash_of sha512 "$archive")" "$integrity" "$package $version"
    tar -xzOf "$archive" "package/$path" >"$work/$file"
    require "$(hash_of sha384 "$work/$file")" "$sha384" "$file of $package $version"
    install -m 644 "$work/$file" "$file"
done <vendored.lock
echo "$(wc -l <vendored.lock) files are those of vendored.lock"
