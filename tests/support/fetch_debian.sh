#!/bin/sh
# Puts the programs that the tests need and PyPI lacks into FOLDER: tests/support/fetch_debian.sh FOLDER
# Those on PATH are linked. The others come out of Debian's packages, which are not installed. Needs apt for that, not root.
set -eu
into=$(cd "$1" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# tools "PACKAGE [LIBRARY...]" PROGRAM...: programs of a package, which may need shared libraries of other packages.
tools() {
    packages=$1
    shift
    for program; do
        [ -x "$into/$program" ] || link "$program" || {
            fetch "$packages"
            keep "$program"
        }
    done
}

link() {
    found=$(command -v "$1") && ln -sf "$found" "$into/$1"
}

# Lists of its own: the system's may be missing or old, and only root may renew them.
apt() { apt-get -qq -o Dir::State::Lists="$work/lists" -o Dir::Cache="$work/cache" -o APT::Sandbox::User=root "$@"; }

fetch() {
    folder="$work/${1%% *}"
    [ ! -d "$folder" ] || return 0
    command -v apt-get dpkg-deb > /dev/null || {
        echo "error: no $program here, and no apt-get to fetch it: put it on PATH" >&2
        exit 1
    }
    echo "fetching Debian's ${1%% *} for its $program ..."
    if [ ! -d "$work/lists" ]; then
        chmod 755 "$work"
        mkdir -p "$work/lists/partial" "$work/cache/archives/partial"
        apt update
    fi
    mkdir "$folder"
    # shellcheck disable=SC2086 # a list of names
    (cd "$folder" && apt download $1 && for package in *.deb; do dpkg-deb -x "$package" .; done)
}

# A program that brings libraries gets a folder for both, and a script that shows it the way to them.
keep() {
    libraries=$(find "$folder" -name 'lib*.so*')
    if [ -z "$libraries" ]; then
        install -m 755 "$folder/usr/bin/$1" "$into"
        return
    fi
    mkdir -p "$into/$1.debian"
    # shellcheck disable=SC2086 # a list of names
    cp -P "$folder/usr/bin/$1" $libraries "$into/$1.debian"
    printf '#!/bin/sh\nLD_LIBRARY_PATH="%s" exec "%s" "$@"\n' "$into/$1.debian" "$into/$1.debian/$1" > "$into/$1"
    chmod 755 "$into/$1"
}

tools prometheus promtool prometheus
tools dicom3tools dciodvfy dcentvfy
tools "jq libjq1 libonig5" jq
