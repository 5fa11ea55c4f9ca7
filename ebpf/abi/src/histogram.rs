//! Durations by size, in the buckets of a native histogram of schema 2.
//!
//! The upper bounds are 2^(k/4) seconds, k from -80 (0.95 µs) to 48 (4,096 s): four buckets to each
//! power of two, each 19 % wide, so that its geometric middle is within 9.1 % of all that it holds.
//! They are the bounds of a Prometheus native histogram of schema 2, which therefore needs no
//! conversion.

/// How many buckets there are: the first holds all up to [`LOWEST`], the last all beyond
/// [`HIGHEST`].
pub const BUCKETS: usize = (HIGHEST - LOWEST) as usize + 2;

/// The first bucket's upper bound is 2^(LOWEST/4) seconds.
pub const LOWEST: i32 = -80;

/// The upper bound of the last bucket but one is 2^(HIGHEST/4) seconds.
pub const HIGHEST: i32 = 48;

/// Durations by size. 32 bits wide: the agent reads it often enough to see every wrap.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Histogram {
    /// Sum of all, in nanoseconds.
    pub sum: u64,
    /// How many in each bucket, not cumulative.
    pub buckets: [u32; BUCKETS],
}

/// 2^(1/4), 2^(2/4), 2^(3/4) with 31 bits behind the point.
const QUARTERS: [u64; 3] = [2_553_802_834, 3_037_000_500, 3_611_622_603];

/// The bucket that holds a duration. A duration within 10^-7 of a bound can be on either side of
/// it.
#[inline(always)]
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "an index below BUCKETS")]
pub const fn bucket(nanos: u64) -> usize {
    // longer than any bound, and short enough for the multiplication
    let nanos = if nanos < 1 << 43 { nanos } else { 1 << 43 };
    // in units of 2^-30 s: times 2^30 / 10^9, with 20 bits behind the point
    let scaled = (nanos * 1_125_900) >> 20;
    // 2^-20 s is 2^10 of them
    if scaled <= 1 << 10 {
        return 0;
    }
    let below = scaled - 1;
    let octave = 63 - below.leading_zeros() as u64;
    // 1 to 2, with 31 bits behind the point; octave is 10 to 43
    let mantissa = if octave <= 31 { scaled << (31 - octave) } else { scaled >> (octave - 31) };
    let quarter = (QUARTERS[0] < mantissa) as u64
        + (QUARTERS[1] < mantissa) as u64
        + (QUARTERS[2] < mantissa) as u64;
    let index = (octave - 10) * 4 + quarter + 1;
    if index < BUCKETS as u64 { index as usize } else { BUCKETS - 1 }
}
