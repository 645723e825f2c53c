//! Tflush: the client no longer waits for a request.

use crate::codec::{empty_messages, messages};

messages! { 'a:
    /// Cancels a request.
    Tflush = TFLUSH {
        /// The tag of the request.
        oldtag: u16,
    }
}

empty_messages! {
    /// The request `oldtag` has been answered, or will never be; its tag may be used again.
    Rflush = RFLUSH;
}
