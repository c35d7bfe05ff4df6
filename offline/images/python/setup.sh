#!/bin/sh
# usage: setup.sh before|after ROOT
set -eu

before() {
    :
}

# The official image has Python in /usr/local/bin.
after() {
    ln -s /usr/bin/python3 "$1/usr/local/bin/python"
    ln -s /usr/bin/python3 "$1/usr/local/bin/python3"
}

"$1" "$2"
