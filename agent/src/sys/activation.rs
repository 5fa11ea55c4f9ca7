//! The socket that a service manager opened for the agent (`man 3 sd_listen_fds`).
//!
//! In: LISTEN_PID and LISTEN_FDS of the environment, descriptor 3. Out: a listening TCP socket, or
//! none was passed. Not here: opening one (`daemon`).

use std::{
    env, fs, io,
    net::TcpListener,
    os::fd::{FromRawFd as _, OwnedFd, RawFd},
    process,
};

use rustix::{
    io::{FdFlags, fcntl_setfd},
    net::{AddressFamily, SocketType, sockopt},
};
use thiserror::Error;

/// The first descriptor that is passed (`SD_LISTEN_FDS_START`).
const FIRST: RawFd = 3;

/// What was passed is not what the agent can serve on.
#[derive(Debug, Error)]
pub enum ActivationError {
    /// A variable that is set by hand, and wrong.
    #[error("{name} is {got:?}, expected a number")]
    NotANumber {
        /// The variable.
        name: &'static str,
        /// Its value.
        got: String,
    },
    /// A socket unit with several addresses, or a service with several socket units.
    #[error(
        "LISTEN_FDS passes {got} descriptors, expected 1: the listening TCP socket of /metrics"
    )]
    Count {
        /// How many.
        got: usize,
    },
    /// A socket unit with `ListenDatagram=`, `Accept=yes` or another address family, or no socket.
    #[error("{which}, passed by LISTEN_FDS, is {got}, expected a listening TCP socket")]
    Kind {
        /// The descriptor.
        which: String,
        /// What it is.
        got: String,
    },
    /// The kernel refused.
    #[error("{which}, passed by LISTEN_FDS: {call} failed")]
    Call {
        /// The descriptor.
        which: String,
        /// What was asked.
        call: &'static str,
        /// The answer.
        source: io::Error,
    },
}

/// The listening TCP socket that was passed to this process; `None`: none was. To be asked once,
/// before the process opens anything that it keeps.
///
/// # Errors
/// Something else was passed, or more than one.
pub fn inherited() -> Result<Option<TcpListener>, ActivationError> {
    // inherited by a child of the process that it was meant for
    if number("LISTEN_PID")? != usize::try_from(process::id()).ok() {
        return Ok(None);
    }
    match number("LISTEN_FDS")? {
        None | Some(0) => return Ok(None),
        Some(1) => {}
        Some(got) => return Err(ActivationError::Count { got }),
    }
    let which = format!("descriptor {FIRST}");
    let Ok(link) = fs::read_link(format!("/proc/self/fd/{FIRST}")) else {
        return Err(ActivationError::Kind { which, got: "not open".to_owned() });
    };
    if !link.as_os_str().as_encoded_bytes().starts_with(b"socket:") {
        return Err(ActivationError::Kind { which, got: link.display().to_string() });
    }
    // SAFETY: it is open, as its link says, and nobody else in this process owns it: the service
    // manager opened it before the process began, and the caller asks once.
    let socket = unsafe { OwnedFd::from_raw_fd(FIRST) };
    listener(socket, &which).map(Some)
}

/// A listening TCP socket that was passed; `which`, for people.
///
/// # Errors
/// It is something else.
pub fn listener(socket: OwnedFd, which: &str) -> Result<TcpListener, ActivationError> {
    let failed = |call| {
        move |err: rustix::io::Errno| ActivationError::Call {
            which: which.to_owned(),
            call,
            source: err.into(),
        }
    };
    let family = sockopt::socket_domain(&socket).map_err(failed("SO_DOMAIN"))?;
    let kind = sockopt::socket_type(&socket).map_err(failed("SO_TYPE"))?;
    let listens = sockopt::socket_acceptconn(&socket).map_err(failed("SO_ACCEPTCONN"))?;
    let is_inet = [AddressFamily::INET, AddressFamily::INET6].contains(&family);
    let got = match (is_inet, kind == SocketType::STREAM, listens) {
        (true, true, true) => None,
        (true, true, false) => Some("a TCP socket that does not listen"),
        (true, false, _) => Some("an IP socket of another kind than TCP"),
        (false, ..) => Some("a socket of another family than IPv4 and IPv6"),
    };
    if let Some(got) = got {
        return Err(ActivationError::Kind { which: which.to_owned(), got: got.to_owned() });
    }
    fcntl_setfd(&socket, FdFlags::CLOEXEC).map_err(failed("F_SETFD"))?;
    Ok(socket.into())
}

fn number(name: &'static str) -> Result<Option<usize>, ActivationError> {
    let Some(value) = env::var_os(name) else { return Ok(None) };
    let number = value.to_str().and_then(|text| text.parse().ok());
    let got = || value.to_string_lossy().into_owned();
    number.map(Some).ok_or_else(|| ActivationError::NotANumber { name, got: got() })
}
