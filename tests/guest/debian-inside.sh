# In Debian's root, as chroot: what an administrator and programs do there. What it says must be the same each time.
export PATH=/usr/sbin:/usr/bin HOME=/root LC_ALL=C DEBIAN_FRONTEND=noninteractive
# Debian's own programs say this and that with process numbers in it.
quietly() {
    "$@" >/tmp/quiet 2>&1 || {
        echo "$* failed ($?)"
        cat /tmp/quiet
        return 1
    }
}
part() {
    echo "== $1"
    echo "$1 $(cut -d ' ' -f 1 /proc/uptime)" >>/tmp/times
}
set -e
trap 'echo "line $LINENO failed"' ERR
mkdir -p /tmp && rm -f /tmp/times

part dpkg
# Others want root to have a name.
quietly dpkg --force-depends --configure base-passwd
quietly dpkg --configure -a
quietly dpkg -i /packages/*.deb
dpkg --audit
# A package of our own: users, a conffile, a file with a user's rights, a diversion, an upgrade, removal and purge.
package() { # VERSION
    rm -rf /tmp/p
    mkdir -p /tmp/p/DEBIAN /tmp/p/etc /tmp/p/usr/share/local-package/deep/er /tmp/p/usr/bin
    echo "setting of $1" >/tmp/p/etc/local-package.conf
    printf '#!/bin/sh\necho local-package %s\n' "$1" >/tmp/p/usr/bin/local-package
    chmod 755 /tmp/p/usr/bin/local-package
    for i in $(seq 60); do echo "$1 $i" >"/tmp/p/usr/share/local-package/deep/er/$i-$1"; done
    ln /tmp/p/usr/share/local-package/deep/er/1-"$1" /tmp/p/usr/share/local-package/hardlink
    ln -s deep/er /tmp/p/usr/share/local-package/symlink
    echo /etc/local-package.conf >/tmp/p/DEBIAN/conffiles
    cat >/tmp/p/DEBIAN/control <<CONTROL
Package: local-package
Version: $1
Architecture: all
Maintainer: Nobody <nobody@localhost>
Depends: passwd
Description: a package for a test
CONTROL
    cat >/tmp/p/DEBIAN/postinst <<'POSTINST'
#!/bin/sh
set -e
if [ "$1" = configure ]; then
    getent passwd _local >/dev/null || useradd --system --home-dir /var/lib/local-package --create-home --shell /usr/sbin/nologin _local
    chown _local:_local /usr/share/local-package/hardlink
    chmod 6755 /usr/bin/local-package
    dpkg-statoverride --list /usr/share/local-package >/dev/null || dpkg-statoverride --update --add _local root 2750 /usr/share/local-package
    [ -n "$2" ] || dpkg-divert --local --rename --divert /usr/bin/yes.real --add /usr/bin/yes
fi
POSTINST
    cat >/tmp/p/DEBIAN/postrm <<'POSTRM'
#!/bin/sh
set -e
if [ "$1" = purge ]; then
    dpkg-divert --local --rename --remove /usr/bin/yes
    dpkg-statoverride --remove /usr/share/local-package || true
    userdel _local
    rm -rf /var/lib/local-package
fi
POSTRM
    chmod 755 /tmp/p/DEBIAN/post*
    quietly dpkg-deb --root-owner-group -b /tmp/p "/local-package-$1.deb"
}
package 1
package 2
quietly dpkg -i /local-package-1.deb
local-package
stat -c '%n %A %U %G' /usr/bin/local-package /usr/share/local-package /usr/share/local-package/hardlink /usr/bin/yes.real
echo 'setting of the administrator' >/etc/local-package.conf
quietly dpkg -i --force-confold /local-package-2.deb
local-package
cat /etc/local-package.conf
ls /etc/local-package.conf* /usr/share/local-package
dpkg -V | grep -v -e '^missing.*/usr/share/\(doc\|man\|locale\)' || true
quietly dpkg -r local-package
ls -d /etc/local-package.conf /usr/share/local-package 2>&1 || true
quietly dpkg -P local-package
ls -d /etc/local-package.conf /usr/bin/yes* 2>&1 || true
quietly dpkg -i /local-package-2.deb
rm /local-package-*.deb

