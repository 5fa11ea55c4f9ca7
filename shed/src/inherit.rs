//! What a process inherited: listening sockets by name, as the environment says.

use std::{
    error::Error,
    fmt, io,
    os::fd::{AsRawFd as _, RawFd},
};

use socket2::Socket;

use crate::{build_error::BuildError, page::PageError, socket};

pub(crate) const LISTEN_FDS: &str = "LISTEN_FDS";
pub(crate) const LISTEN_PID: &str = "LISTEN_PID";
pub(crate) const LISTEN_FDNAMES: &str = "LISTEN_FDNAMES";
/// Set by us, to how many generations there were before: behind the sockets are the page and the way
/// to say that one is ready.
pub(crate) const SHED_GENERATION: &str = "SHED_GENERATION";
pub(crate) const VARIABLES: [&str; 4] = [LISTEN_FDS, LISTEN_PID, LISTEN_FDNAMES, SHED_GENERATION];

/// More cannot be inherited.
pub(crate) const MAX_FDS: u32 = 1_024;

/// Why what was inherited cannot be used.
#[derive(Debug)]
#[non_exhaustive]
pub enum GenerationError {
    /// A variable of the environment has no number.
    Variable {
        /// Its name.
        name: &'static str,
        /// What it is.
        got: String,
    },
    /// A descriptor is not what it should be.
    Descriptor {
        /// Its number.
        fd: RawFd,
        /// Why not.
        source: io::Error,
    },
    /// The limits cannot be shared.
    Page(PageError),
    /// No listener of this program has these, whose connections would wait for ever.
    Unused {
        /// The number, the name and what it is, of each.
        descriptors: Vec<String>,
    },
    /// The parent cannot be told.
    Parent(io::Error),
}

impl fmt::Display for GenerationError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Variable { name: LISTEN_FDS, got } => {
                write!(f, "{LISTEN_FDS} is {got:?}, expected 0 to {MAX_FDS}")
            }
            Self::Variable { name: SHED_GENERATION, got } => {
                write!(f, "{SHED_GENERATION} is {got:?}, expected how many there were before")
            }
            Self::Variable { name, got } => write!(f, "{name} is {got:?}, expected a process id"),
            Self::Descriptor { fd, .. } => {
                write!(f, "inherited descriptor {fd}: expected it open, and not closed on exec")
            }
            Self::Page(err) => err.fmt(f),
            Self::Unused { descriptors } => write!(
                f,
                "inherited and not used: {}; expected each to have the name or the address of a \
                 listener",
                descriptors.join("; ")
            ),
            Self::Parent(_) => f.write_str("the generation before cannot be told"),
        }
    }
}

impl Error for GenerationError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Descriptor { source, .. } | Self::Parent(source) => Some(source),
            Self::Page(err) => err.source(),
            Self::Variable { .. } | Self::Unused { .. } => None,
        }
    }
}

/// What the environment says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Given {
    pub(crate) names: Vec<String>,
    /// How many generations there were before; 0: it has neither a page nor a parent.
    pub(crate) number: u64,
}

/// `variable` gives the environment, `pid` is ours.
pub(crate) fn parse(
    variable: impl Fn(&str) -> Option<String>,
    pid: u32,
) -> Result<Given, GenerationError> {
    let number = |name: &'static str| {
        let parse = |got: String| match got.parse::<u64>() {
            Ok(number) => Ok(number),
            Err(_) => Err(GenerationError::Variable { name, got }),
        };
        variable(name).map(parse).transpose()
    };
    let nothing = Given { names: Vec::new(), number: 0 };
    // for a process before us, whose environment we have
    if number(LISTEN_PID)?.is_some_and(|it| it != u64::from(pid)) {
        return Ok(nothing);
    }
    let Some(n) = number(LISTEN_FDS)? else { return Ok(nothing) };
    if u64::from(MAX_FDS) < n {
        return Err(GenerationError::Variable { name: LISTEN_FDS, got: n.to_string() });
    }
    let generation = number(SHED_GENERATION)?.unwrap_or(0);
    let is_successor = generation != 0;
    let given = variable(LISTEN_FDNAMES).unwrap_or_default();
    let mut names = given.split(':');
    let names = (0..n)
        // as sd_listen_fds_with_names(3) calls those without a name
        .map(|_| names.next().filter(|it| is_successor || !it.is_empty()).unwrap_or("unknown"))
        .map(|name| if is_successor { decode(name) } else { name.to_owned() })
        .collect();
    Ok(Given { names, number: generation })
}

