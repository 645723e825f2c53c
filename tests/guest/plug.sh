# The share is unplugged while it is mounted and busy, and plugged in again twice. What the host says and hears are files
# on the other share, which stays.

options=trans=virtio,version=9p2000.L,msize=512000
mkdir -p /table
mount -t 9p -o $options table /table || exit 1

wait_for() {
    until [ -e /table/$1 ]; do sleep 0.1; done
}

# At work on the share: a file that grows, and a lock.
busy() {
    cd /mnt || exit 1
    exec 3>>plugged
    /root/calls flock 3 || exit 1
    while [ ! -e /table/unmounting ]; do
        dd if=/dev/urandom of=/tmp/block bs=64k count=4 2>/dev/null
        cat /tmp/block >block && cmp /tmp/block block || exit 1
    done
}

mount -t 9p -o $options share /mnt || exit 1
echo 0 >/mnt/plugged
busy &
busy=$!
until [ -s /mnt/block ]; do kill -0 $busy || exit 1; sleep 0.1; done
touch /table/busy
wait_for unplugged
# It goes on as if nothing were.
sleep 1
kill -0 $busy || exit 1
echo still here >/mnt/file && [ "$(cat /mnt/file)" = "still here" ] || exit 1
touch /table/unmounting
wait $busy || exit 1
wait_for unmount
umount /mnt || exit 1

for round in 1 2; do
    wait_for plugged-$round
    # The guest sees a new device when it gets to it.
    tries=0
    until mount -t 9p -o $options share /mnt 2>/dev/null; do
        tries=$((tries + 1))
        [ $tries -lt 300 ] || exit 1
        sleep 0.1
    done
    exec 3>>/mnt/plugged
    /root/calls flock 3 || exit 1
    echo $round >&3
    exec 3>&-
    cat /tmp/block >/mnt/block && cmp /tmp/block /mnt/block || exit 1
    umount /mnt || exit 1
    touch /table/unmounted-$round
done