part users
groupadd -g 1500 staffers
useradd -m -u 1001 -s /bin/bash -G staffers alice
useradd -m -u 1002 -s /bin/bash bob
usermod -aG staffers bob
usermod -c 'Bob the second' bob
passwd -l bob >/dev/null
gpasswd -M alice,bob staffers
id alice
id bob
stat -c '%n %A %U %G' /home/* /home/alice/.[bp]* /etc/shadow /usr/bin/su /usr/bin/passwd
su alice -c 'cd; id; umask 027; mkdir d; echo text >d/file; ln -s d/file link; chmod 4711 d/file; stat -c "%n %A %U %G" d d/file'
su bob -c 'cat /home/alice/d/file; echo >>/etc/passwd; rm -f /home/alice/link; chmod 777 /home/alice; mkdir /var/y' 2>&1 || true
# Shared by a group; of a directory with the set-group-id bit, and with the sticky bit.
mkdir -m 2775 /srv/common && chgrp staffers /srv/common
mkdir -m 1777 /srv/sticky
su alice -c 'umask 002; echo a >/srv/common/a; mkdir /srv/common/sub; echo s >/srv/sticky/a'
su bob -c 'umask 002; echo b >>/srv/common/a; echo b >/srv/common/sub/b; rm /srv/sticky/a; mv /srv/sticky/a /srv/sticky/b; echo >>/srv/sticky/a' 2>&1 || true
cat /srv/common/a
find /srv -printf '%p %M %u %g\n' | sort
cp /usr/bin/id /srv/setuid-id && chown bob /srv/setuid-id && chmod 4755 /srv/setuid-id
su alice -c /srv/setuid-id
su alice -c 'echo >>/srv/setuid-id' 2>&1 || true
chmod 666 /srv/setuid-id && chmod 4777 /srv/setuid-id && stat -c %A /srv/setuid-id
su alice -c 'echo >>/srv/setuid-id' && stat -c %A /srv/setuid-id
chmod 6777 /srv/setuid-id && chown alice /srv/setuid-id && stat -c %A /srv/setuid-id

part python
mkdir -p /srv/py/pkg && cd /srv/py
echo 'answer = 42' >pkg/__init__.py
echo 'from . import answer; double = answer * 2' >pkg/more.py
cat >main.py <<'PY'
import fcntl, mmap, os, pathlib, shutil, sqlite3, tempfile
from pkg.more import double
print(double, sorted(p.name for p in pathlib.Path('pkg/__pycache__').iterdir()))
with sqlite3.connect('py.db') as db:
    db.execute('create table t (n integer primary key, s text)')
    db.executemany('insert into t values (?, ?)', ((n, 'x' * (n % 300)) for n in range(3000)))
print(db.execute('select count(*), sum(length(s)) from t').fetchone(), db.execute('pragma integrity_check').fetchone())
db.execute('vacuum')
db.close()
with tempfile.TemporaryDirectory(dir='.') as d:
    for i in range(50):
        (pathlib.Path(d) / f'{i}').write_bytes(os.urandom(1000))
    shutil.copytree(d, 'copied', copy_function=shutil.copy2)
print(len(os.listdir('copied')))
shutil.rmtree('copied')
with open('locked', 'w+') as f:
    # One after the other: the client turns flock(2) into a record lock of another owner, which conflicts.
    fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 5)
    fcntl.lockf(f, fcntl.LOCK_UN, 10, 5)
    fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fcntl.flock(f, fcntl.LOCK_UN)
    os.ftruncate(f.fileno(), 8192)
    os.setxattr(f.fileno(), 'user.test', b'value')
    print(os.listxattr('locked'), os.getxattr('locked', 'user.test'))
    with mmap.mmap(f.fileno(), 8192, mmap.MAP_PRIVATE) as m:
        print(len(m), m[0])
os.replace('locked', 'replaced')
with os.scandir('.') as entries:
    print(sorted((e.name, e.is_dir(), e.stat().st_nlink if e.is_file() else 0) for e in entries))
PY
touch -d 2026-01-01 main.py pkg/*.py
python3 main.py
python3 -m compileall -q /srv/py
python3 main.py 2>&1 | tail -n 1
python3 -m zipfile -c z.zip main.py
python3 -m zipfile -t z.zip

part git
export GIT_AUTHOR_DATE='2026-01-01 00:00:00 +0000' GIT_COMMITTER_DATE='2026-01-01 00:00:00 +0000'
git config --global user.name tester
git config --global user.email tester@localhost
git config --global init.defaultBranch main
git config --global gc.auto 0
git config --global pack.threads 1
git config --global advice.detachedHead false
git init -q /srv/repo && cd /srv/repo
cp -a /usr/lib/python3.13/json /usr/lib/python3.13/email .
find . -name __pycache__ -prune -exec rm -r {} +
ln -s json/decoder.py link && chmod 755 json/tool.py
git add -A && git commit -qm one
for i in 1 2 3 4 5; do echo "# $i" >>json/decoder.py && git commit -qam "change $i"; done
git mv email mail && git rm -q json/tool.py && git commit -qm moved
git status --short
git checkout -q -b side HEAD~3 && echo side >side && git add side && git commit -qm side
git checkout -q main && git merge -q -m merged side
git stash list
git gc -q --prune=now
git fsck --full --strict
git clone -q /srv/repo /srv/clone
git clone -q --no-hardlinks --bare /srv/repo /srv/bare.git
cd /srv/clone && git log --oneline | cat && git status --short
echo more >>side && git commit -qam pushed && git push -q /srv/bare.git HEAD:other
git -C /srv/bare.git log --oneline -1 other
git worktree add -q /srv/worktree other 2>/dev/null || git worktree add -q -b other /srv/worktree HEAD~1
git -C /srv/worktree status --short
su alice -c 'cd /srv/repo && git status' 2>&1 | head -n 1

part sqlite
cd /srv
sqlite3 cli.db 'create table t (a, b); create index i on t (a);
    with recursive c (x) as (select 1 union all select x + 1 from c where x < 5000) insert into t select x, hex(x) from c;'
sqlite3 cli.db 'pragma journal_mode=truncate; update t set b = a; pragma integrity_check; select sum(b) from t;'
sqlite3 cli.db '.backup copy.db' && sqlite3 copy.db 'select count(*) from t'
sqlite3 -readonly cli.db 'select max(a) from t'

part flock
echo 0 >count
flock -x count true
chmod 444 count
su alice -c 'flock -x /srv/count echo by alice; flock -s -n /srv/count echo shared'
flock -x count flock -n count true || echo excluded $?
(flock 9; flock -n count true || echo excluded $?) 9<count
chmod 644 count
for i in 1 2 3 4; do
    for j in $(seq 15); do
        (
            flock 9
            read -r n <count
            echo $((n + 1)) >count
        ) 9<count.lock
    done &
done 9>>count.lock
wait
cat count
mkdir locked-dir && flock -x locked-dir flock -n locked-dir true || echo excluded $?

part copies
mkdir /srv/tree && cd /srv/tree
mkdir -p a/b/c && echo 1 >a/1 && ln a/1 a/b/1 && ln -s ../1 a/b/c/link && mkfifo a/fifo
chown -R 1001:1500 a/b && chmod 2711 a/b && chmod 000 a/1 && chown -h 77:88 a/b/c/link
touch -d '2001-02-03 04:05:06.123456789' a/1 a/b/c && touch -h -d '1999-01-01' a/b/c/link
truncate -s 5000000 a/sparse && echo end >>a/sparse
printf 'name with\nnewline' >"a/n
l" && echo >"a/$(printf '\303\244\377')"
# Seconds alone: Linux's client cuts off what is below when a program sets a time (it leaves s_time_gran as it finds it).
listing() { (cd "$1" && find . -printf '%p %y %m %U:%G %l %T@\n' | sed 's/\.[0-9]*$//' | sort); }
listing a >of-a
like_a() { listing "$1" | diff of-a - || true; }
cp -a a cp && like_a cp
tar -c --sparse --xattrs a | (mkdir tar && tar -x --xattrs -p -C tar) && like_a tar/a
rsync -aH a/ rsync && like_a rsync
echo changed >>a/b/1 && rsync -aHc --inplace --delete -i a/ rsync && diff -r --no-dereference a/b rsync/b
find a -newer a/1 -name 1 -print
rm -rf tar/a of-a && ls tar
cd / && rm -rf /tmp/p /tmp/quiet
