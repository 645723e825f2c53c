# Writes, reads and compares until it is told to stop, while the virtual machine is stopped and continued. Each round's
# line is appended; another process waits for a lock that the host holds.

cd /mnt || exit 1
/root/stress count counted guest fcntl 1 guest &
waiter=$!

round=0
while [ ! -e enough ]; do
    round=$((round + 1))
    dd if=/dev/urandom of=/tmp/block bs=64k count=8 2>/dev/null
    cat /tmp/block >block || exit 1
    cmp /tmp/block block || exit 1
    mkdir dir && ln block dir/second && mv dir/second dir/third && cmp /tmp/block dir/third && rm -r dir || exit 1
    echo "round $round" >>rounds || exit 1
done
wait $waiter || exit 1
[ "$(wc -l <rounds)" -eq $round ]
