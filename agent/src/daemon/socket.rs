//! The Unix socket that the reading verbs ask: made at the start, removed at the end.

use std::{
    fs, io,
    os::unix::{
        fs::{FileTypeExt as _, PermissionsExt as _},
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
};

use super::DaemonError;

/// The socket for the reading verbs; the file goes with it.
pub(super) struct UnixSocket {
    path: PathBuf,
    listener: io::Result<UnixListener>,
}

impl UnixSocket {
    /// That it cannot be had costs the reading verbs, not the daemon.
    pub(super) fn bind(path: &Path) -> Result<Self, DaemonError> {
        if UnixStream::connect(path).is_ok() {
            return Err(DaemonError::AlreadyRunning(path.to_owned()));
        }
        let listener = Self::listen(path);
        if let Err(err) = &listener {
            tracing::warn!(socket = %path.display(), error = %err,
                "no Unix socket: list takes its own samples");
        }
        Ok(Self { path: path.to_owned(), listener })
    }

    fn listen(path: &Path) -> io::Result<UnixListener> {
        // one level alone: what is missing beyond that is a slip of the pen
        match path.parent().map(fs::create_dir) {
            Some(Err(err)) if err.kind() != io::ErrorKind::AlreadyExists => return Err(err),
            Some(_) | None => {}
        }
        match fs::symlink_metadata(path) {
            // left by a daemon that was killed: nobody answered on it
            Ok(found) if found.file_type().is_socket() => fs::remove_file(path)?,
            Ok(_) => {
                let text = "there is a file that is no socket, and it stays";
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
            }
            Err(err) if err.kind() == io::ErrorKind::NotFound => {}
            Err(err) => return Err(err),
        }
        let listener = UnixListener::bind(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o660))?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    }

    pub(super) fn listener(&self) -> Option<UnixListener> {
        self.listener.as_ref().ok()?.try_clone().ok()
    }
}

impl Drop for UnixSocket {
    fn drop(&mut self) {
        if self.listener.is_ok() {
            // a file that stays is removed at the next start
            let _ = fs::remove_file(&self.path);
        }
    }
}
