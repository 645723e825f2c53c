# Never ends by itself: the guest is killed while it is at this.
while :; do
    dd if=/dev/zero of=/mnt/busy bs=1M count=20 2>/dev/null
    find /mnt >/dev/null
    echo round >>/mnt/rounds
done
