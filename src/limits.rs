//! Open descriptors: as many as the host allows.

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
