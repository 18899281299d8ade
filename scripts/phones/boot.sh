#!/usr/bin/env bash
# The first process of an emulated phone, in namespaces of its own: lays memory over the root file system that all
# phones share, shows in it the cores of a phone, and runs a command there.
# boot.sh HOME KIND SHARED_FOLDER COMMAND...
set -euo pipefail
home=$1 kind=$2 shared=$3
shift 3

mount -t tmpfs phone "$home/phone"
mkdir "$home/phone"/{changes,work,root}
root=$home/phone/root
mount -t overlay phone -o "lowerdir=$home/root,upperdir=$home/phone/changes,workdir=$home/phone/work" "$root"

mount -t proc proc "$root/proc"
mount --bind "$home/$kind/cpuinfo" "$root/proc/cpuinfo"
cp -r "$home/$kind/sys/." "$root/sys"
mount -t tmpfs devices "$root/dev"
for device in null zero full random urandom; do
  touch "$root/dev/$device"
  mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir "$root/dev/shm"
ln -s /proc/self/fd "$root/dev/fd"

mkdir -p "$root/shared" "$root/root/.cache/pocl"
mount --bind "$home/$kind/pocl" "$root/root/.cache/pocl"
[ -z "$shared" ] || mount --bind "$shared" "$root/shared"

exec chroot "$root" /usr/bin/env -i PATH=/usr/local/bin:/usr/bin:/bin HOME=/root QEMU_CPU="$kind" \
  POCL_MAX_PTHREAD_COUNT=2 PYTHONUNBUFFERED=1 "$@"
