//! Inputs that are scripts: a short header and a list of records, each a kind and a body. Any bytes are one; what is
//! cut off is as short as it is.

use testkit::Random;

/// Bytes in front of the records: what is chosen for the whole script.
pub const HEADER: usize = 4;
/// Most bytes of a record's body.
const BODY: usize = 1 << 12;

/// A script.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Script {
    /// The choices.
    pub header: [u8; HEADER],
    /// The records: kind and body.
    pub records: Vec<(u8, Vec<u8>)>,
}

/// The records behind a script's header: kind, two bytes of length, body.
#[derive(Clone, Copy, Debug)]
pub struct Records<'a>(&'a [u8]);

impl<'a> Iterator for Records<'a> {
    type Item = (u8, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (&[kind, low, high], rest) = self.0.split_first_chunk()?;
        let len = usize::from(u16::from_le_bytes([low, high])).min(rest.len());
        let (body, rest) = rest.split_at(len);
        self.0 = rest;
        Some((kind, body))
    }
}

/// The header and the records of any bytes.
pub fn parse(data: &[u8]) -> ([u8; HEADER], Records<'_>) {
    match data.split_first_chunk() {
        Some((header, rest)) => (*header, Records(rest)),
        None => ([0; HEADER], Records(&[])),
    }
}

impl Script {
    /// The script that `data` is.
    pub fn decode(data: &[u8]) -> Script {
        let (header, records) = parse(data);
        let records = records.map(|(kind, body)| (kind, body.to_vec())).collect();
        Script { header, records }
    }

    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut data = self.header.to_vec();
        for (kind, body) in &self.records {
            let body = &body[..body.len().min(usize::from(u16::MAX))];
            data.push(*kind);
            data.extend((body.len() as u16).to_le_bytes());
            data.extend(body);
        }
        data
    }

    /// Changes it a little: its records, their order, bytes and numbers in them; or brings in records that `fresh`
    /// makes.
    pub fn mutate(&mut self, random: &mut Random, fresh: impl Fn(&mut Random) -> Vec<(u8, Vec<u8>)>) {
        for _ in 0..1 + random.below(4) {
            let count = self.records.len();
            let at = random.below(count.max(1));
            match random.below(12) {
                0 => self.header[random.below(HEADER)] = random.next() as u8,
                1..=4 => drop(self.records.splice(at..at, fresh(random))),
                _ if count == 0 => {}
                5 => drop(self.records.remove(at)),
                6 => {
                    let copy = self.records[random.below(count)].clone();
                    self.records.insert(at, copy);
                }
                7 => self.records.swap(at, random.below(count)),
                8 => {
                    // A shorter script shows the same fault sooner, and leaves room for other mutations.
                    let to = (at + 1 + random.below(4)).min(count);
                    self.records.drain(at..to);
                }
                _ => change_bytes(&mut self.records[at].1, random),
            }
        }
    }
}

/// Numbers that checks are wrong about.
const ODD: [u64; 16] = [
    0,
    1,
    2,
    7,
    8,
    0x7f,
    0xff,
    0x1000,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0xffff_fff0,
    0xffff_ffff,
    0x7fff_ffff_ffff_ffff,
    0xffff_ffff_ffff_fff0,
    u64::MAX,
];

/// Changes bytes of `body`: one, a number of any width, its length.
pub fn change_bytes(body: &mut Vec<u8>, random: &mut Random) {
    let at = random.below(body.len().max(1));
    match random.below(8) {
        0 => body.insert(at.min(body.len()), random.next() as u8),
        _ if body.is_empty() => {}
        1 => drop(body.remove(at)),
        2 => body.truncate(at),
        3 => body[at] ^= 1 << random.below(8),
        4 => body[at] = body[at].wrapping_add(random.below(9) as u8).wrapping_sub(4),
        _ => {
            let width = (1 << random.below(4)).min(body.len() - at);
            let number = ODD[random.below(ODD.len())].to_le_bytes();
            body[at..at + width].copy_from_slice(&number[..width]);
        }
    }
    body.truncate(BODY);
}

/// Numbers read one after the other from a record's body; 0 where it has ended.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        let len = N.min(self.0.len());
        bytes[..len].copy_from_slice(&self.0[..len]);
        self.0 = &self.0[len..];
        bytes
    }

    /// The next byte.
    pub fn u8(&mut self) -> u8 {
        u8::from_le_bytes(self.take())
    }

    /// The next two bytes.
    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.take())
    }

    /// The next four bytes.
    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    /// The next eight bytes.
    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }

    /// The bytes that are left.
    pub fn rest(self) -> &'a [u8] {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_bytes_are_a_script() {
        let script = Script {
            header: [1, 2, 3, 4],
            records: vec![(1, b"abc".to_vec()), (2, Vec::new())],
        };
        let data = script.encode();
        assert_eq!(Script::decode(&data), script);
        let mut random = Random::new(1);
        for len in 0..data.len() {
            let mut cut = Script::decode(&data[..len]);
            cut.mutate(&mut random, |random| vec![(random.next() as u8, vec![0; 3])]);
            assert_eq!(Script::decode(&cut.encode()), cut);
        }
    }
}
