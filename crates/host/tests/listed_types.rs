//! Listings in `mapped-xattr` show the right types: the first time, again, and after any change by anybody.

mod common;

use std::cell::Cell;
use std::collections::HashMap;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use common::{Fixture, Node, ROOT, name};
use host::sys::xattr::{Target, set};
use host::{DirEntry, Listing, SecurityModel};
use libc::{DT_BLK, DT_CHR, DT_DIR, DT_FIFO, DT_LNK, DT_REG, DT_SOCK};

type Types = HashMap<String, u8>;

/// Does it with a share on each kind of local file system that is there, at the same time.
fn on_each(test: impl Fn(&Fixture) + Sync) {
    std::thread::scope(|scope| {
        for parent in ["/tmp", "/dev/shm"].map(Path::new) {
            let test = &test;
            if parent.is_dir() {
                scope.spawn(move || test(&Fixture::within(parent, SecurityModel::MappedXattr, |_| {})));
            }
        }
    });
}

/// Waits until nothing in these directories keeps them from being remembered.
fn settle<'d>(dirs: impl IntoIterator<Item = &'d Path>) {
    for dir in dirs {
        loop {
            let meta = std::fs::metadata(dir).unwrap();
            let changed = Duration::new(meta.ctime() as u64, meta.ctime_nsec() as u32);
            let margin = Duration::from_millis(if meta.ctime_nsec() == 0 { 3100 } else { 1100 });
            let now = SystemTime::UNIX_EPOCH.elapsed().unwrap();
            match (changed + margin).checked_sub(now) {
                Some(rest) if !rest.is_zero() => std::thread::sleep(rest),
                _ => break,
            }
        }
    }
}

/// All of a directory, in requests of `bytes` and `count` entries at most.
fn list_in(f: &Fixture, dir: &Node, bytes: usize, count: usize) -> Types {
    let mut types = Types::new();
    let mut buf = vec![0; bytes];
    let mut cookie = 0;
    loop {
        let before = types.len();
        let mut left = count;
        f.share
            .read_dir(ROOT, &dir.object(), cookie, &mut buf, &mut |e: &DirEntry<'_>| {
                if left == 0 {
                    return false;
                }
                left -= 1;
                cookie = e.cookie;
                types.insert(String::from_utf8(e.name.to_vec()).unwrap(), e.d_type);
                true
            })
            .unwrap();
        if types.len() == before {
            return types;
        }
    }
}

fn list(f: &Fixture, dir: &Node) -> Types {
    list_in(f, dir, 4096, usize::MAX)
}

fn symlink(f: &Fixture, dir: &Node, link: &str) {
    f.share
        .symlink(ROOT, &dir.object(), &name(link), b"target")
        .unwrap();
}

fn keep_mode(file: BorrowedFd<'_>, mode: u32) {
    set(Target::Open(file), c"user.virtfs.mode", &mode.to_le_bytes(), 0).unwrap();
}

/// Makes a mapped symlink as another server does: first the file, then its type.
fn foreign_symlink(path: &Path) {
    let mut file = std::fs::File::create_new(path).unwrap();
    file.write_all(b"target").unwrap();
    keep_mode(file.as_fd(), libc::S_IFLNK | 0o777);
}

#[test]
fn each_kind_is_listed_right_again_and_again() {
    on_each(|f| {
        let root = f.open("", libc::O_RDONLY);
        let made = |kind: u32, node: &str| {
            f.share
                .mknod(
                    ROOT,
                    &root.object(),
                    &name(node),
                    kind | 0o600,
                    libc::makedev(1, 3),
                )
                .unwrap();
        };
        made(0, "plain");
        made(libc::S_IFIFO, "fifo");
        made(libc::S_IFSOCK, "socket");
        made(libc::S_IFCHR, "char");
        made(libc::S_IFBLK, "block");
        symlink(f, &root, "link");
        f.share.mkdir(ROOT, &root.object(), &name("dir"), 0o755).unwrap();
        std::fs::write(f.dir.join("host"), "").unwrap();
        std::os::unix::fs::symlink("x", f.dir.join("host link")).unwrap();
        drop(std::os::unix::net::UnixListener::bind(f.dir.join("host socket")).unwrap());
        let right: Types = [
            (".", DT_DIR),
            ("..", DT_DIR),
            ("plain", DT_REG),
            ("fifo", DT_FIFO),
            ("socket", DT_SOCK),
            ("char", DT_CHR),
            ("block", DT_BLK),
            ("link", DT_LNK),
            ("dir", DT_DIR),
            ("host", DT_REG),
            ("host link", DT_LNK),
            ("host socket", DT_SOCK),
        ]
        .map(|(name, kind)| (name.to_owned(), kind))
        .into();
        assert_eq!(list(f, &root), right);
        assert_eq!(list(f, &root), right);
        settle([f.dir.as_path()]);
        for _ in 0..3 {
            assert_eq!(list(f, &root), right);
            assert_eq!(list_in(f, &root, 4096, 1), right);
            assert_eq!(list_in(f, &root, 300, 5), right);
        }
    });
}

