//! Two servers on two directories, and a sequence done to both.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::path::PathBuf;

use crate::ask::{Answer, Server, ask, version};
use crate::compare::{self, Qids};
use crate::differences::FID;
use crate::rules::{self, Context, Mode, Rule};
use crate::step::{Step, show};
use crate::tree::{self, Tree};
use crate::world::World;

/// One side of the comparison.
pub struct Party {
    /// Serves `directory`.
    pub server: Box<dyn Server>,
    pub directory: PathBuf,
    /// A server of the same kind on the OTHER party's directory, for reading what that one wrote.
    pub reader: Box<dyn Server>,
    pub qids: Qids,
}

pub struct Pair {
    pub mode: Mode,
    /// QEMU, then what is compared with it.
    pub parties: [Party; 2],
    pub rules: &'static [Rule],
    /// How often each rule was used.
    pub used: BTreeMap<&'static str, u64>,
    /// Requests sent to each side.
    pub requests: u64,
}

/// What came of one try.
enum End {
    Same,
    /// Step `at` is allowed to differ.
    Without {
        at: usize,
        rule: &'static Rule,
    },
    /// Not allowed.
    Different(String),
}

impl Pair {
    /// Does a sequence to both sides. `Err` says what differs.
    pub fn run(&mut self, steps: &[Step]) -> Result<(), String> {
        let mut steps = steps.to_vec();
        loop {
            match self.attempt(&steps) {
                End::Same => return Ok(()),
                End::Different(text) => return Err(text),
                End::Without { at, rule } => {
                    *self.used.entry(rule.name).or_default() += 1;
                    steps.remove(at);
                }
            }
        }
    }

    fn attempt(&mut self, steps: &[Step]) -> End {
        for party in &mut self.parties {
            version(&mut *party.server);
            tree::clear(&party.directory).expect("the test's own directory can be emptied");
        }
        let [left, right] = &mut self.parties;
        let mut world = World::new(&left.directory, &right.directory);
        for (at, step) in steps.iter().enumerate() {
            if let Step::Clunk { fid } | Step::Remove { fid } = step
                && let Some(end) = astray(self.rules, &steps[..at], &world, *fid)
            {
                return end;
            }
            let guest_mode = rules::needs_mode(step)
                .filter(|_| !self.rules.is_empty())
                .and_then(|fid| match ask(&mut *right.server, &Step::Getattr { fid }, 1) {
                    Answer::Attr(attr) => Some(attr.mode),
                    _ => None,
                });
            let context = Context {
                mode: self.mode,
                step,
                world: &world,
                guest_mode,
            };
            if let Some(rule) = rules::leave(self.rules, &context) {
                return End::Without { at, rule };
            }
            self.requests += 1;
            let tag = (at % 1000) as u16;
            let answers = [&mut *left, &mut *right].map(|party| match by_host(&party.directory, step) {
                Some(result) => match result {
                    Ok(()) => Answer::Done,
                    Err(error) => Answer::Error(error.raw_os_error().unwrap_or(0)),
                },
                None => ask(&mut *party.server, step, tag),
            });
            let mut found = compare::answers(step, &answers[0], &answers[1], &world, [left.qids, right.qids]);
            if let Some(rule) = rules::excuse(self.rules, &context, [&answers[0], &answers[1]], &mut found) {
                return End::Without { at, rule };
            }
            if !found.is_empty() {
                let lines: Vec<String> = found.into_iter().map(|difference| difference.text).collect();
                return End::Different(format!("step {at}, {step}:\n    {}", lines.join("\n    ")));
            }
            world.update(step, &answers[1]);
        }
        // A new session would do: QEMU sets an xattr then that was written and not clunked, and we do not.
        let mut fids: Vec<u32> = world.fids.keys().copied().collect();
        fids.sort_unstable();
        if let Some(end) = fids
            .iter()
            .find_map(|fid| astray(self.rules, steps, &world, *fid))
        {
            return end;
        }
        for fid in fids {
            let answers =
                [&mut *left, &mut *right].map(|party| ask(&mut *party.server, &Step::Clunk { fid }, 1));
            if answers[0] != answers[1] {
                return End::Different(format!("the last clunk of fid {fid}: {answers:?}"));
            }
        }
        match self.trees() {
            Ok(()) => End::Same,
            Err(text) => End::Different(text),
        }
    }

