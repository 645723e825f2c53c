# A day's work on the share, once for each way the client can cache. Nothing is mounted on entry.
# It leaves /mnt/CACHE/kept for the host to look at, and removes all else that it made.

failures=0
check() { # WHAT COMMAND...
    what=$1
    shift
    if "$@" >/tmp/why 2>&1; then
        echo "ok - $cache: $what"
    else
        echo "FAILED - $cache: $what"
        sed 's/^/    /' /tmp/why | head -n 20
        failures=$((failures + 1))
    fi
}
is() { [ "$1" = "$2" ] || { echo "is: $1" && echo "should be: $2" && return 1; }; }
fails_with() { # MESSAGE COMMAND...
    message=$1
    shift
    if "$@" >/tmp/out 2>&1; then echo "succeeded" && return 1; fi
    grep -q "$message" /tmp/out || { cat /tmp/out && return 1; }
}

bytes() { head -c "$1" /dev/zero | tr '\0' "$2"; }

write_and_read() {
    echo first >a && is "$(cat a)" first &&
        echo second >>a && is "$(cat a)" "first
second" &&
        bytes 1000000 x >big && is "$(stat -c %s big)" 1000000 && bytes 1000000 x | cmp - big
}
overwrite_in_the_middle() {
    bytes 100000 y >mid && printf 'HERE' | dd of=mid bs=1 seek=50000 conv=notrunc 2>/dev/null &&
        is "$(dd if=mid bs=1 skip=49999 count=6 2>/dev/null)" yHEREy && is "$(stat -c %s mid)" 100000
}
truncate_both_ways() {
    bytes 5000 z >cut && truncate -s 10 cut && is "$(cat cut)" zzzzzzzzzz &&
        truncate -s 12 cut && is "$(tr '\0' 0 <cut)" zzzzzzzzzz00
}
sparse() {
    dd if=/dev/zero of=sparse bs=1 count=1 seek=50000000 2>/dev/null && is "$(stat -c %s sparse)" 50000001 &&
        [ "$(stat -c %b sparse)" -lt 1000 ] && rm sparse
}
renames() {
    echo r >r1 && mv r1 r2 && [ ! -e r1 ] && is "$(cat r2)" r &&
        echo over >r3 && mv -f r3 r2 && is "$(cat r2)" over && [ ! -e r3 ] &&
        mkdir -p rd/inner && mv r2 rd/inner/moved && mv rd rd2 && is "$(cat rd2/inner/moved)" over &&
        mkdir full && touch full/x && fails_with 'not empty' rmdir full && rm -r full rd2
}
links() {
    echo l >l1 && ln l1 l2 && is "$(stat -c %h l1)" 2 && is "$(stat -c %i l1)" "$(stat -c %i l2)" &&
        rm l1 && is "$(cat l2)" l && is "$(stat -c %h l2)" 1 &&
        ln -s l2 s1 && is "$(readlink s1)" l2 && is "$(cat s1)" l &&
        ln -s "$(bytes 3000 n | sed 's/nnnnnnnnnn/nnnnnnnnn\//g')" s2 && target=$(readlink s2) && is "${#target}" 3000 &&
        ln -s nowhere s3 && fails_with 'No such file' cat s3 && rm l2 s1 s2 s3
}
modes() {
    touch m && chmod 0640 m && is "$(stat -c %a m)" 640 && chmod 4755 m && is "$(stat -c %a m)" 4755 &&
        mkdir md && chmod 1777 md && is "$(stat -c %a md)" 1777 && chmod 2750 md && is "$(stat -c %a md)" 2750 &&
        rm -r m md
}
owners() {
    touch o && chown 1:2 o && is "$(stat -c %u:%g o)" 1:2 && ln -s o os && chown -h 2:1 os &&
        is "$(stat -c %u:%g os)" 2:1 && is "$(stat -c %u:%g o)" 1:2 && rm o os
}
times() {
    touch -d '2001-02-03 04:05:06' t && is "$(stat -c %Y t)" 981173106 &&
        touch -h -d '2011-02-03 04:05:06' t && is "$(stat -c %Y t)" 1296705906 && rm t
}
specials() {
    mkfifo f && [ -p f ] && { echo through >f & } && is "$(cat f)" through &&
        mknod c c 1 3 && [ -c c ] && is "$(stat -c %t:%T c)" 1:3 && rm f c
}
directories() {
    mkdir -p d/e/f/g/h && [ -d d/e/f/g/h ] && rm -r d && [ ! -e d ] &&
        touch file && fails_with 'File exists' mkdir file && fails_with 'Not a directory' ls file/x && rm file
}
thousand() {
    mkdir many && i=0 && while [ $i -lt 1000 ]; do
        : >"many/a file with the number $i"
        i=$((i + 1))
    done
    is "$(ls many | wc -l)" 1000 && is "$(ls many | sort -u | wc -l)" 1000 &&
        is "$(find many -type f | wc -l)" 1000 &&
        rm -r many && [ ! -e many ]
}
names() {
    long=$(bytes 255 q)
    touch "$long" && [ -e "$long" ] && fails_with 'too long' touch "${long}q" &&
        touch 'name with "quotes" and *' ' ' "$(printf 'new\nline')" "$(printf 'not \377 utf-8')" ümläut &&
        [ -e "$(printf 'not \377 utf-8')" ] && rm -- "$long" 'name with "quotes" and *' ' ' "$(printf 'new\nline')" "$(printf 'not \377 utf-8')" ümläut
}
space() { df -k . | awk 'END { exit !($2 > 0 && $4 > 0 && $2 >= $4) }' && df -i . >/dev/null; }
many_at_once() {
    for n in 1 2 3 4 5 6 7 8; do
        {
            mkdir "p$n" && i=0 && while [ $i -lt 30 ]; do
                bytes $((i * 700 + n)) "$n" >"p$n/$i" && is "$(wc -c <"p$n/$i" | tr -d ' ')" $((i * 700 + n)) || exit 1
                i=$((i + 1))
            done
            cat "p$n"/* | tr -d "$n" | wc -c | grep -qw 0 && rm -r "p$n" && touch "done$n"
        } &
    done
    wait
    is "$(ls -d done? | wc -l)" 8 && rm done?
}
another_user() {
    mkdir -m 0700 private && touch private/x && fails_with 'ermission denied' su -s /bin/sh daemon -c 'cat private/x' &&
        mkdir -m 1777 public && su -s /bin/sh daemon -c 'echo mine >public/y' && is "$(cat public/y)" mine &&
        is "$(stat -c %u:%g public/y)" 1:1 && rm -r private public
}
exerciser() { # Always the same seed, so that a failure can be had again.
    cp /root/fsx.toml /tmp/fsx.toml
    # Without a page cache the client refuses every shared mapping of a file open for writing.
    [ "$cache" != none ] || sed -i 's/^map\(.*\) = .*/map\1 = 0/' /tmp/fsx.toml
    /root/fsx -q -q -f /tmp/fsx.toml -S 20 -N 1500 fsx.data >/tmp/fsx 2>&1 || { tail -n 30 /tmp/fsx && return 1; }
    rm fsx.data*
}
keep() {
    mkdir -p kept/dir/below && echo "written in the guest with cache=$cache" >kept/dir/below/file && chmod 0604 kept/dir/below/file &&
        chown 1:2 kept/dir/below/file && touch -d '2001-02-03 04:05:06' kept/dir/below/file &&
        ln -s dir/below/file kept/symlink && ln kept/dir/below/file kept/hardlink && mkdir -m 0751 kept/empty && mkfifo kept/fifo && bytes 300000 k >kept/large
}

for cache in $(cat /root/caches); do
    if ! mount -t 9p -o "trans=virtio,version=9p2000.L,msize=512000,cache=$cache" share /mnt; then
        echo "FAILED - $cache: mount"
        failures=$((failures + 1))
        continue
    fi
    mkdir "/mnt/$cache" && cd "/mnt/$cache" || exit 1
    check 'a file of the host is read' is "$(cat /mnt/from-the-host)" 'written on the host'
    check 'write, append, read' write_and_read
    check 'overwrite in the middle' overwrite_in_the_middle
    check 'truncate down and up' truncate_both_ways
    check 'a sparse file stays sparse' sparse
    check 'rename' renames
    check 'hard links and symlinks' links
    check 'chmod' modes
    check 'chown' owners
    check 'times' times
    check 'a FIFO and a device' specials
    check 'mkdir -p, rm -r' directories
    check 'a directory of 1000 files' thousand
    check 'odd names' names
    check 'df' space
    check 'eight at once' many_at_once
    check 'another user' another_user
    check 'fsx' exerciser
    # The system calls that no shell makes; one line each.
    /root/probe "/mnt/$cache" "$cache" || failures=$((failures + 1))
    check 'what is kept' keep
    rm -f a big mid cut
    check 'nothing else is left' is "$(ls -A)" kept
    cd / && umount /mnt || failures=$((failures + 1))
done
echo "$failures failed"
[ $failures -eq 0 ]
