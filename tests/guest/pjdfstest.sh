# Runs pjdfstest on every share, two at a time, because each naps a lot. The
# verdict is drawn on the host, from what is printed here: "@ TAG" before the lines about one share.
on() { # TAG
    mkdir -p "/shares/$1" && mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000 "$1" "/shares/$1" || return
    mkdir "/shares/$1/pjdfstest" && chmod 755 "/shares/$1/pjdfstest" || return
    NO_COLOR=1 /root/pjdfstest -e -c /root/pjdfstest.toml -p "/shares/$1/pjdfstest" $(cat /root/names)
    echo "pjdfstest ended with status $?"
}
take_turns() {
    for tag in $tags; do
        mkdir "/tmp/taken-$tag" 2>/dev/null || continue
        on "$tag" >"/tmp/results-$tag" 2>&1
        echo "$tag was done $(cut -d ' ' -f 1 /proc/uptime) s after boot"
    done
}
tags=$(cat /sys/bus/virtio/drivers/9pnet_virtio/*/mount_tag | tr '\0' '\n')
take_turns &
take_turns
wait
for tag in $tags; do echo "@ $tag" && cat "/tmp/results-$tag"; done
