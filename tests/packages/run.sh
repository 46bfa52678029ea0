#!/bin/sh
# usage: run.sh FOLDER MODEL.gguf
#
# A newcomer's path with the Debian packages, under a real systemd: builds them, installs them in a fresh Debian 12 root
# (made in FOLDER with debootstrap, kept for the next run), boots it, edits two lines, starts, ingests, fetches; then an
# upgrade while clients fetch, a removal and a purge. As root, with debootstrap and network; some three minutes, and 600 MB.
# SAMKV_APT_CONF: a folder whose files the root's apt needs (proxies), if any.
# shellcheck disable=SC2016 # what stands in single quotes is expanded inside the root
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
top=$(CDPATH='' cd -- "$here/../.." && pwd)
folder=$1
model=$2
root=$folder/root
pid=

die() {
    echo "FAILED: $*" >&2
    exit 1
}
stop() { [ -z "$pid" ] || kill -9 "$pid" 2>/dev/null || true; }
trap stop EXIT
inside() { nsenter -t "$pid" -m -p -u -i -C -r -w "$@"; }
check() { # check WHAT COMMAND...: inside
    what=$1
    shift
    inside "$@" >"$folder/out" 2>&1 || {
        cat "$folder/out" >&2
        die "$what"
    }
    echo "ok: $what"
}

echo "== packages"
(cd "$top" && cmake --preset package && cmake --build build/package) >"$folder/build.log" 2>&1 || die "see $folder/build.log"
version=$(sed -n 's/^set(CPACK_PACKAGE_VERSION "\(.*\)")/\1/p' "$top/build/package/CPackConfig.cmake")
machine=$(dpkg --print-architecture)
(cd "$top/build/package" && rm -rf packages && cpack && cpack -D CPACK_PACKAGE_VERSION="$version.1") >>"$folder/build.log" 2>&1 ||
    die "see $folder/build.log"

echo "== root"
[ -e "$root/etc/debian_version" ] ||
    debootstrap --variant=minbase --include=systemd,systemd-sysv,ca-certificates bookworm "$root" http://deb.debian.org/debian >"$folder/debootstrap.log"
[ -z "${SAMKV_APT_CONF:-}" ] || cp "$SAMKV_APT_CONF"/* "$root/etc/apt/apt.conf.d/"
mkdir -p "$root/packages" "$root/srv"
rm -f "$root"/packages/*
cp "$top"/build/package/packages/*.deb "$root/packages/"
cp "$model" "$root/srv/model.gguf"
chroot "$root" sh -c 'dpkg --purge samkvd libsamkv1 >/dev/null 2>&1; apt-get update -qq; rm -rf /etc/systemd/system/samkvd.service.d'

unshare -m -p -f -u -i -C --kill-child "$here/boot.sh" "$root" >"$folder/boot.log" 2>&1 &
for _ in 1 2 3 4 5 6 7 8 9 10; do
    sleep 1
    pid=$(pgrep -of '^/lib/systemd/systemd --log-target=console') && inside systemctl is-system-running >/dev/null 2>&1 && break
done
check "systemd runs" systemctl is-system-running

echo "== a newcomer"
files_of() { echo "/packages/samkvd_$1_$machine.deb /packages/libsamkv1_$1_$machine.deb"; }
old=$(files_of "$version")
new=$(files_of "$version.1")
# shellcheck disable=SC2086 # a list of files
check "install" apt-get install -y -q --no-install-recommends $old
check "two lines" sed -i 's|^;store-max-bytes = .*|store-max-bytes = 2G|; s|^;smollm2 = .*|smollm2 = /srv/model.gguf|' /etc/samkv/samkvd.conf
# Not every container lets systemd make device files; the rest of the unit stays as it is.
if ! inside systemctl start samkvd 2>/dev/null; then
    echo "note: PrivateDevices=yes cannot be had here; trying without"
    mkdir -p "$root/etc/systemd/system/samkvd.service.d"
    printf '[Service]\nPrivateDevices=no\n' >"$root/etc/systemd/system/samkvd.service.d/here.conf"
    inside systemctl daemon-reload
    inside systemctl reset-failed samkvd
fi
check "start" systemctl start samkvd
check "ingest" sh -c 'mkdir -p /root/docs && for i in 1 2 3; do echo "Document $i says: the number of house $i is 4$i." >/root/docs/$i.txt; done; samkvctl ingest /root/docs'
check "fetch" samkvctl fetch --docs 1.txt,2.txt,3.txt --query "Which number?" --out /tmp/cache.safetensors
check "reload" systemctl reload samkvd
check "the socket keeps clients over a restart" sh -c 'systemctl stop samkvd && systemctl enable --now samkvd.socket && samkvctl ls && systemctl restart samkvd && samkvctl ls'
check "others may not" sh -c '! runuser -u nobody -- samkvctl ping'
check "manuals are there" sh -c 'for p in man1/samkvctl.1 man8/samkvd.8 man5/samkvd.conf.5; do test -s /usr/share/man/$p; done'

echo "== an upgrade while clients fetch"
cat >"$root/srv/load.sh" <<'END'
sum=
while [ ! -e /tmp/enough ]; do
    samkvctl fetch --docs 1.txt,2.txt,3.txt --query "Which number?" --out "/tmp/l$1" >/dev/null 2>>"/tmp/errors$1" || { echo x >>"/tmp/failed"; continue; }
    now=$(sha256sum <"/tmp/l$1")
    [ -z "$sum" ] || [ "$sum" = "$now" ] || echo x >>/tmp/wrong
    sum=$now
    echo x >>"/tmp/done$1"
done
END
inside sh -c 'rm -f /tmp/enough; for i in 1 2 3 4; do sh /srv/load.sh $i & done; sleep 3'
# shellcheck disable=SC2086
check "upgrade" dpkg -i $new
check "load ends" sh -c 'sleep 3; touch /tmp/enough; sleep 2'
inside sh -c 'echo "fetches: $(cat /tmp/done* | wc -l), wrong answers: $(cat /tmp/wrong 2>/dev/null | wc -l), failed: $(cat /tmp/failed 2>/dev/null | wc -l)"; cat /tmp/errors* | sort | uniq -c'
check "no wrong answer" test ! -e /tmp/wrong
check "no client was refused" test ! -e /tmp/failed
check "the new one serves" sh -c 'dpkg-query -W -f "\${Version}" samkvd | grep -q "[.]1$" && systemctl is-active samkvd && samkvctl ls | grep -q 3.txt'

echo "== away again"
check "remove" dpkg --remove samkvd
check "the store is still there" test -s /var/lib/samkv/data.mdb
check "purge" dpkg --purge samkvd
check "nothing is left" sh -c '! ls -d /var/lib/samkv /etc/samkv /run/samkv /usr/sbin/samkvd /usr/bin/samkvctl 2>/dev/null'
echo "all passed"
