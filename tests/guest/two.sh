# One of two guests on one directory; the share's tag is this one's name. Both do the same at once,
# and the host takes part where it says so.
name=$(tr -d '\0' <"$(echo /sys/bus/virtio/drivers/9pnet_virtio/*/mount_tag)")
# All begin at once, or nothing contends.
meet() { # WHERE
    touch "$1-$name"
    tries=0
    while [ ! -e "$1-one" ] || [ ! -e "$1-two" ]; do
        tries=$((tries + 1))
        [ $tries -lt 6000 ] || { echo "the other one does not come to $1" && exit 1; }
        sleep 0.1
    done
    echo "$name at $1 after $(cut -d ' ' -f 1 /proc/uptime) s"
}

mount -t 9p -o "trans=virtio,version=9p2000.L,msize=512000,cache=none" "$name" /mnt && cd /mnt || exit 1
meet locks
/root/stress count counted-by-fcntl "$name" fcntl 60 one,two,host || exit 1
/root/stress count counted-by-flock "$name" flock 60 one,two || exit 1

meet writes
/root/stress append appended "$name" 300 || exit 1
case $name in one) writer=0 ;; two) writer=1 ;; esac
/root/stress write written $writer 2 || exit 1

# SQLite in its default mode, a rollback journal, which relies on locks and on fsync.
rows() { sqlite3 -bail -cmd ".timeout 600000" rows "$@"; }
meet rows
rows '
    create table if not exists entries (guest, n, filling);
    create table if not exists sums (total);' || exit 1
meet rows-created
[ "$name" != one ] || rows 'insert into sums values (0)' || exit 1
meet rows-begun
# Transactions of one statement, of several, some that read before they write and some taken back.
n=0
while [ $n -lt 120 ]; do
    echo "insert into entries values ('$name', $n, hex(zeroblob($((n * 97 % 700)))));"
    n=$((n + 1))
    echo "begin immediate; insert into entries values ('$name', $n, 'x');"
    echo "update sums set total = total + (select max(n) from entries where guest = '$name'); commit;"
    [ $((n % 10)) -ne 1 ] || echo "begin immediate; delete from entries; update sums set total = -1; rollback;"
    n=$((n + 1))
done >/tmp/rows
rows </tmp/rows || exit 1
# And connections that come and go.
while [ $n -lt 124 ]; do
    rows "insert into entries values ('$name', $n, 'y')" || exit 1
    n=$((n + 1))
done
meet rows-done
rows "
    select 'rows: integrity ' || integrity_check from pragma_integrity_check;
    select 'rows: journal ' || journal_mode from pragma_journal_mode;
    select 'rows: ' || guest || ' ' || count(*) || ' ' || count(distinct n) || ' ' || min(n) || ' ' || max(n)
        from entries group by guest order by guest;
    select 'rows: total ' || total from sums;" || exit 1
