//! More files than the backend has descriptors for.

use std::collections::BTreeSet;
use std::fs;

use crate::backend::Setup;
use crate::vm::{self, Vm};

const DIRECTORIES: usize = 200;
const FILES: usize = 1000;

#[test]
fn two_hundred_thousand_files_under_1024_descriptors() {
    let backend = Setup {
        options: &["--rlimit-nofile", "1024"],
        ..Setup::ROOT
    }
    .start();
    let share = backend.share();
    let mut names = BTreeSet::new();
    for dir in 0..DIRECTORIES {
        let dir = format!("tree/{dir:03}");
        fs::create_dir_all(share.join(&dir)).unwrap();
        for file in 0..FILES {
            let name = format!("{dir}/file-{file:03}");
            let content = if matches!(file, 0 | 499 | 999) { &name } else { "" };
            fs::write(share.join(&name), content).unwrap();
            names.insert(name);
        }
    }
    let pid = backend.worker().expect("this is about our own program");
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let limit = limits.lines().find(|line| line.starts_with("Max open files"));
    assert_eq!(limit.unwrap().split_whitespace().nth(3), Some("1024"));

    let stress = vm::compile("stress");
    Vm::on(&backend)
        .no_mount()
        .memory("1G")
        .add(&stress.path)
        .run("many.sh")
        .expect_success();

    let some = |name: &&String| name.starts_with("tree/06") || name.starts_with("tree/16");
    for (list, should) in [
        ("listed-none", names.clone()),
        ("found-none", names.iter().filter(some).cloned().collect()),
        ("found-loose", names.clone()),
        ("listed-loose", names.clone()),
    ] {
        let text = fs::read_to_string(share.join(list)).unwrap();
        let mut found = BTreeSet::new();
        for name in text.lines() {
            assert!(found.insert(name.to_owned()), "{list}: {name} twice");
        }
        let missing: Vec<_> = should.difference(&found).take(3).collect();
        let surplus: Vec<_> = found.difference(&should).take(3).collect();
        assert!(
            missing.is_empty() && surplus.is_empty(),
            "{list}: missing {missing:?}, surplus {surplus:?}"
        );
    }
    backend.stop();
}
