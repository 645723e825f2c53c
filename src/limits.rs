//! Open descriptors: as many as the host allows.

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::config::Failure;

/// Raises RLIMIT_NOFILE to the hard limit, or sets it to `wanted`; gives what it is then.
pub fn raise_nofile(wanted: Option<u64>) -> Result<u64, Failure> {
    let failed =
        |error| Failure::Environment(format!("The limit of open descriptors cannot be set: {error}."));
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(failed)?;
    let limit = match wanted {
        Some(wanted) if wanted > hard => {
            return Err(Failure::Environment(format!(
                "--rlimit-nofile {wanted} is more than this process may have: {hard}."
            )));
        }
        Some(wanted) => wanted,
        None => hard,
    };
    if limit != soft {
        setrlimit(Resource::RLIMIT_NOFILE, limit, hard).map_err(failed)?;
    }
    Ok(limit)
}

/// The guest's memory is mapped here: no core dump may carry it to the disk.
pub fn forbid_core_dumps() -> Result<(), Failure> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0)
        .map_err(|error| Failure::Environment(format!("Core dumps cannot be turned off: {error}.")))
}

/// Descriptors that the kernel's table shall have room for from the start.
const TABLE: u64 = 16 * 1024;

/// Makes the kernel's descriptor table large (128 KiB) while there is one thread. Later each doubling would wait for
/// an RCU grace period, many milliseconds in the middle of some request.
pub fn grow_table(limit: u64) {
    let Ok(high) = i32::try_from(TABLE.min(limit).saturating_sub(1)) else {
        return;
    };
    if let Ok(copy) = fcntl(std::io::stderr(), FcntlArg::F_DUPFD_CLOEXEC(high)) {
        let _ = nix::unistd::close(copy);
    }
}

/// How many of `limit` descriptors a session may hold: the rest is for the front-end's (memory regions, events) and
/// for system calls under way. Without that reserve a guest that opens many files could end its own connection.
/// Each also holds kernel memory that cannot be swapped, hence the upper bound.
pub fn session_descriptors(limit: u64) -> usize {
    let reserve = (limit / 4).min(600);
    usize::try_from((limit - reserve).min(1 << 19)).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_leaves_some_for_the_others() {
        assert_eq!(session_descriptors(256), 192);
        assert_eq!(session_descriptors(1024), 768);
        assert_eq!(session_descriptors(20_000), 19_400);
        assert_eq!(session_descriptors(u64::MAX), 1 << 19);
    }
}
