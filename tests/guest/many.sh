# Finds all files below tree, which is more than the backend can have open.
mount_with() { # CACHE
    cd / || exit 1
    ! grep -q " /mnt 9p " /proc/mounts || umount /mnt || exit 1
    mount -t 9p -o "trans=virtio,version=9p2000.L,msize=512000,cache=$1" share /mnt || exit 1
    cd /mnt || exit 1
}
did() { echo "$1 after $(cut -d . -f 1 /proc/uptime) s"; }

mount_with none
/root/stress list tree >/tmp/list || exit 1
cp /tmp/list listed-none || exit 1
did 'listed without a cache'
# Each name is looked up and the file asked for here: three messages a file, so only some.
find tree/06* tree/16* -type f >/tmp/list || exit 1
cp /tmp/list found-none || exit 1
did 'found some without a cache'

mount_with loose
# The client keeps a fid for each of them.
find tree -type f >/tmp/list || exit 1
did 'found with a cache'
/root/stress list tree >/tmp/again || exit 1
cp /tmp/list found-loose && cp /tmp/again listed-loose || exit 1
# By the fids that it kept: those of long ago, whose descriptors the backend gave up, and others.
for dir in tree/*; do
    for file in 000 499 999; do
        [ "$(cat "$dir/file-$file")" = "$dir/file-$file" ] || { echo "$dir/file-$file is something else" && exit 1; }
    done
done
did 'read some'
