#!/bin/sh
# Run a command where there is no /dev/kvm: in a mount namespace of its own whose /dev has the usual devices, but not that
# one. Nothing of the host's changes. Needs root.
#
#     tools/without_kvm.sh python -m pytest
set -eu
exec unshare --mount sh -euc '
    mount --make-rprivate /
    new=$(mktemp -d)
    mount -t tmpfs -o mode=755 none "$new"
    for device in null zero full random urandom tty; do
        touch "$new/$device"
        mount --bind "/dev/$device" "$new/$device"
    done
    mkdir "$new/pts" "$new/shm"
    mount -t devpts -o newinstance,ptmxmode=666 none "$new/pts"
    mount -t tmpfs none "$new/shm"
    ln -s pts/ptmx "$new/ptmx"
    for link in fd:fd stdin:fd/0 stdout:fd/1 stderr:fd/2; do
        ln -s "/proc/self/${link#*:}" "$new/${link%%:*}"
    done
    mount --move "$new" /dev
    rmdir "$new"
    exec "$@"
' sh "$@"
