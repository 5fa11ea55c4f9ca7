//! Who is told of alerts beside those who ask: receivers, as they are configured and checked.

pub mod files;

use std::{fmt, net::Ipv6Addr, path::PathBuf, time::Duration};

use hyper::Uri;

/// One receiver of alerts.
#[derive(Clone, Debug, PartialEq)]
pub struct Outlet {
    /// What it takes.
    pub form: Form,
    /// Where it is.
    pub url: Url,
    /// Certificates of those who may vouch for it; `None`: those that the system trusts.
    pub ca_file: Option<PathBuf>,
    /// How the agent says who it is.
    pub auth: Auth,
    /// How long one request may take.
    pub timeout: Duration,
    /// How often it is told again of what still fires.
    pub resend: Duration,
    /// Labels for each alert.
    pub labels: Vec<(String, String)>,
}

/// What a receiver takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Version 2 of Alertmanager's API.
    Alertmanager,
    /// One POST, in the form in which Alertmanager itself tells webhooks.
    Webhook,
}

/// How the agent says who it is. Secrets are in files that are read for each request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Auth {
    /// Not at all.
    None,
    /// By a token.
    Bearer(PathBuf),
    /// By a name and a password.
    Basic {
        /// The name.
        username: String,
        /// Where the password is.
        password_file: PathBuf,
    },
}

/// Where a receiver is: a URL without user, query and fragment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    /// Whether it is https.
    pub tls: bool,
    /// A name, or an address; that of IPv6 without brackets.
    pub host: String,
    /// The port, that of the scheme where none was given.
    pub port: u16,
    /// From the first slash on; it does not end with one, so it may be empty.
    pub path: String,
}

impl Url {
    /// What [`Url::parse`] takes, for messages.
    pub const EXPECTED: &str =
        "a URL such as https://alertmanager:9093/prefix, without user, query and fragment";

    /// `None` for what is no such URL.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        // the parser drops a fragment
        if text.contains('#') {
            return None;
        }
        let uri: Uri = text.parse().ok()?;
        let tls = match uri.scheme_str()? {
            "http" => false,
            "https" => true,
            _ => return None,
        };
        let authority = uri.authority()?;
        let host = uri.host()?;
        let host = match host.strip_prefix('[') {
            Some(rest) => rest.strip_suffix(']')?.parse::<Ipv6Addr>().ok()?.to_string(),
            None => host.to_owned(),
        };
        let after_host = authority.as_str().rsplit(']').next()?;
        let port = match after_host.split_once(':') {
            Some((_, port)) => port.parse().ok().filter(|&port| port != 0)?,
            None if tls => 443,
            None => 80,
        };
        let is_plain = !authority.as_str().contains('@') && uri.query().is_none();
        let path = uri.path().trim_end_matches('/').to_owned();
        (is_plain && !host.is_empty()).then_some(Self { tls, host, port, path })
    }

    /// Host and port, as they name the receiver.
    #[must_use]
    pub fn authority(&self) -> String {
        let Self { host, port, .. } = self;
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.authority(), self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Option<&str>) {
        let got = Url::parse(text);
        assert_eq!(expected, got.as_ref().map(ToString::to_string).as_deref(), "{text}");
        if let Some(url) = got {
            assert_eq!(Some(&url), Url::parse(&url.to_string()).as_ref());
        }
    }

    #[test]
    fn a_url_is_taken_apart_or_refused() {
        check("http://alertmanager", Some("http://alertmanager:80"));
        check("https://alertmanager", Some("https://alertmanager:443"));
        check("https://alertmanager:9093/", Some("https://alertmanager:9093"));
        check("http://10.0.0.1:9093/a/b/", Some("http://10.0.0.1:9093/a/b"));
        check("http://[::1]:9093", Some("http://[::1]:9093"));
        check("http://[::1]", Some("http://[::1]:80"));
        check("http://[fe80::1", None);
        check("http://[nonsense]", None);
        check("http://host:0", None);
        check("http://host:65536", None);
        check("http://host:", None);
        check("alertmanager:9093", None);
        check("/alerts", None);
        check("ftp://host", None);
        check("http://user:secret@host", None);
        check("http://host/?a=b", None);
        check("http://host/#a", None);
        check("http://", None);
        check("", None);
    }
}
