//! Asking the host's user database, which the worker cannot reach.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;

use host::{CheckAccess, ShareOptions, Users};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};

use super::process;
use crate::config::reason;

/// The host's users, where a share with these options needs them. Only with one thread.
///
/// A child asks: what the C library's modules leave behind, connections to a directory service and its passwords in
/// memory, is gone with it, and nothing of that is in the worker. Before signals are blocked, so that they end a program
/// whose directory service does not answer.
pub fn users(share: &ShareOptions) -> Result<Option<Users>, String> {
    if share.check_access != CheckAccess::Host {
        return Ok(None);
    }
    ask(share)
        .map(Some)
        .map_err(|error| format!("The host's user database cannot be asked: {}.", reason(&error)))
}

fn ask(share: &ShareOptions) -> io::Result<Users> {
    let (mut ours, mut theirs) = UnixStream::pair()?;
    let Some(child) = process::split(0)? else {
        // The program may be ended meanwhile.
        let _ = prctl::set_pdeathsig(Signal::SIGKILL);
        drop(ours);
        let users = Users::of(share).map(|users| users.to_text()).unwrap_or_default();
        let sent = theirs.write_all(users.as_bytes());
        std::process::exit(i32::from(sent.is_err()));
    };
    drop(theirs);
    let mut text = String::new();
    let read = ours.read_to_string(&mut text);
    match waitpid(child, None)? {
        WaitStatus::Exited(_, 0) => {}
        other => return Err(io::Error::other(format!("{other:?}"))),
    }
    read?;
    Users::from_text(&text).ok_or_else(|| io::Error::other("it was not understood"))
}
