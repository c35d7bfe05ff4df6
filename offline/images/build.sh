#!/bin/sh
# Builds a root file system from Debian's packages. This host's apt downloads them, with its mirrors, proxy and
# certificates; none of these settings stays in the image.
# usage: build.sh SUITE RECIPE TAR PACKAGES [SOURCES]
#   RECIPE is a folder with a setup.sh. PACKAGES are separated by commas. With SOURCES, apt's sources.list comes from
#   stdin: a mirror's address can contain a password, and every user can read arguments.
set -eu

# Prints this host's apt settings for proxies and certificates, in mmdebstrap's format.
apt_options() {
    apt-config dump --format '%f "%v";%n' | grep -iE '^Acquire::https?::' | grep -v ' "";$' || true
}

main() {
    suite=$1
    recipe=$2
    tar=$3
    packages=$4
    # As root: apt's proxy may have a password, so only root may read this file. As another user: apt's settings are
    # readable by everybody anyway, and mmdebstrap, which builds as yet another user, has to read the file.
    (
        umask 022
        [ "$(id -u)" != 0 ] || umask 077
        apt_options >"$tar.apt"
    )
    # Only the packages and their dependencies: no apt, no documentation, no translations, no installation logs.
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
