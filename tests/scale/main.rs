//! Load: many fids, many requests in flight, flushes and stops in the middle of it. Sizes and latencies are printed
//! (`--nocapture` shows them), not asserted.
//!
//! `SCALE_FIDS` (default 100,000), `SCALE_FILES` (default 10,000) and `SCALE_ENTRIES` (default 50,000) set the number of
//! fids, of distinct objects and of entries of one directory, `SCALE_PROGRAM` the program (default: the one just built).
//! A million fids and entries:
//! `SCALE_FIDS=1000000 SCALE_FILES=50000 SCALE_ENTRIES=1000000 cargo test --release --test scale -- --nocapture`.

#![allow(missing_docs)]

mod bounds;
mod directory;
mod fids;
mod flight;
mod flush;
mod hung;
mod limits;
mod moved;
mod program;
mod removal;
mod restart;
