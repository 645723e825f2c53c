//! A client calls sessions in this process: one file per message family, and what spans them.

mod common;
mod neighbours;

mod attach;
mod attr;
mod bounds;
mod capability;
mod depth;
mod dir;
mod flock;
mod flush;
mod freeing;
mod fsync;
mod getattrs;
mod io;
mod link;
mod listing;
mod lock;
mod long_paths;
mod open;
mod statfs;
mod version;
mod walk;
mod xattr;

mod callers;
mod failing;
mod hang;
mod identity;
mod known;
mod many;
mod moved_out;
mod race;
mod run;
mod threads;
mod unlinked;
