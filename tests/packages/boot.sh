#!/bin/sh
# usage: boot.sh ROOT. Boots the systemd of a root directory in namespaces of its own; ends with it. As root.
# For machines where systemd-nspawn cannot be had, such as containers.
set -eu
root=$1
mount --make-rprivate /
mount --bind "$root" "$root"
for at in run tmp; do mount -t tmpfs tmpfs "$root/$at"; done
mount -t sysfs sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t proc proc "$root/proc"
mount -t tmpfs -o mode=755 dev "$root/dev"
for device in null zero full random urandom tty; do
    : >"$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir -p "$root/dev/pts" "$root/dev/shm" "$root/mnt/old"
mount -t devpts devpts "$root/dev/pts"
mount -t tmpfs shm "$root/dev/shm"
ln -s /proc/self/fd "$root/dev/fd"
cd "$root"
pivot_root . mnt/old
cd /
exec chroot . sh -c 'umount -l /mnt/old; exec env container=plain /lib/systemd/systemd --log-target=console --log-level=warning'
