#!/bin/sh
# Makes a root file system from Debian's packages: this host's apt fetches them, so its mirrors, proxy and certificates
# are used, and none of them stays in the image.
# usage: build.sh SUITE RECIPE TAR PACKAGES [SOURCES]
#   RECIPE is a folder with a setup.sh, PACKAGES are separated by commas. With SOURCES, apt's sources.list is read from
#   stdin: a mirror's address may have a password in it, and arguments are everybody's to read.
set -eu

# Prints the proxies and certificates that apt uses here, as mmdebstrap takes them.
apt_options() {
    apt-config dump --format '%f "%v";%n' | grep -iE '^Acquire::https?::' | grep -v ' "";$' || true
}

main() {
    suite=$1
    recipe=$2
    tar=$3
    packages=$4
    # Root's apt may know a proxy with a password. What another user's apt knows is everybody's, and mmdebstrap, which
    # is not that user while it builds, has to read it.
    (
        umask 022
        [ "$(id -u)" != 0 ] || umask 077
        apt_options >"$tar.apt"
    )
    # Only what the packages themselves need: no apt, no documentation, no translations, no logs of the installation.
    # shellcheck disable=SC2016 # $1 is the hook's
    mmdebstrap --variant=essential \
        --include="$packages" \
        --aptopt='Acquire::Languages "none"' --aptopt='Acquire::Retries "3"' --aptopt="$tar.apt" \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' \
        --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/man/*' \
        --essential-hook="sh '$recipe/setup.sh' before \"\$1\"" \
        --customize-hook="sh '$recipe/setup.sh' after \"\$1\"" \
        --customize-hook='rm -rf "$1"/etc/apt/sources.list* "$1/etc/apt/apt.conf.d/99mmdebstrap" "$1"/var/log/*' \
        --customize-hook='rm -f "$1/etc/resolv.conf" "$1/etc/hostname"' \
        "$suite" "$tar" ${5:+-}
}

main "$@"
