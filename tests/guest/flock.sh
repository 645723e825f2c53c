# One of two guests on one directory, which each find by their share's tag; the second one has it read-only as well.
# The first one's shell has flock(1) lock its descriptor 9, as scripts do, and the second one must stay outside.
name=two
grep -q one /sys/bus/virtio/drivers/9pnet_virtio/*/mount_tag && name=one
options=trans=virtio,version=9p2000.L,cache=none
mount -t 9p -o "$options" "$name" /mnt && cd /mnt || exit 1
mkdir /readonly
[ "$name" = one ] || mount -t 9p -o "$options" readonly /readonly || exit 1
await() {
    tries=0
    while [ ! -e "$1" ]; do
        tries=$((tries + 1))
        [ $tries -lt 6000 ] || { echo "no $1" && exit 1; }
        sleep 0.05
    done
}
expect() { # STATUS HOW FILE
    /root/stress flock "$2" <"$3" >/dev/null
    [ $? -eq "$1" ] || { echo "$step: $2 on $3 should be $1" && exit 1; }
}
outside() { # STATUS
    for place in . /readonly; do
        expect "$1" exclusive "$place/file"
        expect "$1" shared "$place/file"
    done
}
for step in read write unlock; do
    if [ $name = one ]; then
        case $step in
        write) exec 9>>file ;;
        *) exec 9<file ;;
        esac
        /root/stress flock exclusive <&9 || exit 1
        # Programs that the shell starts have the descriptor as well.
        cat file >/dev/null
        touch "$step-held"
        await "$step-tried"
        await "$step-host"
        # What the script does in the end: it closes, or `flock -u`.
        [ $step != unlock ] || /root/stress flock unlock <&9 || exit 1
        [ $step = unlock ] || exec 9<&-
        touch "$step-free"
        await "$step-done"
        exec 9<&-
    else
        await "$step-held"
        outside 1
        touch "$step-tried"
        await "$step-free"
        outside 0
        touch "$step-done"
    fi
done