#[test]
fn what_an_unchanged_directory_showed_is_not_asked_for_again() {
    // Rewriting a type in place is what nobody does, and what shows whether it is asked for.
    on_each(|f| {
        let root = f.open("", libc::O_RDONLY);
        let paths = ["a", "b"].map(|file| f.dir.join(file));
        let files = paths.clone().map(|path| std::fs::File::create(path).unwrap());
        let rewrite = |kind: u32| files.each_ref().map(|file| keep_mode(file.as_fd(), kind | 0o644));
        let shown = || {
            let types = list(f, &root);
            [types["a"], types["b"]]
        };
        // What is remembered is not believed for ever, and this process may be stopped for long.
        let mut tries = 10;
        loop {
            rewrite(libc::S_IFREG);
            settle([f.dir.as_path()]);
            let first = shown();
            rewrite(libc::S_IFLNK);
            let again = shown();
            if first == [DT_REG; 2] && again == first {
                break;
            }
            tries -= 1;
            assert_ne!(tries, 0, "{first:?} {again:?}");
            // Another state of the directory.
            std::fs::write(f.dir.join("c"), "").unwrap();
            std::fs::remove_file(f.dir.join("c")).unwrap();
        }
        // Any change in it, and both are asked for.
        std::fs::rename(&paths[0], f.dir.join("c")).unwrap();
        let types = list(f, &root);
        assert_eq!([types["b"], types["c"]], [DT_LNK; 2]);
    });
}

#[test]
fn a_file_that_gets_its_type_a_moment_later_is_not_taken_for_a_file() {
    on_each(|f| {
        let root = f.open("", libc::O_RDONLY);
        settle([f.dir.as_path()]);
        let mut tries = 100;
        let kinds = loop {
            let path = f.dir.join(format!("{tries}"));
            let file = std::fs::File::create_new(&path).unwrap();
            let first = list(f, &root)[&format!("{tries}")];
            let age = std::fs::metadata(&f.dir).unwrap().modified().unwrap().elapsed();
            keep_mode(file.as_fd(), libc::S_IFLNK | 0o777);
            tries -= 1;
            // Else this process was stopped, and nobody takes so long over making a symlink.
            if age.unwrap() < Duration::from_millis(900) || tries == 0 {
                break [first, list(f, &root)[&format!("{}", tries + 1)]];
            }
        };
        assert_eq!(kinds, [DT_REG, DT_LNK]);
    });
}

