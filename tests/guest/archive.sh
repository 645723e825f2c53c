# Unpacks archive.tar of the share on the share, lists it, compares it with the same archive
# unpacked in memory, and packs it again; then lets the host look, and removes everything.

# Unpacking and removing are done with the client's cache and all else without it: what was cached
# must have reached the host, and busybox's tar, which makes sure of a file's every parent before it
# makes the file, would need 140 messages for each.
mount_with() { # CACHE
    cd / || exit 1
    ! grep -q " /mnt 9p " /proc/mounts || umount /mnt || exit 1
    mount -t 9p -o "trans=virtio,version=9p2000.L,msize=512000,cache=$1" share /mnt || exit 1
    cd /mnt || exit 1
}

mount_with loose
mkdir tree /tmp/tree || exit 1
echo "unpacking"
# Through a pipe: tar itself reads 512 bytes at a time, each of them a message without a cache.
dd if=archive.tar bs=512k 2>/dev/null | tar -xpf - -C tree || exit 1
dd if=archive.tar bs=512k 2>/dev/null | tar -xpf - -C /tmp/tree || exit 1

mount_with none
echo "listing"
# Everything that must agree. A directory's size and link count are the file system's own affair,
# and busybox's tar restores neither a directory's time nor a symlink's owner and time.
list() {
    (cd "$1" && find . -exec stat -c '%A %u:%g %h %s %Y %N' {} +) |
        sed -e 's/^\(d[^ ]* [^ ]*\) [^ ]* [^ ]* [^ ]*/\1/' -e 's/^\(l[^ ]*\) [^ ]* \([^ ]* [^ ]*\) [^ ]*/\1 \2/' | sort
}
list tree >/tmp/on-the-share
list /tmp/tree >/tmp/in-memory
diff /tmp/in-memory /tmp/on-the-share || { echo "the listings differ" && exit 1; }
echo "$(wc -l </tmp/on-the-share) entries"

echo "comparing"
diff -r /tmp/tree tree || { echo "the contents differ" && exit 1; }

echo "packing"
tar -cf - -C tree . | dd of=again.tar bs=512k 2>/dev/null || exit 1

echo "waiting for the host"
sync
touch look-now
n=0
while [ ! -e go-on ]; do
    n=$((n + 1))
    [ $n -lt 1200 ] || { echo "the host does not go on" && exit 1; }
    sleep 0.1
done

echo "removing"
mount_with loose
rm -r tree again.tar look-now || exit 1
[ "$(ls -A | sort | xargs)" = "archive.tar go-on" ] || { ls -lA && exit 1; }
