#!/bin/sh
# Puts the programs that the tests need and PyPI lacks into FOLDER: tests/support/fetch_debian.sh FOLDER
# With colin27 as a second argument, puts the file of that brain template there instead.
# Programs on PATH are linked. The others come out of Debian's packages, which are not installed. Needs apt for that, not root.
set -eu
into=$(cd "$1" && pwd -P)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# tools "PACKAGE [PACKAGE...]" PROGRAM...: programs that belong together, and the packages with them and their libraries.
tools() {
    packages=$1
    shift
    present "$@" || link "$@" || {
        fetch "$packages"
        keep "$@"
    }
}

present() {
    for program; do
        [ -x "$into/$program" ] || return 1
    done
}

# All or none: programs of two releases may not work together.
link() {
    for program; do
        command -v "$program" > /dev/null || return 1
    done
    for program; do
        ln -sf "$(command -v "$program")" "$into/$program"
    done
}

# Lists of its own: the system's may be missing or old, and only root may renew them.
apt() {
    tool="apt-$1"
    shift
    "$tool" -qq -o Dir::State::Lists="$work/lists" -o Dir::Cache="$work/cache" -o APT::Sandbox::User=root "$@"
}

lists() {
    [ ! -d "$work/lists" ] || return 0
    command -v apt-get dpkg-deb > /dev/null || {
        echo "error: no $program here, and no apt-get to fetch it: put it on PATH" >&2
        exit 1
    }
    chmod 755 "$work"
    mkdir -p "$work/lists/partial" "$work/cache/archives/partial"
    apt get update
}

fetch() {
    folder="$work/${1%% *}"
    [ ! -d "$folder" ] || return 0
    lists
    echo "fetching Debian's ${1%% *} for its $program ..."
    mkdir "$folder"
    # shellcheck disable=SC2086 # a list of names
    (cd "$folder" && apt get download $1 && for package in *.deb; do dpkg-deb -x "$package" .; done)
}

# Programs that bring libraries or plugins get a folder for all of them, and scripts that show them the way.
keep() {
    libraries=$(find "$folder" -path '*/lib/*' -name '*.so*')
    together="$into/${packages%% *}.debian"
    # shellcheck disable=SC2086 # a list of names
    [ -z "$libraries" ] || { mkdir -p "$together" && cp -P $libraries "$together"; }
    for program; do
        found=$(find "$folder"/usr/*bin -name "$program" -o -name "$program-wlm") # Debian's suffix for daemons of SLURM
        if [ -z "$libraries" ]; then
            install -m 755 "$found" "$into"
        else
            cp "$found" "$together/$program"
            script "$program"
        fi
    done
}

script() {
    printf '#!/bin/sh\nLD_LIBRARY_PATH="%s" %s exec "%s" "$@"\n' "$together" "${2-}" "$together/$1" > "$into/$1"
    chmod 755 "$into/$1"
}

# A browser that draws pages without a screen, under this one name: any Chromium does. Debian's brings data and a font
# of its own, so that pages look alike wherever they are drawn, and those of its libraries that this machine lacks.
browser() {
    program=chromium-headless-shell
    ! present "$program" || return 0
    for here in $program chromium chromium-browser google-chrome; do
        if command -v "$here" > /dev/null; then
            ln -sf "$(command -v "$here")" "$into/$program"
            return
        fi
    done
    lists
    # Only libraries: chromium-common, the other kind of package among them, would bring drivers of screens, 500 MB.
    needs=$(apt cache depends "$program" | sed -n 's/^ *Depends: \(lib.*\)/\1/p')
    # shellcheck disable=SC2086 # a list of names
    plan=$(apt get install --simulate --no-install-recommends --no-upgrade $needs)
    packages="$program chromium-common fonts-dejavu-core $(echo "$plan" | sed -n 's/^Inst \([^ ]*\) .*/\1/p')"
    fetch "$packages"
    keep
    cp -r "$folder"/usr/lib/chromium/. "$folder"/usr/share/fonts/truetype/dejavu "$together"
    sed "s|FOLDER|$together|" "$(dirname "$0")/fonts.conf" > "$together/fonts.conf"
    script "$program" "FONTCONFIG_FILE=\"$together/fonts.conf\""
}

colin27() {
    [ ! -f "$into/ch2better.nii.gz" ] || return 0
    program=template
    fetch mricron-data
    install -m 644 "$folder/usr/share/mricron/templates/ch2better.nii.gz" "$into"
}

# Not in a list of commands with && or ||, where a failure would not end the script.
if [ "${2-}" = colin27 ]; then
    colin27
    exit
fi
tools prometheus promtool prometheus
tools dicom3tools dciodvfy dcentvfy
tools "haproxy liblua5.3-0 libopentracing-c-wrapper0 libopentracing1" haproxy
tools "socat libwrap0" socat
tools "jq libjq1 libonig5" jq
tools "libsixel-bin libsixel1" sixel2png
# What runs a cluster, and what its users type.
tools "slurmctld slurmd slurm-client slurm-wlm-basic-plugins munge libmunge2 libhwloc15 libnuma1" \
    munged mungekey slurmctld slurmd slurmstepd sbatch scancel scontrol squeue
browser
