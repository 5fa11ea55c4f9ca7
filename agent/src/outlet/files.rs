//! What the files of a receiver hold: certificates of those who may vouch for it, and secrets.

use std::{fs, io, path::Path};

use tokio_rustls::rustls::{
    RootCertStore,
    pki_types::{CertificateDer, pem::PemObject as _},
};

/// The largest file of a token or a password.
const LARGEST_SECRET: u64 = 64 << 10;
/// The largest file of certificates; those of all authorities of the world are a quarter of it.
const LARGEST_ROOTS: u64 = 1 << 20;

/// Those who may vouch for it: PEM, with one certificate at least.
///
/// # Errors
/// It cannot be read, or something in it is no certificate.
pub fn roots(path: &Path) -> io::Result<RootCertStore> {
    let text = read(path, LARGEST_ROOTS)?;
    let mut roots = RootCertStore::empty();
    for (n, certificate) in (1..).zip(CertificateDer::pem_slice_iter(&text)) {
        let wrong = |why: &dyn std::fmt::Display| {
            io::Error::new(io::ErrorKind::InvalidData, format!("certificate {n}: {why}"))
        };
        let certificate = certificate.map_err(|err| wrong(&err))?;
        roots.add(certificate).map_err(|err| wrong(&err))?;
    }
    if roots.is_empty() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it has no certificate"));
    }
    Ok(roots)
}

/// A token, less white space around it: such as can be in a header.
///
/// # Errors
/// It cannot be read, or is none.
pub fn token(path: &Path) -> io::Result<String> {
    let token = secret(path)?;
    if token.is_empty() || !token.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
        let text = "it is empty, or not one line of ASCII";
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    Ok(token)
}

/// A password, less white space around it.
///
/// # Errors
/// It cannot be read, or is no text.
pub fn secret(path: &Path) -> io::Result<String> {
    let text = String::from_utf8(read(path, LARGEST_SECRET)?);
    let text = text.map_err(|err| io::Error::new(io::ErrorKind::InvalidData, err.utf8_error()))?;
    Ok(text.trim().to_owned())
}

fn read(path: &Path, largest: u64) -> io::Result<Vec<u8>> {
    // a pipe would be waited for, and a device has no end
    let found = fs::metadata(path)?;
    if !found.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    if largest < found.len() {
        return Err(io::Error::other(format!("it is larger than {largest} bytes")));
    }
    fs::read(path)
}
