//! Ranges of addresses, and the part of an address that stands for its owner.
//!
//! An IPv4 address that came over an IPv6 socket (`::ffff:192.0.2.1`) is the IPv4 address. Zones of
//! IPv6 addresses are ignored.

use std::{
    error::Error,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

/// A range of addresses: `10.0.0.0/8`, `2001:db8::/32`, or one address.
///
/// `::/0` is all of IPv6 and nothing of IPv4, which `0.0.0.0/0` is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cidr {
    address: IpAddr,
    prefix: u8,
}

impl Cidr {
    /// The range of all addresses that begin with the first `prefix` bits of `address`.
    ///
    /// # Errors
    /// The prefix is longer than an address, or `address` has bits set below it.
    pub fn new(address: IpAddr, prefix: u8) -> Result<Self, CidrError> {
        let most = bits(address);
        if most < prefix {
            return Err(CidrError::Prefix { got: prefix, most });
        }
        let first = masked(address, prefix);
        if first != address {
            return Err(CidrError::Bits { got: address, prefix, first });
        }
        let folded = address.to_canonical();
        // what is folded has bits set down to the 96th, so that its prefix is not shorter
        Ok(Self { address: folded, prefix: prefix - (most - bits(folded)) })
    }

    /// Whether `address` is in the range.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_ipv4() == self.address.is_ipv4() && masked(address, self.prefix) == self.address
    }
}

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        let wrong = || CidrError::Text { got: text.to_owned() };
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let prefix = match prefix {
            Some(digits) if digits.bytes().all(|it| it.is_ascii_digit()) => {
                digits.parse().map_err(|_| wrong())?
            }
            Some(_) => return Err(wrong()),
            None => bits(address),
        };
        Self::new(address, prefix)
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// A range that is none.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CidrError {
    /// Neither an address nor an address with a prefix.
    Text {
        /// What was given.
        got: String,
    },
    /// Longer than the address.
    Prefix {
        /// What was given.
        got: u8,
        /// Bits of the address.
        most: u8,
    },
    /// The address is not the first of its range.
    Bits {
        /// What was given.
        got: IpAddr,
        /// The length of the prefix.
        prefix: u8,
        /// The first address of the range.
        first: IpAddr,
    },
}

impl fmt::Display for CidrError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text { got } => {
                write!(f, "range is {got:?}, expected an address or ADDRESS/PREFIX: 10.0.0.0/8")
            }
            Self::Prefix { got, most } => write!(f, "prefix is {got}, expected 0 to {most} bits"),
            Self::Bits { got, prefix, first } => {
                write!(f, "range is {got}/{prefix}, expected {first}/{prefix} or one address")
            }
        }
    }
}

impl Error for CidrError {}

/// What stands for the owner of `address`: an IPv4 address itself, of an IPv6 address the first
/// `ipv6_prefix` bits, since who has one of these has them all. IPv4 is in `::ffff:0:0/96`, where
/// no IPv6 address is left after folding.
pub(crate) fn key(address: IpAddr, ipv6_prefix: u8) -> u128 {
    match address.to_canonical() {
        IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
        IpAddr::V6(address) => address.to_bits() & high_bits(ipv6_prefix),
    }
}

fn bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn masked(address: IpAddr, prefix: u8) -> IpAddr {
    match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
            Ipv4Addr::from_bits(address.to_bits() & mask).into()
        }
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & high_bits(prefix)).into(),
    }
}

fn high_bits(n: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(n)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_text(text: &str, expected: Result<&str, &str>) {
        let got = text.parse::<Cidr>().map(|it| it.to_string()).map_err(|err| err.to_string());
        assert_eq!(got, expected.map(str::to_owned).map_err(str::to_owned), "{text:?}");
    }

    #[test]
    fn a_range_is_an_address_with_a_prefix() {
        check_text("10.0.0.0/8", Ok("10.0.0.0/8"));
        check_text("0.0.0.0/0", Ok("0.0.0.0/0"));
        check_text("192.0.2.1", Ok("192.0.2.1/32"));
        check_text("2001:db8::/32", Ok("2001:db8::/32"));
        check_text("::1", Ok("::1/128"));
        check_text("::/0", Ok("::/0"));
        check_text("::ffff:10.0.0.0/104", Ok("10.0.0.0/8"));
        check_text("::ffff:0.0.0.0/96", Ok("0.0.0.0/0"));
        check_text("10.0.0.0/33", Err("prefix is 33, expected 0 to 32 bits"));
        check_text("::/129", Err("prefix is 129, expected 0 to 128 bits"));
        check_text("10.1.0.0/8", Err("range is 10.1.0.0/8, expected 10.0.0.0/8 or one address"));
        check_text(
            "::ffff:10.0.0.0/90",
            Err("range is ::ffff:10.0.0.0/90, expected ::ffc0:0:0/90 or one address"),
        );
        for text in ["", "/8", "10.0.0.0/", "10.0.0.0/+8", "10.0.0.0/8/8", "a", "10.0.0.0/999"] {
            let expected =
                format!("range is {text:?}, expected an address or ADDRESS/PREFIX: 10.0.0.0/8");
            check_text(text, Err(&expected));
        }
    }

    #[track_caller]
    fn check(range: &str, address: &str, expected: bool) {
        let range: Cidr = range.parse().expect("a range");
        let got = range.contains(address.parse().expect("an address"));
        assert_eq!(got, expected, "{address} in {range}");
    }

    #[test]
    fn an_address_is_in_a_range_or_not() {
        check("10.0.0.0/8", "10.255.255.255", true);
        check("10.0.0.0/8", "11.0.0.0", false);
        check("10.0.0.0/8", "::ffff:10.1.2.3", true);
        check("::ffff:10.0.0.0/104", "10.1.2.3", true);
        check("10.1.2.3", "10.1.2.3", true);
        check("10.1.2.3", "10.1.2.2", false);
        check("0.0.0.0/0", "::1", false);
        check("::/0", "10.1.2.3", false);
        check("::/0", "::ffff:10.1.2.3", false);
        check("2001:db8::/33", "2001:db8:7fff::1", true);
        check("2001:db8::/33", "2001:db8:8000::1", false);
    }

    #[test]
    fn all_addresses_of_a_network_have_one_key() {
        let key = |text: &str, prefix| key(text.parse().expect("an address"), prefix);
        let network = key("2001:db8:0:1::", 64);
        for n in 0..1_000_000_u64 {
            // spread over the lower half
            let host = u128::from(n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let address = Ipv6Addr::from_bits(network | host);
            assert_eq!(super::key(address.into(), 64), network, "{address}");
        }
        assert_ne!(key("2001:db8:0:2::1", 64), network);
        assert_eq!(key("2001:db8:0:2::1", 48), key("2001:db8::1", 48));
        assert_ne!(key("2001:db8::2", 128), key("2001:db8::1", 128));
        for prefix in [48, 64, 81, 95, 96, 128] {
            assert_eq!(key("::ffff:192.0.2.1", prefix), key("192.0.2.1", prefix));
            assert_ne!(key("192.0.2.1", prefix), key("192.0.2.2", prefix));
            assert_ne!(key("::fffe:192.0.2.1", prefix), key("192.0.2.1", prefix));
        }
    }
}
