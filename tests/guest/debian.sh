# Unpacks a small Debian onto a share and lets its own programs finish, extend and use it in a chroot. The same on the
# guest's own ext4 first; all that was said and all that was left must be alike.
# /root/runs has lines "TAG CACHE", /root/archive the path of Debian's archive on the host.
mkdir -p /host /ext4 /mnt/share
read -r archive </root/archive
mount -t hostfs none /host -o "${archive%/*}" || exit 1

# Everything there is, for comparison: the size and the links of a directory are the file system's own affair.
manifest() { # ROOT
    chroot "$1" /bin/bash -c '
        export LC_ALL=C
        find / -xdev \( -path /proc -o -path /dev -o -path /tmp \) -prune -o \
            \( -type d -printf "%p %y %m %U:%G\n" \) -o -printf "%p %y %m %U:%G %n %s %l\n" | sort
        find / -xdev \( -path /proc -o -path /dev -o -path /tmp \) -prune -o -type f -exec sha256sum {} + | sort -k 2' |
        # The times and the numbers of inodes are in these.
        grep -v -e /var/log/ -e /var/cache/ldconfig/aux-cache -e /var/cache/debconf/ -e '/\.git/.*index$'
}

live_in() { # ROOT NAME
    begun=$(cut -d ' ' -f 1 /proc/uptime)
    tar -xp -C "$1" -f "/host/${archive##*/}" || return 1
    unpacked=$(cut -d ' ' -f 1 /proc/uptime)
    cp /root/debian-inside.sh "$1/inside.sh" || return 1
    mount -t proc none "$1/proc" && mount --bind /dev "$1/dev" || return 1
    chroot "$1" /bin/bash /inside.sh >"/tmp/said-$2" 2>&1
    status=$?
    used=$(cut -d ' ' -f 1 /proc/uptime)
    umount "$1/proc" "$1/dev" || return 1
    xargs <"$1/tmp/times"
    [ $status -eq 0 ] || { cat "/tmp/said-$2"; echo "$2: status $status"; return 1; }
}

compare() { # NAME
    for what in said left; do
        diff "/tmp/$what-ext4" "/tmp/$what-$1" >/tmp/diff || {
            echo "$1: $what otherwise than on ext4:"
            head -n 40 /tmp/diff
            failed=1
        }
    done
    echo "$1: unpacked after $begun to $unpacked s, used until $used s, looked at until $(cut -d ' ' -f 1 /proc/uptime) s"
}

failed=
truncate -s 400M /tmp/image && mke2fs -F -I 256 /tmp/image >/dev/null && losetup /dev/loop0 /tmp/image &&
    mount -t ext4 /dev/loop0 /ext4 || exit 1
mkdir -m 755 /ext4/root
live_in /ext4/root ext4 || exit 1
manifest /ext4/root >/tmp/left-ext4
compare ext4
umount /ext4 && losetup -d /dev/loop0
rm /tmp/image

while read -r tag cache; do
    options=trans=virtio,version=9p2000.L,msize=512000,access=client,cache=$cache
    mount -t 9p -o "$options" "$tag" /mnt/share || exit 1
    root=/mnt/share/$cache
    mkdir -m 755 "$root"
    if live_in "$root" "$tag-$cache"; then
        # By a client that knows nothing yet.
        umount /mnt/share
        mount -t 9p -o "$options" "$tag" /mnt/share || exit 1
        manifest "$root" >"/tmp/left-$tag-$cache"
        compare "$tag-$cache"
        cp "/tmp/left-$tag-$cache" "/mnt/share/left-$cache"
    else
        failed=1
    fi
    umount /mnt/share || exit 1
done </root/runs
[ -z "$failed" ]
