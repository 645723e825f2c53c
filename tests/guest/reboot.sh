# Runs three times on one backend: in a guest, after that guest's reboot, and after another.

boots=$(($(cat /mnt/boots 2>/dev/null || echo 0) + 1))
echo $boots >/mnt/boots
echo "boot $boots"
if [ $boots -lt 3 ]; then
    # The device is also taken from its driver and given back, which resets it without a reboot.
    umount /mnt
    device=$(basename "$(echo /sys/bus/virtio/drivers/9pnet_virtio/virtio*)")
    echo "$device" >/sys/bus/virtio/drivers/9pnet_virtio/unbind
    echo "$device" >/sys/bus/virtio/drivers/9pnet_virtio/bind
    mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000 share /mnt || exit 1
    [ "$(cat /mnt/boots)" = $boots ] || exit 1
    # With a file open and another unlinked, as a crash finds things.
    exec 3>/mnt/left-open
    echo text >&3
    reboot -f
fi
rm -f /mnt/left-open
