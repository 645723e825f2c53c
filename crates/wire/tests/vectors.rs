//! Every message, byte for byte as the protocol's text lays it out, written by hand. A round trip cannot see two
//! fields that are exchanged in both directions; this can.

use wire::*;

/// The bytes that a line of hex digits and `"text"` stands for.
fn bytes(line: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (index, part) in line.split('"').enumerate() {
        if index % 2 == 1 {
            bytes.extend(part.as_bytes());
            continue;
        }
        let digits: String = part.split_whitespace().collect();
        assert!(digits.len().is_multiple_of(2), "odd digits in {line}");
        for at in (0..digits.len()).step_by(2) {
            bytes.push(u8::from_str_radix(&digits[at..at + 2], 16).expect("hex digits"));
        }
    }
    bytes
}

fn t<'a>(line: &str, message: impl Into<Tmessage<'a>>) {
    let (want, message) = (bytes(line), message.into());
    let mut buf = [0; 256];
    let len = message.encode(0xbeef, &mut buf).expect("it fits");
    assert_eq!(buf[..len], want, "{message:?}");
    assert_eq!(Tmessage::decode(&want), Ok((0xbeef, message)));
}

fn r<'a>(line: &str, message: impl Into<Rmessage<'a>>) {
    let (want, message) = (bytes(line), message.into());
    let mut buf = [0; 256];
    let len = message.encode(0xbeef, &mut buf).expect("it fits");
    assert_eq!(buf[..len], want, "{message:?}");
    assert_eq!(Rmessage::decode(&want), Ok((0xbeef, message)));
}

const QID: Qid = Qid {
    kind: QTDIR,
    version: 0x0403_0201,
    path: 0x1807_1605_1403_1201,
};
const DIR: u32 = 0xd1;
const FID: u32 = 0xf1;

#[test]
fn version_and_error() {
    t(
        r#"15000000 64 efbe 00200000 0800 "9P2000.L""#,
        Tversion {
            msize: 8192,
            version: VERSION_9P2000_L,
        },
    );
    r(
        r#"15000000 65 efbe 00100000 0800 "9P2000.L""#,
        Rversion {
            msize: 4096,
            version: VERSION_9P2000_L,
        },
    );
    r(
        r#"14000000 65 efbe 00100000 0700 "unknown""#,
        Rversion {
            msize: 4096,
            version: VERSION_UNKNOWN,
        },
    );
    r("0b000000 07 efbe 5f000000", Rlerror { ecode: 95 });

    let mut buf = [0; 11];
    assert_eq!(encode_lerror(&mut buf, 0xbeef, 2), Some(11));
    assert_eq!(buf[..], bytes("0b000000 07 efbe 02000000"));
}

#[test]
fn attach_and_flush() {
    t(
        r#"1e000000 68 efbe f1000000 ffffffff 0600 "nobody" 0100 "/" e8030000"#,
        Tattach {
            fid: FID,
            afid: NOFID,
            uname: b"nobody",
            aname: b"/",
            n_uname: 1000,
        },
    );
    t(
        "17000000 68 efbe f1000000 ffffffff 0000 0000 ffffffff",
        Tattach {
            fid: FID,
            afid: NOFID,
            uname: b"",
            aname: b"",
            n_uname: NONUNAME,
        },
    );
    r(
        "14000000 69 efbe 80 01020304 0112031405160718",
        Rattach { qid: QID },
    );
    t("09000000 6c efbe 3412", Tflush { oldtag: 0x1234 });
    r("07000000 6d efbe", Rflush);
}

#[test]
fn walk_clunk_remove() {
    t(
        r#"1c000000 6e efbe f1000000 f2000000 0200 0300 "usr" 0400 "libx""#,
        Twalk {
            fid: FID,
            newfid: 0xf2,
            names: Names::new(&[b"usr", b"libx"]),
        },
    );
    t(
        "11000000 6e efbe f1000000 f2000000 0000",
        Twalk {
            fid: FID,
            newfid: 0xf2,
            names: Names::default(),
        },
    );
    r(
        "23000000 6f efbe 0200 80 01020304 0112031405160718 02 05000000 0600000000000000",
        Rwalk {
            qids: Qids::new(&[
                QID,
                Qid {
                    kind: QTSYMLINK,
                    version: 5,
                    path: 6,
                },
            ]),
        },
    );
    r(
        "09000000 6f efbe 0000",
        Rwalk {
            qids: Qids::default(),
        },
    );
    t("0b000000 78 efbe f1000000", Tclunk { fid: FID });
    r("07000000 79 efbe", Rclunk);
    t("0b000000 7a efbe f1000000", Tremove { fid: FID });
    r("07000000 7b efbe", Rremove);
}

