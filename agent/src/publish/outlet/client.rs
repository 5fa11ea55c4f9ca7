//! One POST to a receiver: name, connection, TLS, who we are, answer.
//!
//! Each request has a connection of its own: there are few, and receivers come and go. Redirects and
//! proxies are not followed.

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use http_body_util::{BodyExt as _, Full};
use hyper::{
    Request, StatusCode,
    body::{Bytes, Incoming},
    client::conn::http1,
    header::{self, HeaderValue},
};
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{ClientConfig, RootCertStore, crypto::ring, pki_types::ServerName},
};

use crate::outlet::{Auth, Form, Outlet, files};

/// How much of a bad answer is told.
const EXCERPT: usize = 300;

/// Why a receiver does not have it.
#[derive(Debug, Error)]
pub(super) enum SendError {
    /// A token, a password, or certificates.
    #[error("cannot use {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// No certificates to compare with.
    #[error("the system trusts nobody: got no root certificate, expected some, or ca_file")]
    NoRoots,
    /// Its name, or the certificate's.
    #[error("cannot find the host {host}")]
    Resolve {
        /// The name.
        host: String,
        /// Why not.
        source: io::Error,
    },
    /// Nobody answered there.
    #[error("cannot connect to {addr}")]
    Connect {
        /// The last one tried.
        addr: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// The handshake, or what had to be known for it.
    #[error("TLS failed")]
    Tls(#[source] io::Error),
    /// What came is no answer.
    #[error("no answer")]
    Http(#[from] hyper::Error),
    /// What we would send is no request.
    #[error("the request cannot be made")]
    Request(#[from] hyper::http::Error),
    /// An answer other than 2xx.
    #[error("got HTTP status {status}, expected 2xx: {text:?}")]
    Status {
        /// The number.
        status: u16,
        /// How the answer begins.
        text: String,
    },
    /// It took too long.
    #[error("no answer within {} s", .0.as_secs_f64())]
    Timeout(Duration),
}

impl SendError {
    /// Whether the same request will get the same answer. Not where the answer is about the way there, which
    /// somebody may be changing: a token, a route, a load.
    pub(super) fn is_final(&self) -> bool {
        const PASSING: [StatusCode; 5] = [
            StatusCode::UNAUTHORIZED,
            StatusCode::FORBIDDEN,
            StatusCode::NOT_FOUND,
            StatusCode::REQUEST_TIMEOUT,
            StatusCode::TOO_MANY_REQUESTS,
        ];
        let Self::Status { status, .. } = self else { return false };
        (300..500).contains(status) && PASSING.iter().all(|passing| passing.as_u16() != *status)
    }
}

/// What posts to one receiver.
pub(super) struct Client {
    outlet: Outlet,
    /// Kept until a request fails: then certificates may have changed.
    tls: Option<Arc<ClientConfig>>,
}

impl Client {
    pub(super) const fn new(outlet: Outlet) -> Self {
        Self { outlet, tls: None }
    }

    /// Sends JSON; 2xx is success.
    pub(super) async fn post(&mut self, body: Vec<u8>) -> Result<(), SendError> {
        let patience = self.outlet.timeout;
        let result = timeout(patience, self.post_slowly(body)).await;
        let result = result.unwrap_or(Err(SendError::Timeout(patience)));
        if result.is_err() {
            self.tls = None;
        }
        result
    }

    async fn post_slowly(&mut self, body: Vec<u8>) -> Result<(), SendError> {
        let request = self.request(body)?;
        let stream = self.connect().await?;
        if !self.outlet.url.tls {
            return exchange(stream, request).await;
        }
        let config = match &self.tls {
            Some(config) => config.clone(),
            None => self.tls.insert(tls_config(self.outlet.ca_file.as_deref())?).clone(),
        };
        let name = ServerName::try_from(self.outlet.url.host.clone())
            .map_err(|err| SendError::Tls(io::Error::other(err)))?;
        let stream =
            TlsConnector::from(config).connect(name, stream).await.map_err(SendError::Tls)?;
        exchange(stream, request).await
    }

    fn request(&self, body: Vec<u8>) -> Result<Request<Full<Bytes>>, SendError> {
        let url = &self.outlet.url;
        let path = match self.outlet.form {
            Form::Alertmanager => format!("{}/api/v2/alerts", url.path),
            Form::Webhook if url.path.is_empty() => "/".to_owned(),
            Form::Webhook => url.path.clone(),
        };
        let mut request = Request::post(path)
            .header(header::HOST, url.authority())
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::USER_AGENT, concat!("backlogd/", env!("CARGO_PKG_VERSION")))
            .header(header::CONNECTION, "close")
            .body(Full::new(Bytes::from(body)))?;
        let credentials = match &self.outlet.auth {
            Auth::None => return Ok(request),
            Auth::Bearer(path) => format!("Bearer {}", file(path, files::token)?),
            Auth::Basic { username, password_file } => {
                let password = file(password_file, files::secret)?;
                format!("Basic {}", base64(format!("{username}:{password}").as_bytes()))
            }
        };
        let mut value = HeaderValue::from_str(&credentials).map_err(hyper::http::Error::from)?;
        value.set_sensitive(true);
        request.headers_mut().insert(header::AUTHORIZATION, value);
        Ok(request)
    }

    /// Tries all addresses, each with its share of the time, as one of them may swallow packets.
    async fn connect(&self) -> Result<TcpStream, SendError> {
        let url = &self.outlet.url;
        let unknown = |source| SendError::Resolve { host: url.host.clone(), source };
        let found = tokio::net::lookup_host((url.host.as_str(), url.port)).await;
        let addresses: Vec<_> = found.map_err(unknown)?.collect();
        let n = u32::try_from(addresses.len()).unwrap_or(u32::MAX);
        let mut last = unknown(io::Error::new(io::ErrorKind::NotFound, "it has no address"));
        for addr in addresses {
            let late = || io::Error::from(io::ErrorKind::TimedOut);
            match timeout(self.outlet.timeout / n, TcpStream::connect(addr)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(source)) => last = SendError::Connect { addr, source },
                Err(_) => last = SendError::Connect { addr, source: late() },
            }
        }
        Err(last)
    }
}

/// Sends the request and looks at the answer.
async fn exchange<S>(stream: S, request: Request<Full<Bytes>>) -> Result<(), SendError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let answer = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        if status.is_success() {
            return Ok(());
        }
        let text = beginning(response.into_body()).await;
        Err(SendError::Status { status: status.as_u16(), text })
    };
    tokio::pin!(answer, connection);
    tokio::select! {
        answer = &mut answer => answer,
        // what it has read until then is with the answer
        _ = &mut connection => answer.await,
    }
}

