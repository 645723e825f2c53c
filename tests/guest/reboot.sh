# Runs three times on one backend: in a guest, in the kernel that it boots by kexec or a reboot, and in another guest.

boots=$(($(cat /mnt/boots 2>/dev/null || echo 0) + 1))
echo $boots >/mnt/boots
echo "boot $boots"
# The kernel before this one held a lock, and left a file open that has no name any more.
exec 3>/mnt/left-open
/root/calls flock 3 || exit 1
if [ $boots -lt 4 ]; then
    # The device is also taken from its driver and given back, which resets it without a reboot.
    exec 3>&-
    umount /mnt
    device=$(basename "$(echo /sys/bus/virtio/drivers/9pnet_virtio/virtio*)")
    echo "$device" >/sys/bus/virtio/drivers/9pnet_virtio/unbind
    echo "$device" >/sys/bus/virtio/drivers/9pnet_virtio/bind
    mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000 share /mnt || exit 1
    [ "$(cat /mnt/boots)" = $boots ] || exit 1
    # As a crash finds things.
    exec 3>/mnt/left-open
    /root/calls flock 3 || exit 1
    exec 4>/mnt/unlinked-$boots
    rm /mnt/unlinked-$boots
    echo text >&4
    if [ $boots = 2 ]; then
        /root/calls kexec /boot/vmlinuz /boot/initramfs
        exit 1
    fi
    reboot -f
fi
rm -f /mnt/left-open
