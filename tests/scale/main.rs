//! Load: many fids, many requests in flight, flushes and stops in the middle of it. Sizes and latencies are printed
//! (`--nocapture` shows them), never asserted.
//!
//! `SCALE_FIDS` (default 100,000), `SCALE_FILES` (default 10,000) and `SCALE_PROGRAM` (default: the one just built)
//! set the number of fids, of distinct objects, and the program. The million of the documentation:
//! `SCALE_FIDS=1000000 SCALE_FILES=50000 cargo test --release --test scale -- --nocapture`.

#![allow(missing_docs)]

mod fids;
mod flight;
mod flush;
mod hung;
mod limits;
mod program;
mod restart;
