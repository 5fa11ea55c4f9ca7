//! Samples as a chunk of Prometheus' TSDB holds them (`tsdb/chunkenc/xor.go`), and the numbers and the checksum
//! of its files; pure.

use anyhow::{Context, Result};

/// The name of the encoding.
pub(super) const XOR: u8 = 1;

/// Numbers as Go's encoding/binary has them.
pub(super) trait Bytes {
    fn uvarint(&mut self, value: u64);
    /// Small ones of either sign take few bytes.
    fn varint(&mut self, value: i64);
    /// The length, then the text.
    fn text(&mut self, text: &str);
}

impl Bytes for Vec<u8> {
    fn uvarint(&mut self, mut value: u64) {
        while 0x80 <= value {
            self.push((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        self.push((value & 0x7f) as u8);
    }

    fn varint(&mut self, value: i64) {
        self.uvarint((value.cast_unsigned() << 1) ^ (value >> 63).cast_unsigned());
    }

    fn text(&mut self, text: &str) {
        self.uvarint(text.len() as u64);
        self.extend(text.as_bytes());
    }
}

/// CRC-32C, which all of its files are checked by.
pub(super) fn crc32c(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = table();
    let step = |crc: u32, byte: &u8| {
        let [lowest, ..] = crc.to_le_bytes();
        TABLE[usize::from(lowest ^ byte)] ^ (crc >> 8)
    };
    !bytes.iter().fold(!0, step)
}

const fn table() -> [u32; 256] {
    let mut table = [0; 256];
    let (mut at, mut byte) = (0, 0);
    while at < table.len() {
        let (mut crc, mut bit) = (byte, 0);
        while bit < 8 {
            crc = if crc & 1 == 0 { crc >> 1 } else { (crc >> 1) ^ 0x82F6_3B78 };
            bit += 1;
        }
        table[at] = crc;
        at += 1;
        byte += 1;
    }
    table
}

/// Bits one after the other, the highest first.
#[derive(Default)]
struct Bits {
    bytes: Vec<u8>,
    /// Of the last byte.
    n_free: u32,
}

impl Bits {
    /// The lowest `n` bits of `value`.
    fn push(&mut self, value: u64, n: u32) {
        for at in (0..n).rev() {
            if self.n_free == 0 {
                self.bytes.push(0);
                self.n_free = 8;
            }
            self.n_free -= 1;
            if let Some(last) = self.bytes.last_mut() {
                *last |= (((value >> at) & 1) as u8) << self.n_free;
            }
        }
    }

    fn bytes(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.push((*byte).into(), 8);
        }
    }
}

/// At most 65,535 samples, times in milliseconds; the steps of time are all as the first one.
pub(super) fn encode(samples: &[(i64, f64)]) -> Result<Vec<u8>> {
    let mut bits = Bits::default();
    bits.bytes(&u16::try_from(samples.len())?.to_be_bytes());
    let mut before: Option<(i64, u64)> = None;
    let mut step: Option<i64> = None;
    let mut window = None;
    for &(time, value) in samples {
        let value = value.to_bits();
        let mut number = Vec::new();
        match before {
            None => {
                number.varint(time);
                bits.bytes(&number);
                bits.push(value, 64);
            }
            Some((time_before, value_before)) => {
                let delta = time - time_before;
                match step {
                    None => {
                        number.uvarint(u64::try_from(delta)?);
                        bits.bytes(&number);
                        step = Some(delta);
                    }
                    Some(step) => {
                        let same = (delta == step).then_some(());
                        same.context("steps of time are expected to be all the same")?;
                        bits.push(0, 1);
                    }
                }
                difference(&mut bits, value ^ value_before, &mut window);
            }
        }
        before = Some((time, value));
    }
    Ok(bits.bytes)
}

/// What differs from the value before; `window` is where the last difference was: zeros before and behind.
fn difference(bits: &mut Bits, differs: u64, window: &mut Option<(u32, u32)>) {
    if differs == 0 {
        return bits.push(0, 1);
    }
    bits.push(1, 1);
    let (before, behind) = (differs.leading_zeros().min(31), differs.trailing_zeros());
    if let Some((old_before, old_behind)) = *window
        && old_before <= before
        && old_behind <= behind
    {
        bits.push(0, 1);
        return bits.push(differs >> old_behind, 64 - old_before - old_behind);
    }
    let n = 64 - before - behind;
    bits.push(1, 1);
    bits.push(before.into(), 5);
    // 64 is written as 0
    bits.push((n & 63).into(), 6);
    bits.push(differs >> behind, n);
    *window = Some((before, behind));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_go() {
        #[track_caller]
        fn check(value: i64, expected: &[u8]) {
            let mut bytes = Vec::new();
            bytes.varint(value);
            assert_eq!(bytes, expected, "{value}");
        }
        check(0, &[0]);
        check(-1, &[1]);
        check(1, &[2]);
        check(-65, &[0x81, 1]);
        check(64, &[0x80, 1]);
    }

    #[test]
    fn the_checksum_is_castagnolis() {
        assert_eq!(crc32c(b"123456789"), 0xE306_9283);
        assert_eq!(crc32c(b""), 0);
    }

    #[test]
    fn what_stays_takes_two_bits_a_sample() {
        let samples: Vec<_> = (0..120).map(|n| (n * 15_000, 1.0)).collect();
        let bytes = encode(&samples).expect("steps are the same");
        // the count, the first sample, the step, and bits for the values: one, then two for each
        assert_eq!(bytes.len(), 2 + 1 + 8 + 2 + (1 + 2 * 118_usize).div_ceil(8));
    }

    #[test]
    fn another_step_of_time_is_refused() {
        let err = encode(&[(0, 1.0), (15, 1.0), (40, 1.0)]).expect_err("steps differ");
        assert_eq!(err.to_string(), "steps of time are expected to be all the same");
    }
}