/// A name as it may be between colons.
pub(crate) fn encode(name: &str) -> String {
    name.replace('%', "%25").replace(':', "%3A")
}

pub(crate) fn decode(name: &str) -> String {
    name.replace("%3A", ":").replace("%25", "%")
}

/// That there are none of `left`.
pub(crate) fn none_left<'a>(
    left: impl Iterator<Item = &'a (String, Socket)>,
) -> Result<(), GenerationError> {
    let descriptors: Vec<_> = left.map(|(name, socket)| described(name, socket)).collect();
    if descriptors.is_empty() { Ok(()) } else { Err(GenerationError::Unused { descriptors }) }
}

/// What was inherited by `name`, for who has to find out why.
fn described(name: &str, socket: &Socket) -> String {
    let fd = socket.as_raw_fd();
    match socket::listens(socket) {
        Ok(address) => format!("descriptor {fd}, {name:?}, which listens on {address}"),
        Err(BuildError::Adopted { got }) => format!("descriptor {fd}, {name:?}, {got}"),
        Err(_) => format!("descriptor {fd}, {name:?}"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(variables: &[(&str, &str)], expected: Result<(&[&str], u64), &str>) {
        let variable = |name: &str| {
            variables.iter().find(|(it, _)| *it == name).map(|(_, value)| (*value).to_owned())
        };
        let got = parse(variable, 7).map_err(|err| err.to_string());
        let expected = expected.map(|(names, number)| Given {
            names: names.iter().map(|&name| name.to_owned()).collect(),
            number,
        });
        assert_eq!(got, expected.map_err(str::to_owned), "{variables:?}");
    }

    #[test]
    fn takes_what_is_for_this_process() {
        check(&[], Ok((&[], 0)));
        check(&[("LISTEN_FDS", "2")], Ok((&["unknown", "unknown"], 0)));
        check(
            &[("LISTEN_FDS", "2"), ("LISTEN_FDNAMES", "web:mail"), ("LISTEN_PID", "7")],
            Ok((&["web", "mail"], 0)),
        );
        check(&[("LISTEN_FDS", "2"), ("LISTEN_PID", "8")], Ok((&[], 0)));
        check(
            &[("LISTEN_FDS", "1"), ("LISTEN_FDNAMES", "[%3A%3A]%3A80"), ("SHED_GENERATION", "7")],
            Ok((&["[::]:80"], 7)),
        );
        check(&[("SHED_GENERATION", "7")], Ok((&[], 0)));
        check(
            &[("LISTEN_FDS", "0"), ("SHED_GENERATION", "x")],
            Err("SHED_GENERATION is \"x\", expected how many there were before"),
        );
        check(&[("LISTEN_FDS", "x")], Err("LISTEN_FDS is \"x\", expected 0 to 1024"));
        check(&[("LISTEN_FDS", "1025")], Err("LISTEN_FDS is \"1025\", expected 0 to 1024"));
        check(&[("LISTEN_FDS", "-1")], Err("LISTEN_FDS is \"-1\", expected 0 to 1024"));
        check(&[("LISTEN_PID", "")], Err("LISTEN_PID is \"\", expected a process id"));
    }

    proptest! {
        #[test]
        fn a_name_comes_back(name in ".*") {
            let encoded = encode(&name);
            prop_assert!(!encoded.contains(':'));
            prop_assert_eq!(decode(&encoded), name);
        }
    }
}
