# What the host cannot do must reach the program in the guest that asked for it. "small" has room for
# 1 MiB, "short" files of at most 256 KiB. In each of the others is one file: in "quota" it is not to
# be written, in "disk" neither that nor read, and in "lost" fsync says what became of writes.
shares=$(cat /sys/bus/virtio/drivers/9pnet_virtio/*/mount_tag | tr '\0' ' ')
failures=0
failed() { echo "FAILED - $cache: $*" && failures=$((failures + 1)); }
fails_with() { # MESSAGE COMMAND...
    message=$1
    shift
    if "$@" 2>/tmp/why; then failed "$*: succeeded in place of '$message'" && return 1; fi
    grep -q "$message" /tmp/why || { cat /tmp/why && failed "$*: not '$message'" && return 1; }
    echo "ok - $cache: '$message' for $*"
}
zeros() { dd if=/dev/zero conv=fsync "$@"; }
# Without a cache the error comes with the write itself; what was written before it is there and counted.
counted() { # FILE
    [ "$cache" = none ] || return
    told=$(sed -n 's/^\([0-9]*\)+\([0-9]*\) records out$/\1/p' /tmp/why)
    [ $((told * 1000)) -le "$(stat -c %s "$1")" ] || failed "$told blocks were told to be written and $(stat -c %s "$1") bytes are there"
    [ "$told" -gt 100 ] || failed "only $told blocks were written to $1"
}

seq 1 80000 >/tmp/numbers
seq 1 300000 >/tmp/many
caches='none mmap loose'
# This client, without a cache, sends a write of several pages in as many messages, and when one of
# them fails it sends the rest to where the write began, whatever the server says; 7.3 does not.
case $(uname -r) in 6.12.*) caches='mmap loose' ;; esac
for cache in $caches; do
    for share in $shares; do
        mkdir -p /$share && mount -t 9p -o "trans=virtio,version=9p2000.L,msize=512000,cache=$cache" $share /$share || failed mount
    done

    fails_with 'No space left on device' zeros of=/small/full bs=1000 count=3000
    counted /small/full
    rm /small/full
    fails_with 'No space left on device' dd if=/tmp/many of=/small/numbers bs=4096 conv=fsync
    head -c "$(stat -c %s /small/numbers)" /tmp/many | cmp - /small/numbers || failed 'what was written before the disk was full is something else'
    fails_with 'No space left on device' zeros of=/small/no-more bs=65536 count=1
    rm /small/numbers /small/no-more
    zeros of=/small/fits bs=1000 count=500 2>/tmp/why || failed "room was made, and still: $(cat /tmp/why)"
    rm /small/fits

    fails_with 'File too large' zeros of=/short/long bs=1000 count=400
    counted /short/long
    [ "$(stat -c %s /short/long)" -le 262144 ] || [ "$cache" != none ] || failed 'the file is longer than the limit'
    fails_with 'File too large' truncate -s 300000 /short/longer
    # Each byte is where it belongs, or nowhere: a client that is told of half a write tries the rest
    # again, and Linux's sends that to where the whole began.
    fails_with 'File too large' dd if=/tmp/numbers of=/short/numbers bs=4096 conv=fsync
    head -c "$(stat -c %s /short/numbers)" /tmp/numbers | cmp - /short/numbers || failed 'what was written before the limit is something else'
    zeros of=/short/exact bs=262144 count=1 2>/tmp/why || failed "a file as long as the limit: $(cat /tmp/why)"
    rm /short/*

    if [ -e /quota ]; then
        fails_with 'Disk quota exceeded' zeros of=/quota/file bs=5000 count=1 conv=fsync,notrunc
        fails_with 'Input/output error' cat /disk/file
        fails_with 'Input/output error' zeros of=/disk/file bs=5000 count=1 conv=fsync,notrunc
        fails_with 'Input/output error' zeros of=/lost/file bs=5000 count=1 conv=fsync,notrunc
    fi

    for share in $shares; do umount /$share || failed "umount /$share"; done
done
[ $failures -eq 0 ]
