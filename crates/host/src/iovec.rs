//! Pieces of memory that the kernel may read or write, and nobody else: guest memory is never a Rust slice.

/// A raw range of memory, laid out as `struct iovec`.
///
/// The guest may change what lies behind it at any time, so it is only ever handed to system calls or
/// copied with raw pointer copies into private memory.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct IoVec(libc::iovec);

// SAFETY: an IoVec is two numbers; dereferencing it is the unsafe step, not moving it between threads.
unsafe impl Send for IoVec {}
// SAFETY: as above.
unsafe impl Sync for IoVec {}

impl IoVec {
    /// A range of `len` bytes at `base`.
    ///
    /// # Safety
    /// The range must stay mapped, readable and writable as its use demands, for as long as the value is used.
    pub unsafe fn new(base: *mut u8, len: usize) -> IoVec {
        IoVec(libc::iovec {
            iov_base: base.cast(),
            iov_len: len,
        })
    }

    /// First byte.
    pub fn base(&self) -> *mut u8 {
        self.0.iov_base.cast()
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.0.iov_len
    }

    /// Whether the range is empty.
    pub fn is_empty(&self) -> bool {
        self.0.iov_len == 0
    }

    /// The part of this range from `skip` on, at most `max` bytes; empty when `skip` is beyond the end.
    pub fn part(&self, skip: usize, max: usize) -> IoVec {
        let skip = skip.min(self.len());
        let len = (self.len() - skip).min(max);
        IoVec(libc::iovec {
            iov_base: self.base().wrapping_add(skip).cast(),
            iov_len: len,
        })
    }

    /// Bytes in all of `list`.
    pub fn total(list: &[IoVec]) -> usize {
        list.iter().map(IoVec::len).sum()
    }

    /// Appends to `out` the bytes `skip .. skip + max` of the stream that `list` is.
    pub fn slice_into(list: &[IoVec], skip: usize, max: usize, out: &mut Vec<IoVec>) {
        let (mut skip, mut left) = (skip, max);
        for piece in list {
            if left == 0 {
                break;
            }
            if skip >= piece.len() {
                skip -= piece.len();
                continue;
            }
            let part = piece.part(skip, left);
            skip = 0;
            left -= part.len();
            if !part.is_empty() {
                out.push(part);
            }
        }
    }

    /// Copies `bytes` into the stream that `list` is, from its byte `offset` on; gives the bytes that fitted.
    ///
    /// # Safety
    /// Every range in `list` must be mapped and writable.
    pub unsafe fn write(list: &[IoVec], offset: usize, bytes: &[u8]) -> usize {
        let (mut skip, mut done) = (offset, 0);
        for piece in list {
            if skip >= piece.len() {
                skip -= piece.len();
                continue;
            }
            let part = piece.part(skip, bytes.len() - done);
            skip = 0;
            // SAFETY: `part` lies within a range the caller vouches for; `bytes` is private memory, so no overlap.
            unsafe { std::ptr::copy_nonoverlapping(bytes[done..].as_ptr(), part.base(), part.len()) };
            done += part.len();
            if done == bytes.len() {
                break;
            }
        }
        done
    }

    /// Copies out of the stream that `list` is, from its byte `offset` on; gives the bytes copied.
    ///
    /// # Safety
    /// Every range in `list` must be mapped and readable.
    pub unsafe fn read(list: &[IoVec], offset: usize, into: &mut [u8]) -> usize {
        let (mut skip, mut done) = (offset, 0);
        for piece in list {
            if skip >= piece.len() {
                skip -= piece.len();
                continue;
            }
            let part = piece.part(skip, into.len() - done);
            skip = 0;
            // SAFETY: as in `write`, the other way round.
            unsafe { std::ptr::copy_nonoverlapping(part.base(), into[done..].as_mut_ptr(), part.len()) };
            done += part.len();
            if done == into.len() {
                break;
            }
        }
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(parts: &mut [Vec<u8>]) -> Vec<IoVec> {
        // SAFETY: the vectors outlive every use in these tests.
        parts
            .iter_mut()
            .map(|p| unsafe { IoVec::new(p.as_mut_ptr(), p.len()) })
            .collect()
    }

    #[test]
    fn a_stream_crosses_pieces() {
        let mut parts = [vec![0u8; 3], vec![0u8; 0], vec![0u8; 5]];
        let iov = list(&mut parts);
        // SAFETY: `parts` is alive.
        assert_eq!(unsafe { IoVec::write(&iov, 2, b"abcdefgh") }, 6);
        let mut back = [0u8; 4];
        // SAFETY: `parts` is alive.
        assert_eq!(unsafe { IoVec::read(&iov, 1, &mut back) }, 4);
        assert_eq!(&back, b"\0abc");
        let mut out = Vec::new();
        IoVec::slice_into(&iov, 2, 3, &mut out);
        assert_eq!(out.iter().map(IoVec::len).collect::<Vec<_>>(), [1, 2]);
        IoVec::slice_into(&iov, 8, 3, &mut out);
        assert_eq!(out.len(), 2);
        assert_eq!(parts[2], b"bcdef");
    }
}
