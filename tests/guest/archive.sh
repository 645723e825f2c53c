# Unpacks archive.tar of the share on the share, lists it, compares it with the same archive
# unpacked in memory, and packs it again; then lets the host look, and removes everything.

cd /mnt || exit 1
mkdir tree /tmp/tree || exit 1
echo "unpacking"
# Through a pipe: tar itself reads 512 bytes at a time, each of them a message without a cache.
dd if=archive.tar bs=512k 2>/dev/null | tar -xpf - -C tree || exit 1
dd if=archive.tar bs=512k 2>/dev/null | tar -xpf - -C /tmp/tree || exit 1

echo "listing"
# Everything that must agree. A directory's size and link count are the file system's own affair,
# and busybox's tar restores neither a directory's time nor a symlink's owner and time.
list() {
    (
        cd "$1" || exit 1
        find . ! -type d ! -type l -exec stat -c '%A %h %u:%g %s %Y %N' {} + | sort
        find . -type l -exec stat -c '%A %h %s %N' {} + | sort
        find . -type d -exec stat -c '%A %u:%g %N' {} + | sort
    )
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
rm -r tree again.tar look-now || exit 1
[ "$(ls -A | sort | xargs)" = "archive.tar go-on" ] || { ls -lA && exit 1; }
