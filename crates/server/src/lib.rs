//! A 9P2000.L session: fids and their state machine, one file per message family.
//!
//! The device hands in requests and gets outcomes; what a ring or a descriptor is, is not known here.
//!
//! | files | are |
//! |---|---|
//! | `session` | what becomes of each message: the protocol's table of contents |
//! | `version attach walk open io dir attr xattr lock link fsync statfs flush` | the handlers, a file per message family |
//! | `run` | reads or writes that adjoin, in one system call |
//! | `table`, `nodes`, `locks` | the session's state: fids, the objects they stand for, byte ranges held |
//! | `slab`, `bytes`, `coverage` | what state is kept in |
//! | `background` | work that nobody waits for |
//! | `dentries`, `descend` | which directory a name led to last, and walks that make use of it |
//! | `capability` | what Linux asks before each write, remembered |
//! | `freeing`, `depth` | which requests give so much storage back, or are so deep in the tree, that they take long |
//! | `pin`, `find` | state in use without the lock; descriptors given back and objects found again |
//! | `reply`, `request`, `failure` | what comes in and goes out |

mod attach;
mod attr;
mod background;
mod bytes;
mod capability;
mod coverage;
mod dentries;
mod depth;
mod descend;
mod dir;
mod failure;
mod find;
mod flush;
mod freeing;
mod fsync;
mod getattrs;
mod io;
mod link;
mod lock;
mod locks;
mod nodes;
mod open;
mod pin;
mod reply;
pub mod request;
pub mod run;
mod session;
mod slab;
mod statfs;
mod table;
mod version;
mod walk;
mod xattr;

pub use request::{How, Outcome, Request, Scratch};
pub use run::Neighbour;
pub use session::{Limits, Session, Usage};