#[test]
fn a_change_by_anybody_is_seen_at_once() {
    type Change = fn(&Fixture, &Node, &Path);
    let by_guest: [(&str, Change); 7] = [
        ("guest replaces", |f, dir, _| {
            f.share.unlink(ROOT, &dir.object(), &name("x"), false).unwrap();
            symlink(f, dir, "x");
        }),
        ("guest renames over", |f, dir, _| {
            let (from, to) = (name("link"), name("x"));
            f.share
                .rename(ROOT, &dir.object(), &from, &dir.object(), &to)
                .unwrap();
        }),
        ("guest links", |f, dir, _| {
            f.share.unlink(ROOT, &dir.object(), &name("x"), false).unwrap();
            let link = f.share.lookup(ROOT, &dir.object(), &name("link")).unwrap();
            let link = Node {
                path: link.0,
                file: None,
                id: link.1,
            };
            f.share
                .link(ROOT, &link.object(), &dir.object(), &name("x"))
                .unwrap();
        }),
        ("host replaces", |_, _, path| {
            std::fs::remove_file(path.join("x")).unwrap();
            foreign_symlink(&path.join("x"));
        }),
        ("host renames over", |_, _, path| {
            std::fs::rename(path.join("link"), path.join("x")).unwrap();
        }),
        ("host links", |_, _, path| {
            std::fs::remove_file(path.join("x")).unwrap();
            std::fs::hard_link(path.join("link"), path.join("x")).unwrap();
        }),
        ("host exchanges", |_, _, path| {
            let [x, link] = ["x", "link"].map(|file| common::c(path.join(file).to_str().unwrap()));
            // SAFETY: both strings live over the call.
            let status = unsafe {
                libc::renameat2(
                    libc::AT_FDCWD,
                    x.as_ptr(),
                    libc::AT_FDCWD,
                    link.as_ptr(),
                    libc::RENAME_EXCHANGE,
                )
            };
            assert_eq!(status, 0);
        }),
    ];
    on_each(|f| {
        let paths: Vec<_> = by_guest.iter().map(|(what, _)| f.dir.join(what)).collect();
        for path in &paths {
            std::fs::create_dir(path).unwrap();
            foreign_symlink(&path.join("link"));
            for file in ["x", "y", "z"] {
                std::fs::write(path.join(file), "").unwrap();
            }
        }
        settle(paths.iter().map(|path| path.as_path()));
        for ((what, change), path) in by_guest.iter().zip(&paths) {
            let dir = f.open(what, libc::O_RDONLY);
            for _ in 0..2 {
                let types = list(f, &dir);
                assert_eq!([types["x"], types["link"]], [DT_REG, DT_LNK], "{what}");
            }
            change(f, &dir, path);
            for _ in 0..2 {
                let types = list(f, &dir);
                assert_eq!(
                    [types["x"], types["y"], types["z"]],
                    [DT_LNK, DT_REG, DT_REG],
                    "{what}"
                );
                let link = types.get("link").copied();
                let there = link.is_some();
                assert_eq!(
                    link,
                    there.then_some(if *what == "host exchanges" { DT_REG } else { DT_LNK })
                );
            }
        }
    });
}

#[test]
fn changes_without_a_pause_between_are_all_seen() {
    // Each listing looks at the directory, and the change after it comes within the same tick of the clock.
    on_each(|f| {
        let root = f.open("", libc::O_RDONLY);
        std::fs::write(f.dir.join("file"), "").unwrap();
        foreign_symlink(&f.dir.join("link"));
        settle([f.dir.as_path()]);
        for round in 0..200 {
            let x = f.dir.join("x");
            let (from, kind) = match round % 2 {
                0 => ("link", DT_LNK),
                _ => ("file", DT_REG),
            };
            if round % 3 == 0 {
                let _ = std::fs::remove_file(&x);
                std::fs::hard_link(f.dir.join(from), &x).unwrap();
            } else {
                std::fs::hard_link(f.dir.join(from), f.dir.join("y")).unwrap();
                assert_eq!(list(f, &root)["y"], kind, "{round}");
                // Renaming one link of a file over another does nothing.
                let _ = std::fs::remove_file(&x);
                std::fs::rename(f.dir.join("y"), &x).unwrap();
            }
            assert_eq!(list(f, &root)["x"], kind, "{round}");
        }
    });
}

/// Changes the directory when it is asked how much has room: right before entries are read, for the so many-th time.
struct Changing<'c> {
    room: usize,
    wait: Cell<usize>,
    change: &'c dyn Fn(),
    changed: Cell<bool>,
    /// What was shown after that.
    shown: Types,
}

impl Listing for Changing<'_> {
    fn room(&self) -> usize {
        if self.wait.get() == 0 {
            (self.change)();
            self.changed.set(true);
        }
        self.wait.set(self.wait.get().wrapping_sub(1));
        self.room
    }
    fn entry(&mut self, entry: &DirEntry<'_>) -> bool {
        let name = String::from_utf8(entry.name.to_vec()).unwrap();
        if self.changed.get() && !name.starts_with('.') {
            self.shown.insert(name, entry.d_type);
        }
        true
    }
}

