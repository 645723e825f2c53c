//! Twalk, Tclunk, Tremove: where fids come from and where they go.

use core::fmt;

use crate::codec::{DecodeErrorKind, Field, Reader, Text, Writer, empty_messages, messages};
use crate::{MAXWELEM, Qid};

messages! { 'a:
    /// Makes `newfid` from `fid` by going down `names`; without names, a second fid of the same file.
    Twalk<'a> = TWALK {
        /// Where to start. May be open.
        fid: u32,
        /// The new fid; may be `fid` itself, which then moves.
        newfid: u32,
        /// `nwname[2] nwname*(name[s])`.
        names: Names<'a>,
    }

    /// How far a walk came: as many qids as names if all the way, and only then is there a new fid.
    Rwalk<'a> = RWALK {
        /// `nwqid[2] nwqid*(qid[13])`.
        qids: Qids<'a>,
    }

    /// Gives a fid back. It is gone even when the answer is an error.
    Tclunk = TCLUNK {
        /// The fid.
        fid: u32,
    }

    /// Removes the fid's file and gives the fid back, even when the answer is an error.
    Tremove = TREMOVE {
        /// The fid.
        fid: u32,
    }
}

empty_messages! {
    /// The fid is gone.
    Rclunk = RCLUNK;

    /// File and fid are gone.
    Rremove = RREMOVE;
}

/// The names of a Twalk, at most [`MAXWELEM`] when decoded. They lie in the frame, or, to be encoded, in a slice.
#[derive(Clone, Copy)]
pub struct Names<'a>(Repr<'a, &'a [u8]>);

/// The qids of an Rwalk, at most [`MAXWELEM`] when decoded. They lie in the frame, or, to be encoded, in a slice.
#[derive(Clone, Copy)]
pub struct Qids<'a>(Repr<'a, Qid>);