#[test]
fn open() {
    t(
        "0f000000 0c efbe f1000000 02840000",
        Tlopen {
            fid: FID,
            flags: P9_DOTL_RDWR | P9_DOTL_APPEND | P9_DOTL_LARGEFILE,
        },
    );
    r(
        "18000000 0d efbe 80 01020304 0112031405160718 00100000",
        Rlopen {
            qid: QID,
            iounit: 4096,
        },
    );
    t(
        r#"1c000000 0e efbe f1000000 0300 "new" c1000000 a4810000 e9030000"#,
        Tlcreate {
            fid: FID,
            name: b"new",
            flags: P9_DOTL_WRONLY | P9_DOTL_CREATE | P9_DOTL_EXCL,
            mode: 0o100644,
            gid: 1001,
        },
    );
    r(
        "18000000 0f efbe 80 01020304 0112031405160718 00000000",
        Rlcreate { qid: QID, iounit: 0 },
    );
}

#[test]
fn io() {
    t(
        "17000000 74 efbe f1000000 0807060504030201 00100000",
        Tread {
            fid: FID,
            offset: 0x0102_0304_0506_0708,
            count: 4096,
        },
    );
    r(r#"10000000 75 efbe 05000000 "hello""#, Rread { data: b"hello" });
    r("0b000000 75 efbe 00000000", Rread { data: b"" });
    t(
        r#"1c000000 76 efbe f1000000 0807060504030201 05000000 "hello""#,
        Twrite {
            fid: FID,
            offset: 0x0102_0304_0506_0708,
            count: 5,
            data: b"hello",
        },
    );
    // The header alone; size counts the five bytes that follow elsewhere.
    t(
        "1c000000 76 efbe f1000000 0807060504030201 05000000",
        Twrite {
            fid: FID,
            offset: 0x0102_0304_0506_0708,
            count: 5,
            data: b"",
        },
    );
    r("0b000000 77 efbe 05000000", Rwrite { count: 5 });

    let mut buf = [0; 11];
    assert_eq!(encode_rread_header(&mut buf, 0xbeef, 0x20000), Some(11));
    assert_eq!(buf[..], bytes("0b000200 75 efbe 00000200"));
}

#[test]
fn dir() {
    t(
        "17000000 28 efbe d1000000 0807060504030201 00100000",
        Treaddir {
            fid: DIR,
            offset: 0x0102_0304_0506_0708,
            count: 4096,
        },
    );
    let entries = bytes(
        r#"80 01020304 0112031405160718 0100000000000000 04 0100 "."
           00 07000000 0800000000000000 ffffffffffffff7f 08 0300 "a b""#,
    );
    r(
        r#"3f000000 29 efbe 34000000
           80 01020304 0112031405160718 0100000000000000 04 0100 "."
           00 07000000 0800000000000000 ffffffffffffff7f 08 0300 "a b""#,
        Rreaddir { data: &entries },
    );
    let dot = Dirent {
        qid: QID,
        offset: 1,
        kind: 4,
        name: b".",
    };
    let file = Dirent {
        qid: Qid {
            kind: QTFILE,
            version: 7,
            path: 8,
        },
        offset: i64::MAX as u64,
        kind: 8,
        name: b"a b",
    };
    assert_eq!(
        Rreaddir { data: &entries }.entries().collect::<Vec<_>>(),
        [Ok(dot), Ok(file)]
    );
    let mut buf = [0; 52];
    assert_eq!(dot.encode(&mut buf), Some(25));
    assert_eq!(file.encode(&mut buf[25..]), Some(27));
    assert_eq!(buf[..], entries);
    let mut buf = [0; 11];
    assert_eq!(encode_rreaddir_header(&mut buf, 0xbeef, 52), Some(11));
    assert_eq!(buf[..], bytes("3f000000 29 efbe 34000000"));

    t(
        r#"18000000 48 efbe d1000000 0300 "sub" ed410000 e9030000"#,
        Tmkdir {
            dfid: DIR,
            name: b"sub",
            mode: 0o40755,
            gid: 1001,
        },
    );
    r(
        "14000000 49 efbe 80 01020304 0112031405160718",
        Rmkdir { qid: QID },
    );
    t(
        r#"20000000 12 efbe d1000000 0300 "dev" b6210000 01000000 03000000 e9030000"#,
        Tmknod {
            dfid: DIR,
            name: b"dev",
            mode: 0o20666,
            major: 1,
            minor: 3,
            gid: 1001,
        },
    );
    r(
        "14000000 13 efbe 80 01020304 0112031405160718",
        Rmknod { qid: QID },
    );
    t(
        r#"14000000 14 efbe f1000000 d1000000 0300 "new""#,
        Trename {
            fid: FID,
            dfid: DIR,
            name: b"new",
        },
    );
    r("07000000 15 efbe", Rrename);
    t(
        r#"19000000 4a efbe d1000000 0300 "old" d2000000 0300 "new""#,
        Trenameat {
            olddirfid: DIR,
            oldname: b"old",
            newdirfid: 0xd2,
            newname: b"new",
        },
    );
    r("07000000 4b efbe", Rrenameat);
    t(
        r#"14000000 4c efbe d1000000 0300 "sub" 00020000"#,
        Tunlinkat {
            dirfd: DIR,
            name: b"sub",
            flags: P9_DOTL_AT_REMOVEDIR,
        },
    );
    r("07000000 4d efbe", Runlinkat);
}

#[test]
fn attr() {
    t(
        "13000000 18 efbe f1000000 ff17000000000000",
        Tgetattr {
            fid: FID,
            mask: P9_GETATTR_BASIC | P9_GETATTR_GEN,
        },
    );
    r(
        "a0000000 19 efbe ff07000000000000 80 01020304 0112031405160718 ed410000 e8030000 e9030000
         0100000000000000 0200000000000000 0300000000000000 0400000000000000 0500000000000000
         0600000000000000 0700000000000000 0800000000000000 0900000000000000 0a00000000000000
         0b00000000000000 0c00000000000000 0d00000000000000 0e00000000000000 0f00000000000000",
        Rgetattr {
            valid: P9_GETATTR_BASIC,
            qid: QID,
            mode: 0o40755,
            uid: 1000,
            gid: 1001,
            nlink: 1,
            rdev: 2,
            size: 3,
            blksize: 4,
            blocks: 5,
            atime_sec: 6,
            atime_nsec: 7,
            mtime_sec: 8,
            mtime_nsec: 9,
            ctime_sec: 10,
            ctime_nsec: 11,
            btime_sec: 12,
            btime_nsec: 13,
            generation: 14,
            data_version: 15,
        },
    );
    t(
        "43000000 1a efbe f1000000 ff010000 a4810000 e8030000 e9030000 0100000000000000
         0200000000000000 0300000000000000 0400000000000000 0500000000000000",
        Tsetattr {
            fid: FID,
            valid: P9_SETATTR_MODE
                | P9_SETATTR_UID
                | P9_SETATTR_GID
                | P9_SETATTR_SIZE
                | P9_SETATTR_ATIME
                | P9_SETATTR_MTIME
                | P9_SETATTR_CTIME
                | P9_SETATTR_ATIME_SET
                | P9_SETATTR_MTIME_SET,
            mode: 0o100644,
            uid: 1000,
            gid: 1001,
            size: 1,
            atime_sec: 2,
            atime_nsec: 3,
            mtime_sec: 4,
            mtime_nsec: 5,
        },
    );
    r("07000000 1b efbe", Rsetattr);
}

#[test]
fn xattr() {
    t(
        r#"17000000 1e efbe f1000000 f2000000 0600 "user.x""#,
        Txattrwalk {
            fid: FID,
            newfid: 0xf2,
            name: b"user.x",
        },
    );
    r("0f000000 1f efbe 0500000000000000", Rxattrwalk { size: 5 });
    t(
        r#"1f000000 20 efbe f1000000 0600 "user.x" 0500000000000000 02000000"#,
        Txattrcreate {
            fid: FID,
            name: b"user.x",
            size: 5,
            flags: P9_XATTR_REPLACE,
        },
    );
    r("07000000 21 efbe", Rxattrcreate);
}

#[test]
fn lock() {
    t(
        r#"2a000000 34 efbe f1000000 01 01000000 0800000000000000 0a00000000000000 d2040000 0400 "host""#,
        Tlock {
            fid: FID,
            kind: P9_LOCK_TYPE_WRLCK,
            flags: P9_LOCK_FLAGS_BLOCK,
            start: 8,
            length: 10,
            proc_id: 1234,
            client_id: b"host",
        },
    );
    r(
        "08000000 35 efbe 01",
        Rlock {
            status: P9_LOCK_BLOCKED,
        },
    );
    t(
        r#"26000000 36 efbe f1000000 00 0800000000000000 0000000000000000 d2040000 0400 "host""#,
        Tgetlock {
            fid: FID,
            kind: P9_LOCK_TYPE_RDLCK,
            start: 8,
            length: 0,
            proc_id: 1234,
            client_id: b"host",
        },
    );
    r(
        r#"22000000 37 efbe 02 0800000000000000 0a00000000000000 d2040000 0400 "host""#,
        Rgetlock {
            kind: P9_LOCK_TYPE_UNLCK,
            start: 8,
            length: 10,
            proc_id: 1234,
            client_id: b"host",
        },
    );
}

#[test]
fn link() {
    t(
        r#"14000000 46 efbe d1000000 f1000000 0300 "two""#,
        Tlink {
            dfid: DIR,
            fid: FID,
            name: b"two",
        },
    );
    r("07000000 47 efbe", Rlink);
    t(
        r#"1b000000 10 efbe d1000000 0300 "sym" 0500 "../to" e9030000"#,
        Tsymlink {
            dfid: DIR,
            name: b"sym",
            target: b"../to",
            gid: 1001,
        },
    );
    r(
        "14000000 11 efbe 80 01020304 0112031405160718",
        Rsymlink { qid: QID },
    );
    t("0b000000 16 efbe f1000000", Treadlink { fid: FID });
    r(r#"0e000000 17 efbe 0500 "../to""#, Rreadlink { target: b"../to" });
}

#[test]
fn fsync() {
    t(
        "0f000000 32 efbe f1000000 01000000",
        Tfsync {
            fid: FID,
            datasync: 1,
        },
    );
    // As the protocol's text has it, without datasync.
    assert_eq!(
        Tmessage::decode(&bytes("0b000000 32 efbe f1000000")),
        Ok((
            0xbeef,
            Tmessage::Fsync(Tfsync {
                fid: FID,
                datasync: 0
            })
        ))
    );
    r("07000000 33 efbe", Rfsync);
}

#[test]
fn statfs() {
    t("0b000000 08 efbe f1000000", Tstatfs { fid: FID });
    r(
        "43000000 09 efbe 53ef0000 00100000 0100000000000000 0200000000000000 0300000000000000
         0400000000000000 0500000000000000 0600000000000000 ff000000",
        Rstatfs {
            kind: 0xef53,
            bsize: 4096,
            blocks: 1,
            bfree: 2,
            bavail: 3,
            files: 4,
            ffree: 5,
            fsid: 6,
            namelen: 255,
        },
    );
}

#[test]
fn unknown() {
    t("07000000 66 efbe", Tmessage::Unknown { kind: TAUTH });
    r("07000000 6b efbe", Rmessage::Unknown { kind: RERROR });
    // Topen of 9P2000, whose body is then not looked at.
    assert_eq!(
        Tmessage::decode(&bytes("0c000000 70 efbe f1000000 00")),
        Ok((0xbeef, Tmessage::Unknown { kind: 112 }))
    );
}
