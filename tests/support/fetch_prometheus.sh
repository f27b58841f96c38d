#!/bin/sh
# Puts promtool and prometheus of Debian's package into FOLDER: tests/support/fetch_prometheus.sh FOLDER. Needs apt, not root.
set -eu
into=$(cd "$1" && pwd)
command -v apt-get dpkg-deb > /dev/null || {
    echo "error: no promtool here, and no apt-get to fetch it: put promtool and prometheus on PATH" >&2
    exit 1
}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
mkdir -p "$work/lists/partial" "$work/cache/archives/partial"
cd "$work"
# Lists of its own: the system's may be missing or old, and only root may renew them.
apt() { apt-get -qq -o Dir::State::Lists="$work/lists" -o Dir::Cache="$work/cache" -o APT::Sandbox::User=root "$@"; }
apt update
apt download prometheus
dpkg-deb -x prometheus_*.deb "$work"
install -m 755 "$work/usr/bin/promtool" "$work/usr/bin/prometheus" "$into"
