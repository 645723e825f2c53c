//! A 9P2000.L session: fids and their state machine, one file per message family.
//!
//! The device hands in requests and gets outcomes; what a ring or a descriptor is, is not known here.

pub mod request;

pub use request::{How, Outcome, Request, Scratch};
