# Programs that ask much of a file system, once for each way the client can cache.
failed() { echo "FAILED - $cache: $*" && exit 1; }
is() { [ "$1" = "$2" ] || failed "$3: $1 in place of $2"; }
took() { echo "ok - $cache: $1, $(($(cut -d . -f 1 /proc/uptime) - began)) s" && began=$(cut -d . -f 1 /proc/uptime); }
mount_share() {
    mount -t 9p -o "trans=virtio,version=9p2000.L,msize=512000,cache=$cache" share /mnt || failed mount
    cd "/mnt/$cache" || failed cd
}
remount() { cd / && umount /mnt && mount_share; }

# Always the same seed, so that a failure can be had again.
exerciser() {
    # Smaller steps in a smaller file: as many meetings of two of them, in a fraction of the time.
    sed -e 's/^flen.*/flen = 131072/' -e 's/^max.*/max = 20000/' /root/fsx.toml >/tmp/fsx.toml
    # Without a page cache the client refuses every shared mapping of a file open for writing.
    [ "$cache" != none ] || sed -i 's/^map\(.*\) = .*/map\1 = 0/' /tmp/fsx.toml
    /root/fsx -q -q -f /tmp/fsx.toml -S 5 -N 20000 fsx.data >/tmp/fsx 2>&1 || { tail -n 30 /tmp/fsx && failed fsx; }
    rm fsx.data*
}

writers() {
    mkdir writers && /root/stress concurrent writers || failed 'concurrent writers'
    remount
    # What the guest's cache held must be what the server has.
    /root/stress verify writers/owned 4 owned && /root/stress verify writers/scribbled 4 any &&
        /root/stress appended writers/appended 150 writer-0,writer-1,writer-2,writer-3 || failed 'concurrent writers, looked at again'
}

# Connections of one guest; those of another would need cache=none.
sqlite() { sqlite3 -bail -cmd '.timeout 600000' database "$@"; }
database() {
    sqlite 'create table entries (process, n)' || failed 'sqlite: create'
    for process in 1 2 3; do
        i=0
        while [ $i -lt 30 ]; do
            echo "begin immediate; insert into entries values ($process, $i); insert into entries values ($process, -1);"
            echo "delete from entries where n = -1 and process = $process; commit;"
            i=$((i + 1))
        done >/tmp/$process.sql
    done
    { sqlite </tmp/1.sql && touch /tmp/1.done; } &
    { sqlite </tmp/2.sql && touch /tmp/2.done; } &
    sqlite </tmp/3.sql || failed 'sqlite: insert'
    wait
    rm /tmp/1.done /tmp/2.done || failed 'sqlite: insert'
    remount
    is "$(sqlite "select process, count(*), count(distinct n), sum(n) from entries group by process; pragma integrity_check" | xargs)" \
        '1|30|30|435 2|30|30|435 3|30|30|435 ok' 'sqlite'
    # The write-ahead log's index is a file that its users map to share it. Not with cache=mmap: there
    # the client's stat(2) may set a file back to the size that it had before another process made it
    # longer, and who reads it through a mapping then gets SIGBUS; on QEMU's own device too.
    [ "$cache" = loose ] || return 0
    is "$(sqlite 'pragma journal_mode = wal')" wal 'sqlite: journal mode'
    { sqlite "insert into entries select 4, n from entries where process = 1" && touch 4.done; } &
    sqlite "insert into entries select 5, n from entries where process = 1" || failed 'sqlite: insert with a write-ahead log'
    wait
    [ -e 4.done ] || failed 'sqlite: insert with a write-ahead log'
    remount
    is "$(sqlite "select count(*), sum(n) from entries; pragma integrity_check" | xargs)" '150|2175 ok' 'sqlite with a write-ahead log'
}

repository() {
    export HOME=/tmp GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a
    git config --global --add safe.directory '*' && git init -q -b main origin 2>/dev/null && cd origin || failed 'git init'
    mkdir -p lib/deep/er && cp /vm/job lib/deep/er/script && ln -s deep/er lib/link || failed 'git: files'
    i=0
    while [ $i -lt 100 ]; do
        echo "file $i of cache $cache" >"lib/file-$i" && i=$((i + 1)) || failed 'git: files'
    done
    chmod 755 lib/file-7
    git add . && git commit -qm first && git rm -q lib/file-3 && echo more >>lib/file-4 && git commit -qam second || failed 'git commit'
    git gc -q || failed 'git gc'
    cd .. && git clone -q origin clone 2>/tmp/why || { cat /tmp/why && failed 'git clone'; }
    git clone -q --no-local origin sent 2>/tmp/why || { cat /tmp/why && failed 'git clone --no-local'; }
    for of in origin clone sent; do
        is "$(cd $of && git status --porcelain 2>&1 && git fsck --full --strict 2>&1 && git log --format=%s | xargs)" 'second first' "git status and fsck of $of"
        diff -r origin/lib $of/lib || failed "git: what is in $of"
    done
    # With nothing of the index's idea of each file but what the server says now.
    remount
    is "$(cd clone && git status --porcelain 2>&1)" '' 'git status, asked again'
    echo x >>clone/lib/file-9 && rm clone/lib/file-8
    is "$(cd clone && git status --porcelain 2>&1 | xargs)" 'D lib/file-8 M lib/file-9' 'git status of a change'
}

began=0
for cache in none mmap loose; do
    mount -t 9p -o "trans=virtio,version=9p2000.L,msize=512000" share /mnt && mkdir "/mnt/$cache" && umount /mnt || failed mkdir
    mount_share
    took 'mount'
    exerciser && took '20,000 operations of fsx'
    writers && took 'concurrent writers'
    database && took 'SQLite'
    repository && took 'git'
    cd / && umount /mnt || failed umount
done
