# Copies a large file each way. The checksums printed here are compared on the host.

cd /mnt || exit 1
cp to-the-guest /tmp/copy || exit 1
echo "sum of what came: $(sha256sum </tmp/copy)"
cp /tmp/copy from-the-guest || exit 1
rm /tmp/copy
# And one that the host has never seen.
dd if=/dev/urandom of=/tmp/new bs=1M count=64 2>/dev/null || exit 1
echo "sum of what is new: $(sha256sum </tmp/new)"
dd if=/tmp/new of=new-from-the-guest bs=300007 2>/dev/null || exit 1
sync