#[test]
fn a_change_right_before_entries_are_read_is_seen() {
    const FILES: usize = 40;
    on_each(|f| {
        let dirs: Vec<_> = (0..8).map(|i| (i, f.dir.join(format!("{i}")))).collect();
        for (_, path) in &dirs {
            std::fs::create_dir(path).unwrap();
            for i in 0..FILES {
                std::fs::write(path.join(format!("{i}")), "").unwrap();
            }
        }
        settle(dirs.iter().map(|(_, path)| path.as_path()));
        let mut new = 0;
        for (wait, path) in &dirs {
            let dir = f.open(&format!("{wait}"), libc::O_RDONLY);
            let before = list_in(f, &dir, 65536, usize::MAX);
            assert_eq!(before, list_in(f, &dir, 65536, usize::MAX));
            let replace = || {
                for i in 0..FILES {
                    std::fs::remove_file(path.join(format!("{i}"))).unwrap();
                    foreign_symlink(&path.join(format!("{i}")));
                }
            };
            let mut changing = Changing {
                room: 300,
                wait: Cell::new(*wait),
                change: &replace,
                changed: Cell::new(false),
                shown: Types::new(),
            };
            let mut buf = [0; 4096];
            f.share
                .read_dir(ROOT, &dir.object(), 0, &mut buf, &mut changing)
                .unwrap();
            assert!(
                changing.shown.values().all(|&kind| kind == DT_LNK),
                "{wait} {:?}",
                changing.shown
            );
            new += changing.shown.len();
        }
        assert!(new > FILES, "{new}");
    });
}

#[test]
fn many_entries_of_many_kinds_in_pieces_of_any_size() {
    on_each(|f| {
        let root = f.open("", libc::O_RDONLY);
        let mut right = Types::new();
        for i in 0..400 {
            let (text, kind) = (format!("{i}"), if i % 2 == 0 { DT_LNK } else { DT_REG });
            match kind {
                DT_LNK => foreign_symlink(&f.dir.join(&text)),
                _ => std::fs::write(f.dir.join(&text), "").unwrap(),
            }
            right.insert(text, kind);
        }
        right.extend([".", ".."].map(|text| (text.to_owned(), DT_DIR)));
        settle([f.dir.as_path()]);
        for (bytes, count) in [
            (65536, usize::MAX),
            (65536, 100),
            (300, usize::MAX),
            (4096, 7),
            (65536, 3),
            (65536, usize::MAX),
            (65536, usize::MAX),
        ] {
            assert_eq!(list_in(f, &root, bytes, count), right, "{bytes} {count}");
        }
    });
}

#[test]
fn a_listing_beside_those_who_make_symlinks_remembers_no_file() {
    const EACH: u32 = 150;
    on_each(|f| {
        let made = [AtomicU32::new(0), AtomicU32::new(0)];
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let root = f.root();
                for i in 0..EACH {
                    symlink(f, &root, &format!("0 {i}"));
                    made[0].store(i + 1, Ordering::SeqCst);
                }
            });
            scope.spawn(|| {
                for i in 0..EACH {
                    foreign_symlink(&f.dir.join(format!("1 {i}")));
                    made[1].store(i + 1, Ordering::SeqCst);
                }
            });
            for _ in 0..2 {
                scope.spawn(|| {
                    let root = f.open("", libc::O_RDONLY);
                    loop {
                        let there = made.each_ref().map(|made| made.load(Ordering::SeqCst));
                        let types = list_in(f, &root, 65536, usize::MAX);
                        for (who, &count) in there.iter().enumerate() {
                            for i in 0..count {
                                assert_eq!(types[&format!("{who} {i}")], DT_LNK, "{who} {i} of {count}");
                            }
                        }
                        if there == [EACH; 2] {
                            return;
                        }
                    }
                });
            }
        });
        let root = f.open("", libc::O_RDONLY);
        settle([f.dir.as_path()]);
        for _ in 0..2 {
            let types = list(f, &root);
            assert_eq!(types.len() as u32, 2 * EACH + 2);
            assert!(
                types
                    .iter()
                    .all(|(name, &kind)| name.starts_with('.') || kind == DT_LNK)
            );
        }
    });
}

/// Each may take some system calls, and others wait for the thread that makes them.
#[test]
fn a_listing_looks_at_so_many_types_at_once() {
    let f = Fixture::new(SecurityModel::MappedFile);
    for at in 0..2000 {
        std::fs::write(f.dir.join(format!("{at}")), "").unwrap();
    }
    let dir = f.open("", libc::O_RDONLY);
    let (mut cookie, mut pages, mut buf) = (0, Vec::new(), vec![0; 65536]);
    loop {
        let (from, mut count) = (cookie, 0);
        let mut to = |entry: &DirEntry<'_>| {
            (cookie, count) = (entry.cookie, count + 1);
            true
        };
        f.share
            .read_dir(ROOT, &dir.object(), from, &mut buf, &mut to)
            .unwrap();
        if count == 0 {
            break;
        }
        pages.push(count);
    }
    assert_eq!(pages.iter().max(), Some(&512));
    assert_eq!(pages.iter().sum::<usize>(), 2002);
}