/// A list as it came, checked, or as it is to go.
#[derive(Clone, Copy)]
enum Repr<'a, T> {
    Wire { count: u16, bytes: &'a [u8] },
    Slice(&'a [T]),
}

impl<'a, T: Field<'a> + Copy> Repr<'a, T> {
    const EMPTY: Self = Repr::Slice(&[]);

    #[inline]
    fn len(&self) -> usize {
        match *self {
            Repr::Wire { count, .. } => usize::from(count),
            Repr::Slice(items) => items.len(),
        }
    }

    #[inline]
    fn next(&mut self) -> Option<T> {
        match self {
            Repr::Wire { count, bytes } => {
                let left = count.checked_sub(1)?;
                let mut from = Reader::new(bytes);
                let item = T::get(&mut from).ok()?;
                *count = left;
                *bytes = from.rest();
                Some(item)
            }
            Repr::Slice(items) => {
                let (&item, rest) = items.split_first()?;
                *items = rest;
                Some(item)
            }
        }
    }

    /// Bytes on the wire, `count[2]` included.
    #[inline]
    fn wire_len(&self) -> Option<usize> {
        match *self {
            Repr::Wire { bytes, .. } => Some(2 + bytes.len()),
            Repr::Slice(items) if items.len() > MAXWELEM => None,
            Repr::Slice(items) => items
                .iter()
                .try_fold(2usize, |sum, item| sum.checked_add(item.len()?)),
        }
    }

    /// `check` reads `count` items and so finds where they end.
    #[inline]
    fn get(
        from: &mut Reader<'a>,
        check: impl FnOnce(&mut Reader<'a>, usize) -> Result<(), DecodeErrorKind>,
    ) -> Result<Self, DecodeErrorKind> {
        let count = u16::get(from)?;
        if usize::from(count) > MAXWELEM {
            return Err(DecodeErrorKind::TooManyNames);
        }
        let all = from.rest();
        check(from, usize::from(count))?;
        let bytes = all
            .len()
            .checked_sub(from.rest().len())
            .and_then(|len| all.get(..len));
        Ok(Repr::Wire {
            count,
            bytes: bytes.ok_or(DecodeErrorKind::Short)?,
        })
    }

    #[inline]
    fn put(&self, to: &mut Writer<'_>) -> Option<()> {
        match *self {
            Repr::Wire { count, bytes } => {
                count.put(to)?;
                to.bytes(bytes)
            }
            Repr::Slice(items) => {
                u16::try_from(items.len()).ok()?.put(to)?;
                items.iter().try_for_each(|item| item.put(to))
            }
        }
    }
}

macro_rules! list {
    ($list:ident, $iter:ident, $item:ty, $what:literal) => {
        impl<'a> $list<'a> {
            #[doc = concat!("To be encoded: the ", $what, " in `items`. More than [`MAXWELEM`] do not encode.")]
            pub const fn new(items: &'a [$item]) -> Self {
                $list(Repr::Slice(items))
            }

            #[doc = concat!("How many ", $what, " there are.")]
            #[inline]
            pub fn len(&self) -> usize {
                self.0.len()
            }

            /// Whether there are none.
            #[inline]
            pub fn is_empty(&self) -> bool {
                self.len() == 0
            }

            #[doc = concat!("The ", $what, " in their order.")]
            #[inline]
            pub fn iter(&self) -> $iter<'a> {
                $iter(self.0)
            }
        }

        impl Default for $list<'_> {
            fn default() -> Self {
                $list(Repr::EMPTY)
            }
        }

        impl<'a> From<&'a [$item]> for $list<'a> {
            fn from(items: &'a [$item]) -> Self {
                Self::new(items)
            }
        }

        impl<'a, const N: usize> From<&'a [$item; N]> for $list<'a> {
            fn from(items: &'a [$item; N]) -> Self {
                Self::new(items)
            }
        }

        impl<'a> IntoIterator for $list<'a> {
            type Item = $item;
            type IntoIter = $iter<'a>;

            fn into_iter(self) -> $iter<'a> {
                self.iter()
            }
        }

        /// The same items, wherever they lie.
        impl PartialEq for $list<'_> {
            fn eq(&self, other: &Self) -> bool {
                self.iter().eq(other.iter())
            }
        }

        impl Eq for $list<'_> {}

        #[doc = concat!("Iterator over ", $what, ".")]
        #[derive(Clone)]
        pub struct $iter<'a>(Repr<'a, $item>);

        impl<'a> Iterator for $iter<'a> {
            type Item = $item;

            #[inline]
            fn next(&mut self) -> Option<$item> {
                self.0.next()
            }

            fn size_hint(&self) -> (usize, Option<usize>) {
                (self.0.len(), Some(self.0.len()))
            }
        }

        impl ExactSizeIterator for $iter<'_> {}

        impl fmt::Debug for $list<'_> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.iter().fmt(f)
            }
        }
    };
}

list!(Names, NamesIter, &'a [u8], "names");
list!(Qids, QidsIter, Qid, "qids");

impl fmt::Debug for NamesIter<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.clone().map(Text)).finish()
    }
}

impl fmt::Debug for QidsIter<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.clone()).finish()
    }
}

impl<'a> Field<'a> for Names<'a> {
    const LEAST: usize = 2;
    const FIXED: bool = false;

    #[inline]
    fn len(&self) -> Option<usize> {
        self.0.wire_len()
    }

    #[inline]
    fn get(from: &mut Reader<'a>) -> Result<Self, DecodeErrorKind> {
        let check = |from: &mut Reader<'a>, count| (0..count).try_for_each(|_| <&[u8]>::get(from).map(drop));
        Repr::get(from, check).map(Names)
    }

    #[inline]
    fn put(&self, to: &mut Writer<'_>) -> Option<()> {
        self.0.put(to)
    }

    fn show(&self) -> impl fmt::Debug {
        *self
    }
}

impl<'a> Field<'a> for Qids<'a> {
    const LEAST: usize = 2;
    const FIXED: bool = false;

    #[inline]
    fn len(&self) -> Option<usize> {
        self.0.wire_len()
    }

    #[inline]
    fn get(from: &mut Reader<'a>) -> Result<Self, DecodeErrorKind> {
        let check = |from: &mut Reader<'a>, count| from.bytes(count * Qid::LEN).map(drop);
        Repr::get(from, check).map(Qids)
    }

    #[inline]
    fn put(&self, to: &mut Writer<'_>) -> Option<()> {
        self.0.put(to)
    }

    fn show(&self) -> impl fmt::Debug {
        *self
    }
}
