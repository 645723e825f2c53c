//! The documents name the tests that show what they say: a name that is nobody's would show nothing.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

fn functions(dir: &Path, names: &mut HashSet<String>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            functions(&path, names);
        } else if path.extension().is_some_and(|end| end == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let found = text
                .split("fn ")
                .skip(1)
                .filter_map(|rest| rest.split(['(', '<']).next());
            names.extend(found.map(str::to_owned));
        }
    }
}

/// Tests of pjdfstest.
const OTHERS: [&str; 1] = ["uid_gid_eq_euid_egid"];

/// Whether a word in code quotes is the name of a test: lower case, of several words.
fn is_test(word: &str) -> bool {
    word.matches('_').count() >= 3
        && word
            .bytes()
            .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_'))
}

#[test]
fn every_test_that_a_document_names_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut names = HashSet::new();
    for dir in ["crates", "src", "tests"] {
        functions(&root.join(dir), &mut names);
    }
    let mut seen = 0;
    for entry in fs::read_dir(root.join("docs")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|end| end != "md") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        for word in text
            .split('`')
            .skip(1)
            .step_by(2)
            .filter(|word| is_test(word) && !OTHERS.contains(word))
        {
            assert!(names.contains(word), "{}: {word}", path.display());
            seen += 1;
        }
    }
    assert!(seen > 50, "{seen}");
}