/// What an answer begins with; one that breaks off is as good.
async fn beginning(mut body: Incoming) -> String {
    let mut bytes = Vec::new();
    while let (true, Some(Ok(frame))) = (bytes.len() < EXCERPT, body.frame().await) {
        bytes.extend(frame.into_data().unwrap_or_default());
    }
    bytes.truncate(EXCERPT);
    String::from_utf8_lossy(&bytes).trim().to_owned()
}

/// Trusts those of the file, else those that the system trusts.
fn tls_config(ca_file: Option<&Path>) -> Result<Arc<ClientConfig>, SendError> {
    let roots = match ca_file {
        Some(path) => file(path, files::roots)?,
        None => {
            let mut roots = RootCertStore::empty();
            // one that cannot be read leaves the others
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if roots.is_empty() {
                return Err(SendError::NoRoots);
            }
            roots
        }
    };
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|err| SendError::Tls(io::Error::other(err)))?;
    Ok(Arc::new(builder.with_root_certificates(roots).with_no_client_auth()))
}

/// What a file of the receiver holds.
fn file<T>(path: &Path, read: fn(&Path) -> io::Result<T>) -> Result<T, SendError> {
    read(path).map_err(|source| SendError::File { path: path.to_owned(), source })
}

/// RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let byte = |i: usize| u32::from(three.get(i).copied().unwrap_or_default());
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for i in 0..4 {
            let letter = LETTERS[(bits >> (18 - 6 * i) & 63) as usize];
            text.push(if i <= three.len() { char::from(letter) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_standard() {
        for (plain, expected) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(expected, base64(plain.as_bytes()));
        }
        assert_eq!("+/8=", base64(&[0xfb, 0xff]));
    }
}
