//! Tflush.

use server::Outcome;

use crate::common::*;

#[test]
fn the_device_knows_what_is_under_way() {
    let mut f = Fixture::new();
    let answer = f.client.raw(&[9, 0, 0, 0, 108, 5, 0, 0x34, 0x12], 4096);
    assert_eq!(answer, [7, 0, 0, 0, 109, 5, 0]);
    assert_eq!(
        f.client.transport().outcomes,
        [Outcome::Flush {
            oldtag: 0x1234,
            len: 7
        }]
    );
}
