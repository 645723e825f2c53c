//! virtio-9p over vhost-user: descriptor chains in, completions out; what a request means is the session's business.
//!
//! - `memory`, `chain`, `ring`: guest memory, descriptor chains and the split ring, every byte checked.
//! - `vring`: the queue's state, behind one lock. `event` has what the event descriptors need, `sigbus` what is to be
//!   done when guest memory goes away.
//! - `job`, `queue`, `poll`: one request; the thread that answers them; how long it looks before it sleeps.
//! - `run`: requests next to each other that are done together.
//! - `inflight`, `pool`: requests that block or wait, and Tflush.
//! - `backend`, `serve`: the vhost-user device, and one front-end after the other.

mod backend;
mod chain;
mod event;
mod handler;
mod inflight;
mod job;
mod memory;
mod poll;
mod pool;
mod queue;
mod ring;
mod run;
mod serve;
mod sigbus;
mod vring;

#[cfg(feature = "fuzzing")]
pub use backend::Backend;
pub use backend::{DeviceOptions, MAX_TAG, Role};
pub use handler::Handler;
pub use serve::{Stop, serve};
pub use sigbus::{MEMORY_LOST, end_when_memory_is_lost};
/// The listening socket's type, as [`serve`] takes it.
pub use vhost::vhost_user::Listener;
#[cfg(feature = "fuzzing")]
pub use {queue::Worker, vring::Vring};
