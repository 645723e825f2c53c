# What the host changes behind the guest's back, seen by the guest's next open. "share" is mounted with
# each cache mode in turn; "talk" is another share, where guest and host take turns: the guest makes
# ask-N, whose content says what for, and the host makes did-N.
failures=0
failed() { echo "FAILED - $cache: $*" && failures=$((failures + 1)); }
options=trans=virtio,version=9p2000.L,msize=512000
mkdir -p /talk /share && mount -t 9p -o $options,cache=none talk /talk || exit 1
asked=0
ask() { # WHAT...
    asked=$((asked + 1))
    echo "$*" >/talk/asking && mv /talk/asking /talk/ask-$asked || exit 1
    tries=0
    while [ ! -e /talk/did-$asked ]; do
        tries=$((tries + 1))
        [ $tries -lt 6000 ] || { echo "the host does not do $*" && exit 1; }
        sleep 0.05
    done
}
is() { # WHAT FILE CONTENT
    [ "$(cat "$2" 2>&1)" = "$3" ] && [ "$(stat -c %s "$2")" = $((${#3} + 1)) ] || failed "$1: $2 is '$(cat "$2" 2>&1)', of $(stat -c %s "$2") bytes, in place of '$3'"
}
# The client keeps names and what is known of them with cache=loose, and asks again when it has forgotten.
forget() { [ $cache != loose ] || echo 2 >/proc/sys/vm/drop_caches; }

for cache in none readahead mmap loose; do
    mount -t 9p -o $options,cache=$cache share /share && mkdir /share/$cache && cd /share/$cache || exit 1

    # A listing and every content are in the guest's cache, if it has one.
    for file in same longer shorter replaced gone; do echo "the guest's" >$file || exit 1; done
    cp same linked && sync && ls -l >/dev/null && cat * >/dev/null || exit 1
    [ ! -e new ] || failed 'new is there already'

    # Of the same length, and twice in a row: within a tick of the host's clock, perhaps.
    ask write $cache/same "the hosts"
    ask write $cache/same "the host's "
    forget
    is 'changed in place' same "the host's "
    ask write $cache/longer "the host has more to say"
    ask write $cache/shorter "less"
    ask replace $cache/replaced "quite another"
    ask remove $cache/gone
    ask write $cache/new "the host's"
    forget
    is 'made longer' longer "the host has more to say"
    is 'made shorter' shorter "less"
    is 'replaced' replaced "quite another"
    is 'made anew' new "the host's"
    ! cat gone 2>/dev/null || failed 'gone is still there'
    [ "$(ls | xargs)" = 'linked longer new replaced same shorter' ] || failed "the listing: $(ls | xargs)"

    # By another name, nothing forgotten: a file's content is looked for in the cache by what the
    # server says that it is, and a changed one is another.
    ask link $cache/same $cache/same-too
    ask write $cache/same "host: three"
    is 'changed and looked at by a new name' same-too "host: three"
    [ "$(cat same-too)" = "host: three" ] || failed 'a new name of a changed file'

    # Guest and host append at once.
    ask append-from-now $cache/log
    /root/stress append log guest 200 && sync || failed append
    ask append-no-more $cache/log
    cd / && umount /share || failed umount
done
[ $failures -eq 0 ]