    /// The trees on the host, and what each server makes of its own and of the other's.
    fn trees(&mut self) -> Result<(), String> {
        let [left, right] = &mut self.parties;
        // Reading moves atimes, so the host's view comes first.
        let read = |path| tree::on_host(path).map_err(|error| format!("cannot read the tree: {error}"));
        same(
            "the host trees",
            &read(&left.directory)?,
            &read(&right.directory)?,
        )?;
        // In mapped-file QEMU counts a directory's metadata among its links, and we do not (see `differences`).
        let uncounted = !self.rules.is_empty() && self.mode == Mode::MappedFile;
        let through = |server: &mut dyn Server| {
            let mut tree = tree::through(server)?;
            let directories = tree
                .values_mut()
                .filter(|node| node.mode & libc::S_IFMT == libc::S_IFDIR);
            directories.for_each(|node| node.nlink *= u64::from(!uncounted));
            Ok::<_, String>(tree)
        };
        let seen = through(&mut *left.server)?;
        for (what, server) in [
            ("what each shows of its own tree", &mut right.server),
            ("the first's tree read by both", &mut right.reader),
            (
                "the first's view of its own and the other's tree",
                &mut left.reader,
            ),
        ] {
            same(what, &seen, &through(&mut **server)?)?;
        }
        Ok(())
    }

    /// The shortest sequence that still differs, and how.
    pub fn shrink(&mut self, steps: &[Step], found: String) -> (Vec<Step>, String) {
        let (mut best, mut text) = (steps.to_vec(), found);
        let mut width = best.len() / 2;
        // Whole halves, quarters ... single steps, until no single step can go.
        while width > 0 {
            let mut at = 0;
            let mut shorter = false;
            while at < best.len() {
                let mut fewer = best.clone();
                fewer.drain(at..(at + width).min(best.len()));
                match self.run(&fewer) {
                    Err(found) => {
                        (best, text) = (fewer, found);
                        shorter = true;
                    }
                    Ok(()) => at += width,
                }
            }
            if width > 1 || !shorter {
                width /= 2;
            }
        }
        (best, text)
    }

    /// Runs a sequence; a difference is minimised and described.
    pub fn check(&mut self, title: &str, steps: &[Step]) -> Result<(), String> {
        self.run(steps).map_err(|found| {
            let (steps, found) = self.shrink(steps, found);
            let names = [self.parties[0].server.name(), self.parties[1].server.name()].join(" / ");
            format!(
                "{title}: {names} differ in {:?}\n{}differs: {found}\n",
                self.mode,
                show(&steps)
            )
        })
    }
}

/// An xattr is set when its fid is clunked: by QEMU on what is at the fid's path by then. When that is another object
/// or none, the xattr is better not begun.
fn astray(rules: &'static [Rule], before: &[Step], world: &World, fid: u32) -> Option<End> {
    let rule = rules.iter().find(|rule| rule.name == FID)?;
    let known = world.fids.get(&fid).filter(|known| known.xattr)?;
    if world.inodes(&known.path) == known.inodes {
        return None;
    }
    let begun = |step: &Step| matches!(step, Step::Xattrcreate { fid: of, .. } if *of == fid);
    let at = before.iter().rposition(begun)?;
    Some(End::Without { at, rule })
}

fn same(what: &str, left: &Tree, right: &Tree) -> Result<(), String> {
    let lines = tree::differences(left, right);
    if lines.is_empty() {
        Ok(())
    } else {
        Err(format!("{what}:\n    {}", lines.join("\n    ")))
    }
}

/// A change made behind the servers' backs.
fn by_host(root: &std::path::Path, step: &Step) -> Option<io::Result<()>> {
    let full = |path: &crate::step::Bytes| {
        use std::os::unix::ffi::OsStrExt;
        root.join(std::ffi::OsStr::from_bytes(&path.0))
    };
    Some(match step {
        Step::HostFile { path, mode, data } => OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(*mode)
            .custom_flags(libc::O_NOFOLLOW)
            .open(full(path))
            .and_then(|mut file| file.write_all(&data.0)),
        Step::HostDir { path, mode } => fs::create_dir(full(path))
            .and_then(|()| fs::set_permissions(full(path), fs::Permissions::from_mode(*mode))),
        Step::HostSymlink { path, target } => {
            use std::os::unix::ffi::OsStrExt;
            symlink(std::ffi::OsStr::from_bytes(&target.0), full(path))
        }
        Step::HostRemove { path } => fs::remove_file(full(path)).or_else(|_| fs::remove_dir(full(path))),
        _ => return None,
    })
}
