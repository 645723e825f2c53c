# A little work on every share, by each of three users of the guest. Each line printed says what one
# of them met: "share user: message". Nothing here, and nothing on the host, opens a share to all.

printf '%s\n' vagrant:x:1000:1000::/:/bin/sh other:x:1001:1001::/:/bin/sh >>/etc/passwd
printf '%s\n' vagrant:x:1000: other:x:1001: >>/etc/group

cat >/tmp/work <<'WORK'
cd "$1" && echo 'and more' >>notes && echo 'appends' || echo 'does not append'
echo 'new' >"new-$2" || exit
mkdir "dir-$2" && mv "new-$2" "dir-$2/moved" && ln -s moved "dir-$2/symlink" || exit
[ "$(cat "dir-$2/symlink")" = new ] || { echo 'what was written does not come back' && exit; }
ln "dir-$2/moved" "dir-$2/hardlink" && rm "dir-$2/moved" && chmod 750 "dir-$2/hardlink" "dir-$2" || exit
# As root's tar, cp -a, rsync and npm do.
[ "$2" != root ] || chown -R 1000:1000 "dir-$2" || exit
echo 'works'
WORK
chmod 755 /tmp/work

for tag in $(cat /sys/bus/virtio/drivers/9pnet_virtio/*/mount_tag | tr '\0' '\n'); do
    mkdir -p "/shares/$tag"
    mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000 "$tag" "/shares/$tag" || exit 1
    # As one gives away the root directory of any new file system; where the mode keeps such things.
    case $tag in mapped-*) chown 1000:1000 "/shares/$tag" "/shares/$tag/notes" || exit 1 ;; esac
    echo "$tag shows $(stat -c '%U %G %a' "/shares/$tag"), notes $(stat -c '%U %G %a' "/shares/$tag/notes")"
    for user in vagrant root other; do
        su -s /bin/sh "$user" -c "sh /tmp/work /shares/$tag $user" 2>&1 | sed "s/^/$tag $user: /"
    done
done
