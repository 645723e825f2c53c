//! A client's ordinary work on a share with a file, a directory and a symlink in it, in pieces that are short enough to
//! begin a search with.

use testkit::scenario::gid;
use testkit::{Client, Transport};
use wire::*;

/// A piece of work on a share that is mounted as fid 0.
pub type Piece<T> = fn(&mut Client<T>);

/// All pieces, by name.
pub fn pieces<T: Transport>() -> [(&'static str, Piece<T>); 7] {
    [
        ("look", look),
        ("file", file),
        ("tree", tree),
        ("names", names),
        ("attributes", attributes),
        ("xattrs", xattrs),
        ("locks", locks),
    ]
}

/// A share for this work.
pub fn prepare(share: &std::path::Path) {
    std::fs::create_dir_all(share.join("dir/sub")).expect("mkdir");
    std::fs::write(share.join("file"), "data").expect("write");
    std::fs::write(share.join("dir/file"), "more data").expect("write");
    std::os::unix::fs::symlink("dir", share.join("link")).expect("symlink");
}

fn look<T: Transport>(client: &mut Client<T>) {
    client.stat(0).expect("getattr");
    client.statfs(0).expect("statfs");
    client.walk_all(0, 1, &["dir"]).expect("walk");
    client.lopen(1, P9_DOTL_RDONLY | P9_DOTL_DIRECTORY).expect("open");
    client.list(1, 512).expect("readdir");
    client.walk_all(0, 2, &["dir", "file"]).expect("walk");
    client.walk_all(0, 3, &["dir", "sub", ".."]).expect("walk");
    client.walk(0, 4, &["none"]).expect_err("no such name");
    client.lopen(2, P9_DOTL_RDONLY).expect("open");
    client.read(2, 0, 100).expect("read");
    client.read(2, 5, 4).expect("read");
    for fid in 1..4 {
        client.clunk(fid).expect("clunk");
    }
}

fn file<T: Transport>(client: &mut Client<T>) {
    client.clone_fid(0, 1).expect("clone");
    client
        .lcreate(1, "a", P9_DOTL_RDWR, 0o644, gid())
        .expect("create");
    client.write(1, 0, b"eight b.").expect("write");
    client.write(1, 8, b"and more").expect("write");
    client.read(1, 0, 8).expect("read");
    client.read(1, 8, 8).expect("read");
    client.fsync(1, 0).expect("fsync");
    client.truncate(1, 4).expect("truncate");
    client.unlinkat(0, "a", 0).expect("unlink");
    client.stat(1).expect("getattr");
    client.read(1, 0, 8).expect("read");
    client.clunk(1).expect("clunk");
    client.walk_all(0, 1, &["file"]).expect("walk");
    client.lopen(1, P9_DOTL_WRONLY | P9_DOTL_APPEND).expect("open");
    client.write(1, 0, b"appended").expect("write");
    client.remove(1).expect("remove");
}

fn tree<T: Transport>(client: &mut Client<T>) {
    client.mkdir(0, "b", 0o755, gid()).expect("mkdir");
    client.walk_all(0, 1, &["b"]).expect("walk");
    client.clone_fid(1, 2).expect("clone");
    client
        .lcreate(2, "c", P9_DOTL_RDWR, 0o600, gid())
        .expect("create");
    client.symlink(1, "up", "..", gid()).expect("symlink");
    client.walk_all(1, 3, &["up"]).expect("walk");
    client.readlink(3).expect("readlink");
    client.mknod(1, "fifo", 0o10_644, (0, 0), gid()).expect("mknod");
    client.link(1, 2, "twin").expect("link");
    client.unlinkat(1, "twin", 0).expect("unlink");
    client
        .unlinkat(0, "b", P9_DOTL_AT_REMOVEDIR)
        .expect_err("not empty");
    for name in ["c", "up", "fifo"] {
        client.unlinkat(1, name, 0).expect("unlink");
    }
    client.remove(1).expect("rmdir");
}

fn names<T: Transport>(client: &mut Client<T>) {
    client.walk_all(0, 1, &["dir"]).expect("walk");
    client.walk_all(0, 2, &["file"]).expect("walk");
    client.renameat(0, "file", 1, "a").expect("rename");
    client.rename(2, 0, "b").expect("rename");
    client.link(0, 2, "c").expect("link");
    client.renameat(0, "c", 0, "b").expect("rename");
    client.remove(2).expect("remove");
    client.lopen(1, P9_DOTL_RDONLY).expect("open");
    client.readdir(1, 0, 200).expect("readdir");
}

fn attributes<T: Transport>(client: &mut Client<T>) {
    client.walk_all(0, 1, &["file"]).expect("walk");
    client.chmod(1, 0o640).expect("chmod");
    client.chown(1, 0, 0).expect("chown");
    client.truncate(1, 100).expect("truncate");
    let times = Tsetattr {
        fid: 1,
        valid: P9_SETATTR_ATIME | P9_SETATTR_MTIME | P9_SETATTR_ATIME_SET | P9_SETATTR_MTIME_SET,
        atime_sec: 1_000,
        mtime_sec: 2_000,
        ..Tsetattr::default()
    };
    client.setattr(&times).expect("utimens");
    client.getattr(1, P9_GETATTR_BASIC).expect("getattr");
}

fn xattrs<T: Transport>(client: &mut Client<T>) {
    client.walk_all(0, 1, &["file"]).expect("walk");
    client.clone_fid(1, 2).expect("clone");
    client.xattrcreate(2, "user.x", 5, 0).expect("xattrcreate");
    client.write(2, 0, b"val").expect("write");
    client.write(2, 3, b"ue").expect("write");
    client.clunk(2).expect("clunk");
    client.xattrwalk(1, 2, "user.x").expect("xattrwalk");
    client.read(2, 0, 100).expect("read");
    client.clunk(2).expect("clunk");
    client.xattrwalk(1, 2, "").expect("xattrwalk");
    client.read(2, 0, 100).expect("read");
    client.xattrwalk(1, 3, "security.capability").ok();
    client.clone_fid(1, 4).expect("clone");
    client.xattrcreate(4, "user.x", 0, 0).expect("xattrcreate");
    client.clunk(4).expect("clunk");
}

fn locks<T: Transport>(client: &mut Client<T>) {
    client.walk_all(0, 1, &["file"]).expect("walk");
    client.lopen(1, P9_DOTL_RDWR).expect("open");
    for (kind, start, length) in [
        (P9_LOCK_TYPE_WRLCK, 0, 100),
        (P9_LOCK_TYPE_RDLCK, 50, 0),
        (P9_LOCK_TYPE_UNLCK, 10, 20),
    ] {
        let lock = Tlock {
            fid: 1,
            kind,
            flags: 0,
            start,
            length,
            proc_id: 7,
            client_id: b"c",
        };
        client.lock(&lock).expect("lock");
    }
    let question = Tgetlock {
        fid: 1,
        kind: P9_LOCK_TYPE_WRLCK,
        start: 0,
        length: 0,
        proc_id: 8,
        client_id: b"c",
    };
    client.getlock(&question).expect("getlock");
    client.flush(99).expect("flush");
    client.clunk(1).expect("clunk");
}
